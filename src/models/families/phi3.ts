// Phi-3 and Phi-4 (Abdin et al., 2024): Llama's layers with queries, keys and values in one matrix, the MLP's two inputs in
// another, and heads that may turn in part.
import type { UnaryModule } from "../../nn/index.js";
import { Linear, linearResidual, Module, RMSNorm } from "../../nn/index.js";
import { mul, reshape, slice, swiglu } from "../../ops/index.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Family } from "../load.js";
import { activation } from "../parts/activation.js";
import type { DecoderConfig } from "../parts/config-keys.js";
import { ConfigKeys, readDecoderConfig } from "../parts/config-keys.js";
import { DecoderForCausalLM, DecoderModel } from "../parts/decoder.js";
import type { ModelOptions } from "../parts/model-options.js";
import { place } from "../parts/model-options.js";
import { RotaryCache } from "../parts/rotary-cache.js";
import type { Pass, Rotary } from "../pass.js";

class Phi3Attention extends Module {
  qkvProj: UnaryModule;
  oProj: UnaryModule;
  readonly #c: DecoderConfig;
  readonly #index: number;

  constructor(c: DecoderConfig, index: number, options: ModelOptions) {
    super();
    const queries = c.numAttentionHeads * c.headDim;
    const all = queries + 2 * c.numKeyValueHeads * c.headDim;
    this.qkvProj = new Linear(c.hiddenSize, all, { bias: false, ...options });
    this.oProj = new Linear(queries, c.hiddenSize, { bias: false, ...options });
    this.#c = c;
    this.#index = index;
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary, residual: Tensor): Tensor {
    const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim, windows } = this.#c;
    const rows = x.shape.slice(0, -1);
    const all = reshape(this.qkvProj.forward(x), [...rows, heads + 2 * kvHeads, headDim]);
    const part = (from: number, to: number): Tensor => slice(all, rows.length, from, to);
    const [q, k, v] = [part(0, heads), part(heads, heads + kvHeads), part(heads + kvHeads, heads + 2 * kvHeads)];
    const window = windows[this.#index];
    const scores = window === undefined ? {} : { window };
    const mixed = pass.attend(this.#index, q as Tensor, k as Tensor, v as Tensor, rotary, scores);
    return linearResidual(this.oProj, reshape(mixed, [...rows, -1]), residual);
  }
}

class Phi3Mlp extends Module {
  gateUpProj: UnaryModule;
  downProj: UnaryModule;
  readonly #size: number;
  readonly #activation: string;

  constructor(c: DecoderConfig, options: ModelOptions, name: string) {
    super();
    this.gateUpProj = new Linear(c.hiddenSize, 2 * c.intermediateSize, { bias: false, ...options });
    this.downProj = new Linear(c.intermediateSize, c.hiddenSize, { bias: false, ...options });
    this.#size = c.intermediateSize;
    this.#activation = name;
  }

  forward(x: Tensor, residual: Tensor): Tensor {
    const both = this.gateUpProj.forward(x);
    const [gate, up] = [slice(both, -1, 0, this.#size), slice(both, -1, this.#size, 2 * this.#size)];
    const y = this.#activation === "silu" ? swiglu(gate, up) : mul(activation(this.#activation)(gate), up);
    return linearResidual(this.downProj, y, residual);
  }
}

/** `h = x + attention(norm(x))`, then `h + mlp(norm(h))`. */
class Phi3Layer extends Module {
  selfAttn: Phi3Attention;
  mlp: Phi3Mlp;
  inputLayernorm: RMSNorm;
  postAttentionLayernorm: RMSNorm;

  constructor(c: DecoderConfig, index: number, options: ModelOptions, name: string) {
    super();
    this.selfAttn = new Phi3Attention(c, index, options);
    this.mlp = new Phi3Mlp(c, options, name);
    this.inputLayernorm = new RMSNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
    this.postAttentionLayernorm = new RMSNorm(c.hiddenSize, { eps: c.normEps, ...place(options) });
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor {
    const h = this.selfAttn.forward(this.inputLayernorm.forward(x), pass, rotary, x);
    return this.mlp.forward(this.postAttentionLayernorm.forward(h), h);
  }
}

export const phi3: Family<DecoderForCausalLM> = {
  create(json: Readonly<Record<string, unknown>>, options) {
    const keys = new ConfigKeys(json);
    const c = readDecoderConfig(keys, { normEps: 1e-5, maxPositionEmbeddings: 4096, window: () => true });
    const name = keys.text("hidden_act", "silu");
    const nested = (json.rope_parameters ?? {}) as Readonly<Record<string, unknown>>;
    const share = new ConfigKeys({ ...nested, ...json }).number("partial_rotary_factor", 1);
    const rotary = new RotaryCache(Math.floor(c.headDim * share), c.rope, c.maxPositionEmbeddings);
    const parts = {
      layer: (i: number) => new Phi3Layer(c, i, options, name),
      norm: new RMSNorm(c.hiddenSize, { eps: c.normEps, ...place(options) }),
      rotaryOf: () => rotary,
    };
    return new DecoderForCausalLM(c, options, new DecoderModel(c, options, parts));
  },
  embedding: "model.embed_tokens.weight",
};
