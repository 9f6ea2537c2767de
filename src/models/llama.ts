// The Llama architecture (Touvron et al., 2023): pre-norm blocks of grouped-query attention with rotary positions
// and a SwiGLU MLP. Field names become Hugging Face's state-dict keys, so its checkpoints load unchanged.
import { noGrad } from "../autograd/no-grad.js";
import type { LinearOptions, UnaryModule } from "../nn/index.js";
import {
  Embedding,
  init,
  Linear,
  linearEach,
  linearResidual,
  linearSwiglu,
  Module,
  ModuleList,
  RMSNorm,
} from "../nn/index.js";
import { initChecks } from "../nn/layer-options.js";
import { copyInto, linear, reshape } from "../ops/index.js";
import { anInstance, anObjectWith, checkArgument } from "../tensor/checks.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { isUninitialized } from "../tensor/placeholder.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { CausalLM } from "./causal-lm.js";
import type { LlamaConfigOptions } from "./llama-config.js";
import { LlamaConfig } from "./llama-config.js";
import type { Pass, Rotary } from "./pass.js";
import { RotaryTables } from "./rotary.js";
import type { LayerLayout } from "./step-plan.js";

const modelOptions = optionTable<LlamaOptions>(initChecks);

const aPass = anObjectWith("a Pass", "attend");
const aConfig = anInstance(() => LlamaConfig, "a LlamaConfig");
function checkConfig(op: string, config: LlamaConfig): void {
  checkArgument(op, "config", config, aConfig);
}

/** dtype, device and source of new weights. */
export type LlamaOptions = Pick<LinearOptions, "dtype" | "device" | "generator">;

/** Grouped-query causal self-attention: `residual + oProj(softmax(rope(q) rope(k)^T / sqrt(d)) v)`. */
export class LlamaAttention extends Module {
  qProj: UnaryModule;
  kProj: UnaryModule;
  vProj: UnaryModule;
  oProj: UnaryModule;
  readonly #headDim: number;
  readonly #layer: number;

  constructor(config: LlamaConfig, layer: number, options: LlamaOptions = {}) {
    super();
    checkConfig("LlamaAttention", config);
    checkOptions("LlamaAttention", options, modelOptions);
    const { hiddenSize, numAttentionHeads, numKeyValueHeads, headDim } = config;
    this.#headDim = headDim;
    this.#layer = layer;
    this.qProj = new Linear(hiddenSize, numAttentionHeads * headDim, { bias: false, ...options });
    this.kProj = new Linear(hiddenSize, numKeyValueHeads * headDim, { bias: false, ...options });
    this.vProj = new Linear(hiddenSize, numKeyValueHeads * headDim, { bias: false, ...options });
    this.oProj = new Linear(numAttentionHeads * headDim, hiddenSize, { bias: false, ...options });
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary, residual: Tensor): Tensor {
    const rows = x.shape.slice(0, -1);
    const [q, k, v] = linearEach([this.qProj, this.kProj, this.vProj], x).map((y) =>
      reshape(y, [...rows, -1, this.#headDim]),
    ) as [Tensor, Tensor, Tensor];
    const mixed = pass.attend(this.#layer, q, k, v, rotary);
    return linearResidual(this.oProj, reshape(mixed, [...rows, -1]), residual);
  }
}

/** `residual + downProj(silu(gateProj(x)) * upProj(x))`. */
export class LlamaMLP extends Module {
  gateProj: UnaryModule;
  upProj: UnaryModule;
  downProj: UnaryModule;

  constructor(config: LlamaConfig, options: LlamaOptions = {}) {
    super();
    checkConfig("LlamaMLP", config);
    checkOptions("LlamaMLP", options, modelOptions);
    const { hiddenSize, intermediateSize } = config;
    this.gateProj = new Linear(hiddenSize, intermediateSize, { bias: false, ...options });
    this.upProj = new Linear(hiddenSize, intermediateSize, { bias: false, ...options });
    this.downProj = new Linear(intermediateSize, hiddenSize, { bias: false, ...options });
  }

  forward(x: Tensor, residual: Tensor): Tensor {
    return linearResidual(this.downProj, linearSwiglu(this.gateProj, this.upProj, x), residual);
  }
}

/** One block: `h = x + attention(norm(x))`, then `h + mlp(norm(h))`. */
export class LlamaDecoderLayer extends Module {
  selfAttn: LlamaAttention;
  mlp: LlamaMLP;
  inputLayernorm: RMSNorm;
  postAttentionLayernorm: RMSNorm;

  constructor(config: LlamaConfig, layer: number, options: LlamaOptions = {}) {
    super();
    checkConfig("LlamaDecoderLayer", config);
    checkOptions("LlamaDecoderLayer", options, modelOptions);
    this.selfAttn = new LlamaAttention(config, layer, options);
    this.mlp = new LlamaMLP(config, options);
    this.inputLayernorm = new RMSNorm(config.hiddenSize, { eps: config.rmsNormEps, ...place(options) });
    this.postAttentionLayernorm = new RMSNorm(config.hiddenSize, { eps: config.rmsNormEps, ...place(options) });
  }

  forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor {
    const h = this.selfAttn.forward(this.inputLayernorm.forward(x), pass, rotary, x);
    return this.mlp.forward(this.postAttentionLayernorm.forward(h), h);
  }
}

/** Embedding, blocks and the final norm: the ids of a pass to hidden states [..., hidden]. */
export class LlamaModel extends Module {
  embedTokens: Embedding;
  layers: ModuleList<LlamaDecoderLayer>;
  norm: RMSNorm;
  readonly #config: LlamaConfig;
  #rotary: RotaryTables | null = null;

  constructor(config: LlamaConfig, options: LlamaOptions = {}) {
    super();
    checkConfig("LlamaModel", config);
    checkOptions("LlamaModel", options, modelOptions);
    this.#config = config;
    this.embedTokens = new Embedding(config.vocabSize, config.hiddenSize, options);
    this.layers = new ModuleList(
      Array.from({ length: config.numHiddenLayers }, (_, i) => new LlamaDecoderLayer(config, i, options)),
    );
    this.norm = new RMSNorm(config.hiddenSize, { eps: config.rmsNormEps, ...place(options) });
  }

  forward(pass: Pass): Tensor {
    checkArgument("LlamaModel", "pass", pass, aPass);
    let h = this.embedTokens.forward(pass.ids);
    const rotary = this.#rotaryTables(pass);
    for (const layer of this.layers) h = layer.forward(h, pass, rotary);
    return this.norm.forward(h);
  }

  override dispose(): void {
    this.#rotary?.dispose();
    this.#rotary = null;
    super.dispose();
  }

  /** Made at the first use on a device, so that moving the model takes them along. */
  #rotaryTables({ ids: { device }, longest }: Pass): RotaryTables {
    const { headDim, maxPositionEmbeddings, rope } = this.#config;
    const maxLength = RotaryTables.lengthFor(rope, maxPositionEmbeddings, longest);
    if (this.#rotary?.cos.device !== device || this.#rotary.maxLength !== maxLength) {
      this.#rotary?.dispose();
      this.#rotary = new RotaryTables(headDim, maxLength, rope, device);
    }
    return this.#rotary;
  }
}

/**
 * A Llama language model: ids [batch, t] int32 to logits [batch, t, vocab].
 *
 * New weights are normal with `initializerRange`; norms are one. With `tieWordEmbeddings` there is no `lmHead`.
 *
 * @example
 * const model = new LlamaForCausalLM({ vocabSize: 256, hiddenSize: 128, intermediateSize: 384,
 *   numHiddenLayers: 4, numAttentionHeads: 4, numKeyValueHeads: 2 });
 * for await (const byte of generate(model, [72, 105], { maxNewTokens: 20 })) console.log(byte);
 */
export class LlamaForCausalLM extends CausalLM<LlamaConfig> {
  model: LlamaModel;
  lmHead: UnaryModule | null;

  constructor(config: LlamaConfig | LlamaConfigOptions, options: LlamaOptions = {}) {
    super(config instanceof LlamaConfig ? config : new LlamaConfig(config));
    checkOptions("LlamaForCausalLM", options, modelOptions);
    const { hiddenSize, vocabSize, tieWordEmbeddings, initializerRange } = this.config;
    this.model = new LlamaModel(this.config, options);
    this.lmHead = tieWordEmbeddings ? null : new Linear(hiddenSize, vocabSize, { bias: false, ...options });
    if (!isUninitialized()) initialize(this, initializerRange, options);
  }

  override get device(): Device {
    return this.model.norm.weight.device;
  }

  override get dtype(): DType {
    return this.model.norm.weight.dtype;
  }

  override kvLayout(): LayerLayout[] {
    const { numHiddenLayers, numKeyValueHeads: kvHeads, headDim } = this.config;
    return Array.from({ length: numHiddenLayers }, () => ({ kvHeads, headDim }));
  }

  protected override hidden(pass: Pass): Tensor {
    return this.model.forward(pass);
  }

  protected override head(hidden: Tensor): Tensor {
    return this.lmHead ? this.lmHead.forward(hidden) : linear(hidden, this.model.embedTokens.weight, null);
  }
}

/** Draws every matrix from a normal distribution; vectors are norm weights and stay one. */
function initialize(model: Module, std: number, options: LlamaOptions): void {
  noGrad(() =>
    tidy(() => {
      for (const parameter of model.parameters()) {
        if (parameter.ndim > 1) copyInto(parameter, init.normal(parameter.shape, 0, std, options));
      }
    }),
  );
}

/** The options of a layer that starts with fixed values. */
function place({ dtype, device }: LlamaOptions): Pick<LlamaOptions, "dtype" | "device"> {
  return { ...(dtype && { dtype }), ...(device && { device }) };
}
