// Mixtral (Jiang et al., 2024) and Qwen3-MoE (2025): the MLP of a layer is a choice of experts for each token. Every expert
// computes every token here, and what was not chosen counts zero: right for every device and without waiting for the
// choice, at the cost of the experts that nobody chose.
import type { UnaryModule } from "../../nn/index.js";
import { Linear, Module, ModuleList } from "../../nn/index.js";
import {
  add,
  cast,
  div,
  max,
  maximum,
  minimum,
  mul,
  reshape,
  sign,
  slice,
  softmax,
  sub,
  sum,
} from "../../ops/index.js";
import { BnbError } from "../../tensor/errors.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Family } from "../load.js";
import type { DecoderConfig } from "../parts/config-keys.js";
import { ConfigKeys, readDecoderConfig } from "../parts/config-keys.js";
import type { DecoderForCausalLM } from "../parts/decoder.js";
import { GatedMlp } from "../parts/gated-mlp.js";
import type { ModelOptions } from "../parts/model-options.js";
import { qwen3Layer, qwenWindows } from "./llama-like.js";
import { PreNormLayer, preNormModel } from "./pre-norm.js";

interface ExpertsOptions {
  experts: number;
  /** How many experts a token chooses. */
  chosen: number;
  /** Width of an expert. */
  intermediateSize: number;
  /** Whether the weights of the chosen are divided by their sum. */
  isNormalized: boolean;
  activation: string;
}

/** Mixtral's names of a gated MLP's layers. */
class MixtralExpert extends GatedMlp {
  static override readonly names = { gateProj: "w1", downProj: "w2", upProj: "w3" };
}

/** `sum of weight[e] * expert[e](x)` over the experts that the router chose. */
class Experts extends Module {
  gate: UnaryModule;
  experts: ModuleList<GatedMlp>;
  readonly #own: ExpertsOptions;

  constructor(hiddenSize: number, options: ModelOptions, own: ExpertsOptions, Expert: typeof GatedMlp) {
    super();
    const { experts, intermediateSize, activation } = own;
    this.gate = new Linear(hiddenSize, experts, { bias: false, ...options });
    const sizes = { hiddenSize, intermediateSize, activation };
    this.experts = new ModuleList(Array.from({ length: experts }, () => new Expert(sizes, options)));
    this.#own = own;
  }

  forward(x: Tensor, residual: Tensor): Tensor {
    const shares = this.#shares(reshape(this.gate.forward(x), [-1, this.#own.experts]));
    const rows = reshape(x, [-1, x.shape.at(-1) as number]);
    let y = reshape(residual, rows.shape);
    let e = 0;
    for (const expert of this.experts) {
      const share = cast(slice(shares, 1, e, ++e), rows.dtype);
      y = add(y, mul(expert.forward(rows), share));
    }
    return reshape(y, x.shape);
  }

  /** The weight of every expert for every token, zero where it was not chosen: float32 [tokens, experts]. */
  #shares(logits: Tensor): Tensor {
    const likely = softmax(cast(logits, "float32"));
    // Passes over the largest one until the last that is chosen: equal ones are chosen together.
    let left = likely;
    let least = max(left, { axis: 1, keepDims: true });
    for (let i = 1; i < this.#own.chosen; i++) {
      left = mul(left, maximum(sign(sub(least, left)), 0));
      least = max(left, { axis: 1, keepDims: true });
    }
    const isChosen = minimum(add(sign(sub(likely, least)), 1), 1);
    const chosen = mul(likely, isChosen);
    return this.#own.isNormalized ? div(chosen, sum(chosen, { axis: 1, keepDims: true })) : chosen;
  }
}

/** A Mixtral layer under its own name for the experts. */
class MixtralLayer extends PreNormLayer {
  static override readonly names = { mlp: "block_sparse_moe" };
}

type Json = Readonly<Record<string, unknown>>;
const embedding = "model.embed_tokens.weight";

export const mixtral: Family<DecoderForCausalLM> = {
  create(json: Json, options) {
    const keys = new ConfigKeys(json);
    const defaults = { normEps: 1e-5, maxPositionEmbeddings: 131_072, ropeTheta: 1e6, window: () => true };
    const c = readDecoderConfig(keys, defaults);
    const own = {
      experts: keys.size("num_local_experts", 8),
      chosen: keys.size("num_experts_per_tok", 2),
      intermediateSize: c.intermediateSize,
      isNormalized: true,
      activation: keys.text("hidden_act", "silu"),
    };
    checkChosen(own);
    const mlp = (): Experts => new Experts(c.hiddenSize, options, own, MixtralExpert);
    return preNormModel(c, options, (i) => new MixtralLayer(c, i, options, {}, mlp()));
  },
  embedding,
};

export const qwen3Moe: Family<DecoderForCausalLM> = {
  create(json: Json, options) {
    const keys = new ConfigKeys(json);
    const c = readDecoderConfig(keys, { maxPositionEmbeddings: 32_768, headDim: 128, ...qwenWindows(keys) });
    const own = {
      experts: keys.size("num_experts", keys.size("num_local_experts", 128)),
      chosen: keys.size("num_experts_per_tok", 8),
      intermediateSize: keys.size("moe_intermediate_size", 768),
      isNormalized: keys.flag("norm_topk_prob", false),
      activation: keys.text("hidden_act", "silu"),
    };
    checkChosen(own);
    const dense = denseLayers(keys, c);
    const mlp = (): Experts => new Experts(c.hiddenSize, options, own, GatedMlp);
    return preNormModel(c, options, (i) => {
      return new PreNormLayer(c, i, options, qwen3Layer(keys, c, options), dense(i) ? undefined : mlp());
    });
  },
  embedding,
};

/** Which layers have an MLP of their own instead of experts. */
function denseLayers(keys: ConfigKeys, c: DecoderConfig): (layer: number) => boolean {
  const step = keys.size("decoder_sparse_step", 1);
  const listed = keys.json.mlp_only_layers;
  const only = new Set(Array.isArray(listed) ? listed.filter((i) => Number.isInteger(i) && i < c.numHiddenLayers) : []);
  return (layer) => only.has(layer) || (layer + 1) % step !== 0;
}

function checkChosen({ experts, chosen }: ExpertsOptions): void {
  if (chosen <= experts) return;
  const rule = `config.json: num_experts_per_tok must be at most the number of experts (${experts})`;
  throw new BnbError("ERR_BNB_FORMAT", `${rule}, got ${chosen}`);
}
