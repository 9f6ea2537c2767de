// model.generate(prompt, options) is generate(model, prompt, options): models know nothing of what drives them.
import { CausalLM } from "../models/causal-lm.js";
import type { GenerateOptions } from "./generate.js";
import { generate } from "./generate.js";
import type { Prompt } from "./text-options.js";

declare module "../models/causal-lm.js" {
  interface CausalLM {
    /** See `generate`. */
    generate(prompt: Prompt, options?: GenerateOptions): AsyncGenerator<number, void, undefined>;
  }
}

CausalLM.prototype.generate = function (prompt, options) {
  return generate(this, prompt, options);
};
