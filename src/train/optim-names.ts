// The names that transformers gives to optimizers of this package, and what each stands for.

/** Optimizers that have a name. */
export type OptimFamily = "adamw" | "lion" | "ademamix" | "rmsprop";

/** Family, bits of the states, and whether they are paged. */
export const optimTable = {
  adamw_torch: ["adamw", 32, false],
  adamw_torch_fused: ["adamw", 32, false],
  adamw_bnb_8bit: ["adamw", 8, false],
  adamw_8bit: ["adamw", 8, false],
  paged_adamw_32bit: ["adamw", 32, true],
  paged_adamw_8bit: ["adamw", 8, true],
  lion_32bit: ["lion", 32, false],
  lion_8bit: ["lion", 8, false],
  paged_lion_32bit: ["lion", 32, true],
  paged_lion_8bit: ["lion", 8, true],
  ademamix: ["ademamix", 32, false],
  ademamix_8bit: ["ademamix", 8, false],
  paged_ademamix_32bit: ["ademamix", 32, true],
  paged_ademamix_8bit: ["ademamix", 8, true],
  rmsprop_bnb: ["rmsprop", 32, false],
  rmsprop_bnb_32bit: ["rmsprop", 32, false],
  rmsprop_bnb_8bit: ["rmsprop", 8, false],
} as const satisfies Record<string, readonly [OptimFamily, 8 | 32, boolean]>;

/** The names of optimizers, as transformers has them. */
export type OptimName = keyof typeof optimTable;
/** The optimizers that `TrainingArguments.optim` names, as transformers and bitsandbytes name them. */
export const optimNames = Object.keys(optimTable) as OptimName[];
