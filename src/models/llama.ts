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
import { attention, copyInto, linear, reshape, rope, ropeAppend, slice } from "../ops/index.js";
import { anInstance, anInteger, checkArgument, checkTensor, orNull } from "../tensor/checks.js";
import type { Device } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { isUninitialized } from "../tensor/placeholder.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { GenerateOptions, Prompt } from "./generate.js";
import { generate } from "./generate.js";
import { KvCache } from "./kv-cache.js";
import type { LlamaConfigOptions } from "./llama-config.js";
import { LlamaConfig } from "./llama-config.js";
import { RotaryTables } from "./rotary.js";

/** Options of `LlamaForCausalLM.forward`. */
export interface LlamaForwardOptions {
  /** What `ids` continue, and are added to. */
  cache?: KvCache | null;
  /** How many positions, the last ones, get logits; 0 (the default) is all. */
  logitsToKeep?: number;
}
const forwardOptions = optionTable<LlamaForwardOptions>({
  cache: orNull(anInstance(() => KvCache, "a KvCache")),
  logitsToKeep: anInteger(0),
});
const modelOptions = optionTable<LlamaOptions>(initChecks);

const aConfig = anInstance(() => LlamaConfig, "a LlamaConfig");
function checkConfig(op: string, config: LlamaConfig): void {
  checkArgument(op, "config", config, aConfig);
}

function checkIds(op: string, ids: Tensor): void {
  checkTensor(op, "ids", ids);
  if (ids.ndim === 2) return;
  const advice = ids.ndim === 1 ? `; write reshape(ids, [1, ${ids.size}])` : "";
  throw new BnbError("ERR_BNB_SHAPE", `${op}: ids must be [batch, length], got [${ids.shape.join(", ")}]${advice}`);
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

  forward(x: Tensor, rotary: RotaryTables, cache: KvCache | null, residual: Tensor): Tensor {
    const [batch, length] = x.shape as [number, number, number];
    const [q, k, v] = linearEach([this.qProj, this.kProj, this.vProj], x).map((y) =>
      reshape(y, [batch, length, -1, this.#headDim]),
    ) as [Tensor, Tensor, Tensor];
    const mixed = cache ? this.#attendPast(q, k, v, rotary, cache) : this.#attend(q, k, v, rotary);
    return linearResidual(this.oProj, reshape(mixed, [batch, length, -1]), residual);
  }

  #attend(q: Tensor, k: Tensor, v: Tensor, { cos, sin }: RotaryTables): Tensor {
    return attention(rope(q, cos, sin), rope(k, cos, sin), v, { causal: true });
  }

  #attendPast(q: Tensor, k: Tensor, v: Tensor, { cos, sin }: RotaryTables, cache: KvCache): Tensor {
    const { keys, values, length, position } = cache.extend(this.#layer, k.shape[1] as number);
    const turned = noGrad(() => ropeAppend(q, k, v, cos, sin, keys, values, cache.position));
    return attention(turned, keys, values, { causal: true, length, ...(position && { position }) });
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

  forward(x: Tensor, rotary: RotaryTables, cache: KvCache | null): Tensor {
    const h = this.selfAttn.forward(this.inputLayernorm.forward(x), rotary, cache, x);
    return this.mlp.forward(this.postAttentionLayernorm.forward(h), h);
  }
}

/** Embedding, blocks and the final norm: ids [batch, t] to hidden states [batch, t, hidden]. */
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

  forward(ids: Tensor, cache: KvCache | null = null): Tensor {
    checkIds("LlamaModel", ids);
    let h = this.embedTokens.forward(ids);
    const rotary = this.#rotaryTables(ids.device, (cache?.length ?? 0) + (ids.shape[1] as number));
    for (const layer of this.layers) h = layer.forward(h, rotary, cache);
    cache?.advance(ids.shape[1] as number);
    return this.norm.forward(h);
  }

  override dispose(): void {
    this.#rotary?.dispose();
    this.#rotary = null;
    super.dispose();
  }

  /** For a sequence of `length`. Made at the first use on a device, so that moving the model takes them along. */
  #rotaryTables(device: Device, length: number): RotaryTables {
    const { headDim, maxPositionEmbeddings, rope } = this.#config;
    const maxLength = RotaryTables.lengthFor(rope, maxPositionEmbeddings, length);
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
 * for await (const byte of model.generate([72, 105], { maxNewTokens: 20 })) console.log(byte);
 */
export class LlamaForCausalLM extends Module {
  model: LlamaModel;
  lmHead: UnaryModule | null;
  readonly config: LlamaConfig;

  constructor(config: LlamaConfig | LlamaConfigOptions, options: LlamaOptions = {}) {
    super();
    checkOptions("LlamaForCausalLM", options, modelOptions);
    this.config = config instanceof LlamaConfig ? config : new LlamaConfig(config);
    const { hiddenSize, vocabSize, tieWordEmbeddings, initializerRange } = this.config;
    this.model = new LlamaModel(this.config, options);
    this.lmHead = tieWordEmbeddings ? null : new Linear(hiddenSize, vocabSize, { bias: false, ...options });
    if (!isUninitialized()) initialize(this, initializerRange, options);
  }

  get device(): Device {
    return this.model.norm.weight.device;
  }

  /** Logits of every position, or of the last `logitsToKeep`; with a cache, `ids` continue what it holds. */
  forward(ids: Tensor, options: LlamaForwardOptions = {}): Tensor {
    checkIds("LlamaForCausalLM", ids);
    checkOptions("LlamaForCausalLM.forward", options, forwardOptions);
    const { cache = null, logitsToKeep = 0 } = options;
    const length = ids.shape[1] as number;
    const h = this.model.forward(ids, cache);
    const wanted = logitsToKeep > 0 && logitsToKeep < length ? slice(h, 1, length - logitsToKeep, length) : h;
    return this.lmHead ? this.lmHead.forward(wanted) : linear(wanted, this.model.embedTokens.weight, null);
  }

  createCache(batch: number, maxLength: number): KvCache {
    const { numHiddenLayers, numKeyValueHeads, headDim } = this.config;
    const { dtype, device } = this.model.norm.weight;
    return new KvCache({
      layers: numHiddenLayers,
      batch,
      maxLength,
      kvHeads: numKeyValueHeads,
      headDim,
      dtype,
      device,
    });
  }

  /** See `generate`. */
  generate(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<number> {
    return generate(this, prompt, options);
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
