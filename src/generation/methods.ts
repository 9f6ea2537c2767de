// model.generate(prompt, options) is generate(model, prompt, options): models know nothing of what drives them.
import { CausalLM } from "../models/causal-lm.js";
import type { Tensor } from "../tensor/tensor.js";
import type { CompleteOptions, Completion } from "./complete.js";
import { complete } from "./complete.js";
import type { PoolOptions } from "./embed.js";
import { embed } from "./embed.js";
import type { GenerateOptions } from "./generate.js";
import { generate } from "./generate.js";
import type { Prompt, TextPrompt } from "./prompt.js";
import type { Score, ScoreOptions } from "./score.js";
import { score } from "./score.js";

declare module "../models/causal-lm.js" {
  interface CausalLM {
    /** See `generate`. */
    generate(prompt: TextPrompt, options?: GenerateOptions): AsyncGenerator<string, void, undefined>;
    generate(prompt: Prompt, options?: GenerateOptions): AsyncGenerator<number, void, undefined>;
    /** See `complete`. */
    complete(prompt: Prompt | TextPrompt, options?: CompleteOptions): Promise<Completion[]>;
    complete(prompts: readonly (Prompt | TextPrompt)[], options?: CompleteOptions): Promise<Completion[][]>;
    /** See `score`. */
    score(text: string | Prompt, options?: ScoreOptions): Promise<Score>;
    /** See `embed`. */
    embed(texts: string | Prompt | readonly (string | Prompt)[], options?: PoolOptions): Promise<Tensor>;
  }
}

CausalLM.prototype.generate = function (this: CausalLM, prompt: TextPrompt & Prompt, options?: GenerateOptions) {
  return generate(this, prompt, options);
} as CausalLM["generate"];

CausalLM.prototype.complete = function (this: CausalLM, prompt: Prompt, options?: CompleteOptions) {
  return complete(this, prompt, options);
} as CausalLM["complete"];

CausalLM.prototype.score = function (text, options) {
  return score(this, text, options);
};

CausalLM.prototype.embed = function (texts, options) {
  return embed(this, texts, options);
};
