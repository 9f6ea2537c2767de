// model.generate(prompt, options) is generate(model, prompt, options): models know nothing of what drives them.
import { CausalLM } from "../models/causal-lm.js";
import type { GenerateOptions } from "./generate.js";
import { generate } from "./generate.js";
import type { Prompt, TextPrompt } from "./prompt.js";

declare module "../models/causal-lm.js" {
  interface CausalLM {
    /** See `generate`. */
    generate(prompt: TextPrompt, options?: GenerateOptions): AsyncGenerator<string, void, undefined>;
    generate(prompt: Prompt, options?: GenerateOptions): AsyncGenerator<number, void, undefined>;
  }
}

CausalLM.prototype.generate = function (this: CausalLM, prompt: TextPrompt & Prompt, options?: GenerateOptions) {
  return generate(this, prompt, options);
} as CausalLM["generate"];
