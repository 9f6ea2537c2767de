// `bnb make-model`: a small random model as a real checkpoint, with a tokenizer of bytes and a chat template, so that
// everything can be tried without a network.
import { AutoModelForCausalLM } from "../../models/index.js";
import { Generator } from "../../ops/index.js";
import { choice, command, deviceOption, wholeNumber } from "../command.js";
import { families, newConfig } from "../new-config.js";
import { checkNewFolder, forceOption } from "../new-folder.js";
import { newTokenizer } from "../new-tokenizer.js";
import { saveNewModel } from "../save-new-model.js";
import { bytes, count } from "../terminal.js";

/** `bnb make-model` as it is called. */
export const makeModel = command({
  words: ["out"],
  about: `Writes a model with random weights into a new folder, as transformers would: model.safetensors, config.json,
generation_config.json, and a tokenizer whose tokens are bytes, with a chat template. What it says makes no sense,
but everything that works with a model of the hub works with it.`,
  options: {
    family: { type: "string", value: "NAME", default: "llama", help: "its model_type; the notes have the list" },
    "hidden-size": { type: "string", value: "N", default: "128", help: "width of the model" },
    "intermediate-size": { type: "string", value: "N", default: "256", help: "width of its MLPs" },
    layers: { type: "string", value: "N", default: "2", help: "decoder layers" },
    heads: { type: "string", value: "N", default: "4", help: "attention heads" },
    "kv-heads": {
      type: "string",
      value: "N",
      default: "2",
      help: "heads of keys and values, where the family has them",
    },
    positions: { type: "string", value: "N", default: "1024", help: "tokens of the longest text" },
    dtype: { type: "string", value: "NAME", default: "bfloat16", help: "float32, float16 or bfloat16" },
    seed: { type: "string", value: "N", default: "1", help: "the same seed gives the same bytes" },
    force: forceOption,
    device: deviceOption,
  },
  notes: `Families: ${families.slice(0, 9).join(", ")},
${families.slice(9).join(", ")}.`,
  async run({ values, words, terminal, signal }) {
    const [out = ""] = words;
    const size = (name: "hidden-size" | "intermediate-size" | "layers" | "heads" | "kv-heads" | "positions"): number =>
      wholeNumber(`--${name}`, values[name]);
    const tokenizer = newTokenizer();
    const config = newConfig(choice("--family", values.family, families), {
      hiddenSize: size("hidden-size"),
      intermediateSize: size("intermediate-size"),
      layers: size("layers"),
      heads: size("heads"),
      kvHeads: size("kv-heads"),
      positions: size("positions"),
      dtype: choice("--dtype", values.dtype, ["float32", "float16", "bfloat16"]),
      tokens: tokenizer,
    });
    const seed = wholeNumber("--seed", values.seed, 0);
    await checkNewFolder(out, { mayHold: values.force });
    const model = AutoModelForCausalLM.fromConfig(config, { device: values.device, generator: new Generator(seed) });
    try {
      const onProgress = (done: { bytes: number; totalBytes: number }): void =>
        terminal.progress("Saving", done.bytes, done.totalBytes, bytes(done.bytes));
      await saveNewModel(model, out, tokenizer, { onProgress, signal });
      const parameters = model.parameters().reduce((sum, parameter) => sum + parameter.size, 0);
      terminal.line(`${out}: ${values.family} with ${count(parameters)} random parameters in ${values.dtype}`);
      terminal.line(`Try: bnb inspect ${out}`);
      return { json: { out, config, parameters } };
    } finally {
      model.dispose();
    }
  },
});
