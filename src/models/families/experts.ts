// Mixtral (Jiang et al., 2024) and Qwen3-MoE (2025): the MLP of a layer is a choice of experts for each token.
import { BnbError } from "../../tensor/errors.js";
import type { Family } from "../load.js";
import type { DecoderConfig } from "../parts/config-keys.js";
import { ConfigKeys, readDecoderConfig } from "../parts/config-keys.js";
import type { DecoderForCausalLM } from "../parts/decoder.js";
import { GatedMlp } from "../parts/gated-mlp.js";
import type { ExpertsOptions } from "../parts/moe.js";
import { Experts } from "../parts/moe.js";
import { qwen3Layer } from "./llama-like.js";
import { PreNormLayer, preNormModel } from "./pre-norm.js";

/** Mixtral's names of a gated MLP's layers. */
class MixtralExpert extends GatedMlp {
  static override readonly names = { gateProj: "w1", downProj: "w2", upProj: "w3" };
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
    // In all layers where it is switched on, unlike in the dense models.
    const windows = keys.flag("use_sliding_window", false) && { window: () => true };
    const c = readDecoderConfig(keys, { maxPositionEmbeddings: 32_768, headDim: 128, ...windows });
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
