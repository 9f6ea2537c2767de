// The trained model as a checkpoint on disk, and back: what is loaded in 4 bits must be what was quantized in memory.
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { BitsAndBytesConfig } from "../../hub/index.js";
import type { LlamaForCausalLM } from "../../models/index.js";
import { AutoModelForCausalLM } from "../../models/index.js";
import { newTokenizer } from "../new-tokenizer.js";
import { saveNewModel } from "../save-new-model.js";
import { logits } from "../verify.js";
import { formats, inFormat } from "./formats.js";
import type { CheckpointResult } from "./results.js";

/** Saves `trained` into `folder`, loads it in NF4, and compares the logits of a text with those of an NF4 copy. */
export async function roundTrip(trained: LlamaForCausalLM, folder: string): Promise<CheckpointResult> {
  await saveNewModel(trained, folder, newTokenizer({ isPlain: true }));
  const quantizationConfig = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" });
  const loaded = await AutoModelForCausalLM.fromPretrained(folder, { quantizationConfig, deviceMap: trained.device });
  const inMemory = inFormat(trained, formats.find(({ name }) => name === "NF4") as (typeof formats)[number]);
  const text = [...Buffer.from("The same weights, on disk and in memory.")];
  const outputs = [logits(loaded, text), logits(inMemory, text)] as const;
  try {
    const [a, b] = await Promise.all([outputs[0].data(), outputs[1].data()]);
    // NaN where one of them is none, so that the claim fails.
    let largestDifference = 0;
    a.forEach((value, i) => {
      const difference = Math.abs(Number(value) - Number(b[i]));
      if (!(difference <= largestDifference)) largestDifference = difference;
    });
    const files = readdirSync(folder).map((name) => statSync(join(folder, name)).size);
    return { folder, bytes: files.reduce((sum, n) => sum + n, 0), logits: a.length, largestDifference };
  } finally {
    for (const model of [loaded, inMemory, ...outputs]) model.dispose();
  }
}
