// The ops, by family.
export * from "./matmul.js";
// The differentiable functions, one line per family.

export { crossEntropy } from "./cross-entropy.js";
export { type EmbeddingOpOptions, embedding, embeddingRenorm } from "./embedding.js";
export { layerNorm } from "./layer-norm.js";
export { rmsNorm } from "./rms-norm.js";
export { rope } from "./rope.js";
export { swiglu } from "./swiglu.js";
