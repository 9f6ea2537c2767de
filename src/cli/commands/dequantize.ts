// `bnb dequantize`: a quantized checkpoint as floats again, for tools that read nothing else.
import { dequantizeModel, savePretrained } from "../../models/index.js";
import type { DType } from "../../tensor/dtype.js";
import { BnbError } from "../../tensor/errors.js";
import { choice, command, deviceOption, number, revisionOption } from "../command.js";
import { loadModel, savingProgress } from "../load-model.js";
import { modelBytes, quantizedLayers } from "../measure.js";
import { checkNewFolder, forceOption } from "../new-folder.js";
import { bytes, count } from "../terminal.js";

/** `bnb dequantize` as it is called. */
export const dequantize = command({
  words: ["model", "out"],
  about: `Saves a model that was quantized to 4 or 8 bits with float weights: those that it computes with. What quantization
lost stays lost. The result opens in tools that know nothing of quantization.`,
  options: {
    dtype: {
      type: "string",
      value: "NAME",
      help: "float32, float16 or bfloat16 (default: what they were before, of int8 the config's)",
    },
    device: deviceOption,
    revision: revisionOption,
    "max-shard-size": { type: "string", value: "N", default: "5e9", help: "bytes of a file" },
    force: forceOption,
  },
  async run(call) {
    const { values, words, terminal, signal } = call;
    const [name = "", out = ""] = words;
    const dtype: DType | undefined =
      values.dtype === undefined ? undefined : choice("--dtype", values.dtype, ["float32", "float16", "bfloat16"]);
    const maxShardSize = number("--max-shard-size", values["max-shard-size"], 1);
    await checkNewFolder(out, { mayHold: values.force, inputs: { "the model": name } });
    const model = await loadModel(name, call);
    try {
      const layers = quantizedLayers(model);
      if (layers === 0) {
        throw new BnbError("ERR_BNB_ARGUMENT", `${name} has no quantized layer: it is a float model already`);
      }
      const before = modelBytes(model);
      dequantizeModel(model, { ...(dtype && { dtype }) });
      const after = modelBytes(model);
      await savePretrained(model, out, { maxShardSize, signal, onProgress: savingProgress(terminal) });
      terminal.line(`${out}: ${count(layers)} layers as floats, ${bytes(before)} became ${bytes(after)}`);
      return { json: { out, layers, bytes: after } };
    } finally {
      model.dispose();
    }
  },
});
