// Saves a model that was made here beside the tokenizer that it has, all files at once.
import { join } from "node:path";
import { replaceFiles } from "../hub/replace-files.js";
import type { CausalLM, SavePretrainedOptions } from "../models/index.js";
import { stagePretrained } from "../models/save.js";
import type { NewTokenizer } from "./new-tokenizer.js";

/** As savePretrained, with the files of the tokenizer. */
export async function saveNewModel(
  model: CausalLM,
  out: string,
  tokenizer: NewTokenizer,
  options: SavePretrainedOptions = {},
): Promise<void> {
  await replaceFiles(async (files) => {
    await stagePretrained(files, model, out, options);
    for (const [name, text] of Object.entries(tokenizer.files)) {
      await files.write(join(out, name), (file) => file.writeFile(text));
    }
  });
}
