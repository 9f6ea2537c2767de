// `bnb estimate`: the memory that a model needs, by its config.json alone, and the smallest card that has it.
import { BitsAndBytesConfig } from "../../hub/index.js";
import { choice, command, revisionOption, usageError, wholeNumber } from "../command.js";
import type { ModelSize } from "../model-sizes.js";
import { kvBytes, modelSize, stepBytes } from "../model-sizes.js";
import { readConfig } from "../read-config.js";
import { bytes, count } from "../terminal.js";
import { trainingMemory } from "../training-memory.js";

/** GiB of memory, and cards that have as much. */
const cards: readonly (readonly [gib: number, names: string])[] = [
  [8, "RTX 4060"],
  [12, "RTX 4070"],
  [16, "RTX 4080, T4"],
  [24, "RTX 4090, A10, L4"],
  [32, "RTX 5090, V100"],
  [48, "L40S, A6000"],
  [80, "A100, H100"],
  [141, "H200"],
];
/** What the driver and kernels take themselves. */
const reserved = 2 ** 30;

const formats: readonly { name: string; bits: 4 | 8 | null; config: BitsAndBytesConfig | null }[] = [
  { name: "as it is", bits: null, config: null },
  { name: "int8", bits: 8, config: new BitsAndBytesConfig({ loadIn8bit: true }) },
  { name: "nf4", bits: 4, config: new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" }) },
  {
    name: "nf4, double quant",
    bits: 4,
    config: new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4", bnb4bitUseDoubleQuant: true }),
  },
];

/** `bnb estimate` as it is called. */
export const estimate = command({
  words: ["model"],
  about: `Says what memory a model needs in each format: weights, keys and values, activations, and with --train adapters,
their gradients and the state of AdamW8bit. Reads config.json alone, which for an id of the hub is all it downloads.
Weights and keys and values are exact; activations are what they are about. A GiB of a card is left to its driver.`,
  options: {
    "4bit": { type: "boolean", help: "4-bit formats only" },
    "8bit": { type: "boolean", help: "int8 only" },
    train: { type: "boolean", help: "training of adapters over the frozen model, as bnb finetune does it" },
    "keep-activations": { type: "boolean", help: "of --train: without gradient checkpointing" },
    rank: { type: "string", value: "N", help: "of --train: of the adapters (default 16)" },
    context: {
      type: "string",
      value: "N",
      help: "tokens of a text (default 4096, or the longest that the model takes)",
    },
    batch: { type: "string", value: "N", default: "1", help: "texts at a time" },
    dtype: { type: "string", value: "NAME", help: "float32, float16 or bfloat16 (default: the config's)" },
    kv: { type: "string", value: "NAME", help: "float32, float16, bfloat16 or int8 (default: as activations)" },
    revision: revisionOption,
  },
  async run({ values, words, terminal, signal }) {
    if (values["4bit"] && values["8bit"]) throw usageError("--4bit and --8bit: give one of them");
    if (values.train && values.kv !== undefined) throw usageError("--kv is of generating: leave it out with --train");
    for (const option of ["rank", "keep-activations"] as const) {
      if (!values.train && (values[option] ?? false) !== false)
        throw usageError(`--${option} is of --train: leave it out`);
    }
    const config = await readConfig(words[0] as string, { revision: values.revision, signal });
    const dtype =
      values.dtype === undefined ? undefined : choice("--dtype", values.dtype, ["float32", "float16", "bfloat16"]);
    const batch = wholeNumber("--batch", values.batch);
    const rank = values.train ? wholeNumber("--rank", values.rank ?? "16") : null;
    const kv =
      values.kv === undefined ? null : choice("--kv", values.kv, ["float32", "float16", "bfloat16", "int8"] as const);

    const wanted = formatsOf(config, values["4bit"], values["8bit"]);
    const sizes = wanted.map(({ config: how }) => modelSize(config, how, dtype));
    const [first] = sizes as [ModelSize];
    const longest = first.maxPositions;
    const context = values.context === undefined ? Math.min(4096, longest) : wholeNumber("--context", values.context);
    if (context > longest) throw usageError(`--context must be at most ${longest}, as the model says, got ${context}`);

    const rows = wanted.map(({ name }, i) => {
      const size = sizes[i] as ModelSize;
      return {
        format: name === "as it is" ? size.dtype : name,
        ...needs(size, { context, batch, kv, rank, recomputes: !values["keep-activations"] }),
      };
    });
    const use = rank === null ? "generating" : `training adapters of rank ${rank}`;
    const title = `${config["model_type"]}, ${count(first.parameters)} parameters; ${use}, ${batch} × ${count(context)} tokens`;
    terminal.line(title, "bold");
    terminal.line();
    const extra = rank === null ? ["keys, values"] : ["adapters", "optimizer"];
    terminal.table(
      ["weights in", "bits a weight", "weights", ...extra, "activations", "together", "fits on"],
      rows.map((row) => [
        row.format,
        row.bitsPerWeight.toFixed(2),
        bytes(row.weights),
        ...(rank === null ? [bytes(row.kv)] : [bytes(row.adapters + row.gradients), bytes(row.optimizer)]),
        `~${bytes(row.activations)}`,
        bytes(row.total),
        row.card,
      ]),
      ["left", "right", "right", "right", "right", "right", rank === null ? "left" : "right", "left"],
    );
    const { parameters } = first;
    return { json: { modelType: config["model_type"], parameters, context, batch, rank, formats: rows } };
  },
});

interface Use {
  context: number;
  batch: number;
  kv: string | null;
  rank: number | null;
  recomputes: boolean;
}

function needs(size: ModelSize, { context, batch, kv, rank, recomputes }: Use) {
  const tokens = context * batch;
  const training = rank === null ? null : trainingMemory(size, { tokens, rank, recomputes });
  const parts = {
    weights: size.weightBytes,
    kv: training ? 0 : kvBytes(size.layout, context, batch, kv ?? size.dtype),
    // A prompt is computed in steps of at most 4096 tokens.
    activations: training?.activations ?? stepBytes(size, Math.min(tokens, 4096), batch),
    adapters: training?.adapters ?? 0,
    gradients: training?.gradients ?? 0,
    optimizer: training?.optimizer ?? 0,
  };
  const total = Object.values(parts).reduce((sum, n) => sum + n, 0);
  const card = cards.find(([gib]) => total + reserved <= gib * 2 ** 30);
  return {
    ...parts,
    total,
    bitsPerWeight: (8 * size.weightBytes) / size.parameters,
    card: card ? `${card[0]} GiB (${card[1]})` : "several cards",
  };
}

/** Of a checkpoint that is quantized, how it is, and as floats; else the formats that it can be loaded in. */
function formatsOf(config: Readonly<Record<string, unknown>>, is4bit: boolean, is8bit: boolean) {
  const json = (config["quantization_config"] ?? null) as Record<string, unknown> | null;
  if (json) {
    const own = BitsAndBytesConfig.fromJSON(json);
    const name = own.loadIn8bit
      ? "int8"
      : `${own.bnb4bitQuantType}${own.bnb4bitUseDoubleQuant ? ", double quant" : ""}`;
    if ((is4bit && !own.loadIn4bit) || (is8bit && !own.loadIn8bit)) {
      throw usageError(`--${is4bit ? "4" : "8"}bit: the model is quantized already, as ${name}`);
    }
    const whole = { name: "as it is", bits: null, config: null };
    return [{ name, bits: null, config: own }, ...(is4bit || is8bit ? [] : [whole])];
  }
  if (!is4bit && !is8bit) return formats;
  return formats.filter(({ bits }) => (is4bit && bits === 4) || (is8bit && bits === 8));
}
