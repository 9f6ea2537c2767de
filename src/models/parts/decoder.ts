// What the decoders of Llama's heirs share: an embedding, layers, a last norm, and a head over the vocabulary.
import { noGrad } from "../../autograd/no-grad.js";
import type { UnaryModule } from "../../nn/index.js";
import { Embedding, init, Linear, Module, ModuleList } from "../../nn/index.js";
import { copyInto } from "../../ops/index.js";
import type { DType } from "../../tensor/dtype.js";
import { isUninitialized } from "../../tensor/placeholder.js";
import { tidy } from "../../tensor/scope.js";
import type { Tensor } from "../../tensor/tensor.js";
import { CausalLM } from "../causal-lm.js";
import type { Pass, Rotary } from "../pass.js";
import type { OutputProjection } from "../quantized-head.js";
import type { LayerLayout } from "../step-plan.js";
import type { DecoderConfig } from "./config-keys.js";
import type { ModelOptions } from "./model-options.js";
import { RotaryCache } from "./rotary-cache.js";
import { throughLayers } from "./through-layers.js";

/** One block of a decoder: hidden states [..., hidden] to hidden states. */
export interface DecoderLayer extends Module {
  forward(x: Tensor, pass: Pass, rotary: Rotary): Tensor;
}

/** What a family adds to its layers. */
export interface DecoderParts<L extends DecoderLayer> {
  layer(index: number): L;
  norm: UnaryModule;
  /** Of the hidden states that the embedding gives, in their dtype. */
  embeddingScale?: (dtype: DType) => number;
  /** Positions of layer i; default those of the config for all. */
  rotaryOf?: (layer: number) => RotaryCache;
}

/** Embedding, blocks and the final norm: the ids of a pass to hidden states [..., hidden]. */
export class DecoderModel<L extends DecoderLayer = DecoderLayer> extends Module {
  embedTokens: Embedding;
  layers: ModuleList<L>;
  norm: UnaryModule;
  readonly #scale: (x: Tensor) => Tensor;
  readonly #rotaries: readonly RotaryCache[];

  constructor(c: DecoderConfig, options: ModelOptions, parts: DecoderParts<L>) {
    super();
    this.embedTokens = new Embedding(c.vocabSize, c.hiddenSize, options);
    this.layers = new ModuleList(Array.from({ length: c.numHiddenLayers }, (_, i) => parts.layer(i)));
    this.norm = parts.norm;
    const { embeddingScale } = parts;
    this.#scale = embeddingScale === undefined ? (x) => x : (x) => x.mul(embeddingScale(x.dtype));
    const shared = new RotaryCache(c.headDim, c.rope, c.maxPositionEmbeddings);
    this.#rotaries = Array.from({ length: c.numHiddenLayers }, (_, i) => parts.rotaryOf?.(i) ?? shared);
  }

  forward(pass: Pass): Tensor {
    const rotaries = this.#rotaries.map((rotary) => rotary.for(pass));
    const tokens = this.#scale(this.embedTokens.forward(pass.ids));
    const h = throughLayers(tokens, this.layers, pass, (layer, x, i) => layer.forward(x, pass, rotaries[i] as Rotary));
    return this.norm.forward(h);
  }

  override dispose(): void {
    for (const rotary of this.#rotaries) rotary.dispose();
    super.dispose();
  }
}

/** A decoder with a head over the vocabulary, which may be the embedding's weight. */
export class DecoderForCausalLM<
  C extends DecoderConfig = DecoderConfig,
  L extends DecoderLayer = DecoderLayer,
> extends CausalLM<C> {
  model: DecoderModel<L>;
  lmHead: UnaryModule | null;
  readonly #logits: (x: Tensor) => Tensor;

  /** `logits` is what becomes of the head's output. */
  constructor(config: C, options: ModelOptions, model: DecoderModel<L>, logits: (x: Tensor) => Tensor = (x) => x) {
    super(config);
    this.model = model;
    const { hiddenSize, vocabSize, tieWordEmbeddings } = config;
    this.lmHead = tieWordEmbeddings ? null : new Linear(hiddenSize, vocabSize, { bias: false, ...options });
    this.#logits = logits;
  }

  protected override inputEmbedding(): Embedding {
    return this.model.embedTokens;
  }

  override kvLayout(): LayerLayout[] {
    const { numKeyValueHeads: kvHeads, headDim, windows } = this.config;
    return windows.map((window) => ({ kvHeads, headDim, ...(window !== undefined && { window }) }));
  }

  protected override hidden(pass: Pass): Tensor {
    return this.model.forward(pass);
  }

  protected override outputProjection(): OutputProjection {
    return this.lmHead ?? this.model.embedTokens.weight;
  }

  protected override logits(projected: Tensor): Tensor {
    return this.#logits(projected);
  }
}

/** Draws every matrix of a new model from a normal distribution; vectors, norms and biases, stay as they are. */
export function drawWeights(model: Module, std: number, options: ModelOptions): void {
  if (isUninitialized()) return;
  noGrad(() =>
    tidy(() => {
      for (const parameter of model.parameters()) {
        if (parameter.ndim > 1) copyInto(parameter, init.normal(parameter.shape, 0, std, options));
      }
    }),
  );
}
