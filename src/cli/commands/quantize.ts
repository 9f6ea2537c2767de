// `bnb quantize`: a checkpoint in 4 or 8 bits, as transformers writes it, with what each layer lost.
import type { BitsAndBytesConfigOptions, QuantizationLoss } from "../../hub/index.js";
import { BitsAndBytesConfig } from "../../hub/index.js";
import type { CausalLM } from "../../models/index.js";
import { savePretrained } from "../../models/index.js";
import { BnbError } from "../../tensor/errors.js";
import { withNearest } from "../../tensor/nearest.js";
import { choice, command, number, usageError } from "../command.js";
import { loadModel, loadOptions, savingProgress } from "../load-model.js";
import { modelBytes } from "../measure.js";
import { unmatchedSkips } from "../model-sizes.js";
import { checkNewFolder, forceOption } from "../new-folder.js";
import { readConfig } from "../read-config.js";
import { bytes, count } from "../terminal.js";
import { compareModels } from "../verify.js";

/** `bnb quantize` as it is called. */
export const quantize = command({
  words: ["model", "out"],
  about: `Quantizes the linear layers of a model and saves it into a new folder, which opens without further settings here
and in transformers. Shows the error of the layers: the root of the mean squared difference of their weights, and
that relative to the weights. Layers are quantized one by one, so the model is never in memory as floats.`,
  options: {
    nf4: { type: "boolean", help: "4 bits, for normally distributed weights (the default)" },
    fp4: { type: "boolean", help: "4 bits, floating point" },
    int8: { type: "boolean", help: "8 bits, LLM.int8()" },
    "double-quant": { type: "boolean", help: "4 bits: quantize the scales, too" },
    blocksize: { type: "string", value: "N", help: "4 bits: weights that share a scale (default 64)" },
    "compute-dtype": {
      type: "string",
      value: "NAME",
      help: "4 bits: the type that layers compute in (default float32)",
    },
    threshold: {
      type: "string",
      value: "X",
      help: "8 bits: activations from it on are multiplied as floats (default 6)",
    },
    skip: { type: "string", value: "NAME", multiple: true, help: "a module that stays as it is; may be repeated" },
    ...loadOptions,
    "max-shard-size": { type: "string", value: "N", default: "5e9", help: "bytes of a file" },
    all: { type: "boolean", help: "the error of every layer, not of those of a kind together" },
    verify: { type: "boolean", help: "load the result again and compare it with what was saved" },
    force: forceOption,
  },
  notes: "Without --skip the output embedding stays as it is, and what is tied to it.",
  async run(call) {
    const { values, words, terminal, signal } = call;
    const [name = "", out = ""] = words;
    const quantizationConfig = configOf(values);
    const blocksize =
      values.blocksize === undefined
        ? undefined
        : Number(choice("--blocksize", values.blocksize, ["32", "64", "128", "256", "512", "1024", "2048", "4096"]));
    if (blocksize !== undefined && values.int8) throw usageError("--blocksize is of 4-bit formats: leave it out");
    const maxShardSize = number("--max-shard-size", values["max-shard-size"], 1);
    await checkNewFolder(out, { mayHold: values.force, inputs: { "the model": name } });

    if (values.skip.length > 0) {
      const config = await readConfig(name, { revision: values.revision, signal });
      const { unmatched, names } = unmatchedSkips(config, quantizationConfig);
      const shown = unmatched.map((pattern) => withNearest(pattern, names)).join(", ");
      if (shown !== "") throw usageError(`--skip must name modules of the model, got ${shown}`);
    }
    const losses: QuantizationLoss[] = [];
    const onQuantized = (loss: QuantizationLoss): void => void losses.push(loss);
    const model = await loadModel(name, call, {
      quantizationConfig,
      onQuantized,
      ...(blocksize !== undefined && { blocksize }),
    });
    try {
      if (losses.length === 0) {
        const why = values.skip.length > 0 ? "--skip names all of them" : "all are output embeddings";
        throw new BnbError("ERR_BNB_ARGUMENT", `${name} has no linear layer to quantize: ${why}`);
      }
      await savePretrained(model, out, { maxShardSize, signal, onProgress: savingProgress(terminal) });
      terminal.table(
        ["layer", "format", "shape", "rmse", "relative error", ...(values.all ? [] : ["largest"])],
        (values.all ? losses.map((loss) => [loss]) : kindsOf(losses)).map((kind) => row(kind, values.all)),
        ["left", "left", "left"],
      );
      const worst = losses.reduce((a, b) => (b.relative > a.relative ? b : a));
      const nbytes = modelBytes(model);
      const parameters = losses.reduce((sum, { shape }) => sum + shape.reduce((n, size) => n * size, 1), 0);
      terminal.line();
      const largest = `the largest error ${percent(worst.relative)} (${worst.name})`;
      terminal.line(`${out}: ${count(losses.length)} layers of ${count(parameters)} weights quantized, ${largest}`);
      const isVerified = values.verify ? await verify(model, out, call) : undefined;
      return { json: { out, bytes: nbytes, layers: losses, ...(values.verify && { isVerified }) } };
    } finally {
      model.dispose();
    }
  },
});

interface FormatValues {
  nf4: boolean;
  fp4: boolean;
  int8: boolean;
  "double-quant": boolean;
  "compute-dtype": string | undefined;
  threshold: string | undefined;
  skip: readonly string[];
}

function configOf(values: FormatValues): BitsAndBytesConfig {
  const given = (["nf4", "fp4", "int8"] as const).filter((name) => values[name]);
  if (given.length > 1) throw usageError(`--${given.join(" and --")}: give one of them`);
  const skip: BitsAndBytesConfigOptions = values.skip.length > 0 ? { llmInt8SkipModules: values.skip } : {};
  if (given[0] === "int8") {
    if (values["double-quant"]) throw usageError("--double-quant is of 4-bit formats: leave it out");
    if (values["compute-dtype"] !== undefined) throw usageError("--compute-dtype is of 4-bit formats: leave it out");
    const { threshold } = values;
    const llmInt8Threshold = threshold === undefined ? {} : { llmInt8Threshold: number("--threshold", threshold, 0) };
    return new BitsAndBytesConfig({ loadIn8bit: true, ...llmInt8Threshold, ...skip });
  }
  if (values.threshold !== undefined) throw usageError("--threshold is of --int8: leave it out");
  const type = values["compute-dtype"];
  return new BitsAndBytesConfig({
    loadIn4bit: true,
    bnb4bitQuantType: given[0] ?? "nf4",
    bnb4bitUseDoubleQuant: values["double-quant"],
    ...(type !== undefined && {
      bnb4bitComputeDtype: choice("--compute-dtype", type, ["float32", "float16", "bfloat16"]),
    }),
    ...skip,
  });
}

/** Layers whose names differ in numbers alone. */
function kindsOf(losses: readonly QuantizationLoss[]): QuantizationLoss[][] {
  const kinds = new Map<string, QuantizationLoss[]>();
  for (const loss of losses) {
    const key = `${starred(loss.name)} ${loss.shape.join()}`;
    kinds.set(key, [...(kinds.get(key) ?? []), loss]);
  }
  return [...kinds.values()];
}

const starred = (name: string): string => name.replaceAll(/(?<=^|\.)\d+(?=\.|$)/g, "*");

function row(kind: readonly QuantizationLoss[], isSingle: boolean): string[] {
  const [first] = kind as [QuantizationLoss];
  const mean = (of: (loss: QuantizationLoss) => number): number =>
    kind.reduce((sum, loss) => sum + of(loss), 0) / kind.length;
  return [
    kind.length > 1 ? `${starred(first.name)} (${kind.length})` : first.name,
    first.format,
    first.shape.join(" × "),
    mean(({ rmse }) => rmse).toExponential(2),
    percent(mean(({ relative }) => relative)),
    ...(isSingle ? [] : [percent(Math.max(...kind.map(({ relative }) => relative)))]),
  ];
}

const percent = (share: number): string => `${(100 * share).toFixed(2)} %`;

async function verify(model: CausalLM, out: string, call: Parameters<typeof loadModel>[1]): Promise<true> {
  const again = await loadModel(out, { ...call, values: { ...call.values, revision: undefined } });
  try {
    const { tensors, nbytes } = await compareModels(model, again);
    call.terminal.line(`verified: ${count(tensors)} tensors (${bytes(nbytes)}) and logits are equal to the bit`);
    return true;
  } finally {
    again.dispose();
  }
}
