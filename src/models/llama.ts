// Llama: a new model made in code, and what the family of that name in families/ makes of a checkpoint.
import { RMSNorm } from "../nn/index.js";
import { initChecks } from "../nn/layer-options.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { PreNormLayer } from "./families/pre-norm.js";
import type { LlamaConfigOptions } from "./llama-config.js";
import { LlamaConfig } from "./llama-config.js";
import { DecoderForCausalLM, DecoderModel, drawWeights } from "./parts/decoder.js";
import type { ModelOptions } from "./parts/model-options.js";
import { place } from "./parts/model-options.js";

const modelOptions = optionTable<ModelOptions>(initChecks);

/**
 * A Llama language model (Touvron et al., 2023): ids [batch, t] int32 to logits [batch, t, vocab]. Field names become
 * Hugging Face's state-dict keys, so its checkpoints load unchanged.
 *
 * New weights are normal with `initializerRange`; norms are one. With `tieWordEmbeddings` there is no `lmHead`.
 *
 * @example
 * const model = new LlamaForCausalLM({ vocabSize: 256, hiddenSize: 128, intermediateSize: 384,
 *   numHiddenLayers: 4, numAttentionHeads: 4, numKeyValueHeads: 2 });
 * for await (const byte of generate(model, [72, 105], { maxNewTokens: 20 })) console.log(byte);
 */
export class LlamaForCausalLM extends DecoderForCausalLM<LlamaConfig, PreNormLayer> {
  constructor(config: LlamaConfig | LlamaConfigOptions, options: ModelOptions = {}) {
    const c = config instanceof LlamaConfig ? config : new LlamaConfig(config);
    checkOptions("LlamaForCausalLM", options, modelOptions);
    const own = { bias: c.attentionBias, mlpBias: c.mlpBias, activation: c.hiddenAct };
    const layer = (i: number): PreNormLayer => new PreNormLayer(c, i, options, own);
    const norm = new RMSNorm(c.hiddenSize, { eps: c.rmsNormEps, ...place(options) });
    super(c, options, new DecoderModel(c, options, { layer, norm }));
    drawWeights(this, c.initializerRange, options);
  }
}
