// `bnb merge`: a model with an adapter in its weights, for whatever knows nothing of adapters.
import { dequantizeModel, savePretrained } from "../../models/index.js";
import type { MergeLoss } from "../../peft/index.js";
import { PeftModel } from "../../peft/index.js";
import { command, number } from "../command.js";
import { loadModel, loadOptions, savingProgress } from "../load-model.js";
import { modelBytes } from "../measure.js";
import { checkNewFolder, forceOption } from "../new-folder.js";
import { bytes, count } from "../terminal.js";

/** `bnb merge` as it is called. */
export const merge = command({
  words: ["model", "adapter", "out"],
  about: `Adds the adapter of a folder, as Python's peft saves it, to the weights of its model, and saves the result into a new
folder. Quantized layers are quantized again and lose something by that, which is shown; --dequantize
makes them floats first.`,
  options: {
    dequantize: { type: "boolean", help: "save float weights, in which nothing of the adapter is lost" },
    ...loadOptions,
    "max-shard-size": { type: "string", value: "N", default: "5e9", help: "bytes of a file" },
    force: forceOption,
  },
  async run(call) {
    const { values, words, terminal, signal } = call;
    const [name = "", adapter = "", out = ""] = words;
    const maxShardSize = number("--max-shard-size", values["max-shard-size"], 1);
    await checkNewFolder(out, { mayHold: values.force, inputs: { "the model": name, "the adapter": adapter } });
    const model = await loadModel(name, call);
    try {
      if (values.dequantize) dequantizeModel(model);
      const peft = await PeftModel.fromPretrained(model, adapter, { signal });
      const layers = peft.layers.size;
      const losses: MergeLoss[] = [];
      peft.mergeAndUnload({ onMerged: (loss) => losses.push(loss) });
      await savePretrained(model, out, { maxShardSize, signal, onProgress: savingProgress(terminal) });
      const lost =
        losses.length === 0
          ? ""
          : `, quantized again with a relative error of ${percent(mean(losses))} (largest ${percent(largest(losses))})`;
      const size = modelBytes(model);
      terminal.line(`${out}: the adapter is in ${count(layers)} layers${lost}; ${bytes(size)}`);
      return { json: { out, layers, bytes: size, losses } };
    } finally {
      model.dispose();
    }
  },
});

const mean = (losses: readonly MergeLoss[]): number =>
  losses.reduce((sum, { relative }) => sum + relative, 0) / losses.length;
const largest = (losses: readonly MergeLoss[]): number => Math.max(...losses.map(({ relative }) => relative));
const percent = (x: number): string => `${(100 * x).toFixed(2)} %`;
