// The model that a command works with: loaded with progress, in the format that its options ask for.
import type { Tokenizer } from "../hub/index.js";
import { BitsAndBytesConfig } from "../hub/index.js";
import type { CausalLM, FromPretrainedOptions, FromPretrainedProgress } from "../models/index.js";
import { AutoModelForCausalLM } from "../models/index.js";
import { PeftModel } from "../peft/index.js";
import { toDevice } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import type { OptionSpec } from "./command.js";
import { choice, deviceOption, revisionOption, usageError } from "./command.js";
import { checkRevision, readConfig } from "./read-config.js";
import type { Terminal } from "./terminal.js";
import { bytes } from "./terminal.js";

/** Options of commands that load a model. */
export const loadOptions = {
  dtype: { type: "string", value: "NAME", help: "float32, float16 or bfloat16 (default: the config's)" },
  device: deviceOption,
  revision: revisionOption,
} as const satisfies Record<string, OptionSpec>;

/** Options of commands that may quantize it on the way. */
export const quantizeOptions = {
  "4bit": { type: "boolean", help: "quantize to NF4 while loading" },
  "8bit": { type: "boolean", help: "quantize to int8 while loading" },
} as const satisfies Record<string, OptionSpec>;

/** For commands that compute with it. */
const loraOption = {
  lora: { type: "string", value: "NAME", help: "an adapter for it, a folder or an id, as Python's peft saves it" },
} as const satisfies Record<string, OptionSpec>;

/** For commands that generate. */
export const headOption = {
  head: {
    type: "string",
    value: "FORMAT",
    default: "float",
    help: "compute logits by a copy of the output projection in int8, nf4 or fp4",
  },
} as const satisfies Record<string, OptionSpec>;

/** For commands that generate, too. */
export const activationsOption = {
  activations: {
    type: "string",
    value: "FORMAT",
    default: "none",
    help: "let the CPU round them to int16 or int8 for 4-bit weights: faster",
  },
} as const satisfies Record<string, OptionSpec>;

/** Options of commands that only compute with it, wherever its parts are. */
export const placementOptions = {
  "device-map": { type: "string", value: "MAP", help: "auto, balanced, sequential, or JSON: places by module" },
  "max-memory": { type: "string", value: "SIZES", help: "what weights may take, such as cuda:0=10GiB,cpu=20GiB" },
  "offload-folder": { type: "string", value: "DIR", help: "where layers wait that find no room in memory" },
} as const satisfies Record<string, OptionSpec>;

/** All of them, for commands that generate with one model. */
export const generatingOptions = {
  ...quantizeOptions,
  ...loraOption,
  ...headOption,
  ...activationsOption,
  ...loadOptions,
  ...placementOptions,
} as const satisfies Record<string, OptionSpec>;

interface LoadValues {
  dtype: string | undefined;
  device: string;
  revision: string | undefined;
  "4bit"?: boolean;
  "8bit"?: boolean;
  lora?: string | undefined;
  head?: string;
  activations?: string;
  "device-map"?: string | undefined;
  "max-memory"?: string | undefined;
  "offload-folder"?: string | undefined;
}

interface LoadCall {
  values: LoadValues;
  terminal: Terminal;
  signal: AbortSignal;
}

/** Loads the model `name`; `more` counts before the options. */
export async function loadModel(
  name: string,
  { values, terminal, signal }: LoadCall,
  more: FromPretrainedOptions = {},
): Promise<CausalLM> {
  const { dtype, revision } = values;
  await checkRevision(name, revision);
  if (values["4bit"] && values["8bit"]) throw usageError("--4bit and --8bit: give one of them");
  const head = choice("--head", values.head ?? "float", ["float", "int8", "nf4", "fp4"]);
  const activationQuant = choice("--activations", values.activations ?? "none", ["none", "int16", "int8"]);
  const quantizationConfig = values["4bit"]
    ? new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" })
    : values["8bit"]
      ? new BitsAndBytesConfig({ loadIn8bit: true })
      : null;
  if ((more.quantizationConfig ?? quantizationConfig) !== null) {
    const config = await readConfig(name, { revision, signal });
    if ((config["quantization_config"] ?? null) !== null) {
      throw usageError(`${name} is quantized already; bnb dequantize makes floats of it`);
    }
  }
  const model = await AutoModelForCausalLM.fromPretrained(name, {
    quantizationConfig,
    activationQuant,
    ...placementOf(values),
    dtype: dtype === undefined ? "auto" : choice("--dtype", dtype, ["float32", "float16", "bfloat16"]),
    ...(revision !== undefined && { revision }),
    onProgress: (progress) => showProgress(terminal, progress),
    signal,
    ...more,
  });
  try {
    if (values.lora !== undefined) await PeftModel.fromPretrained(model, values.lora, { signal });
    if (head !== "float") model.quantizeHead(head);
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** Throws ERR_BNB_FILE where the model has no tokenizer; a warning has said why, where there is a file of one. */
export function tokenizerOf({ tokenizer }: CausalLM): Tokenizer {
  if (tokenizer) return tokenizer;
  const rule = "the model has no tokenizer, which a text needs";
  throw new BnbError("ERR_BNB_FILE", `${rule}: its tokenizer.json must be in its folder and be one`);
}

/** Where the model goes: to one device as a whole, unless there is more to be said. */
function placementOf(values: LoadValues): FromPretrainedOptions {
  const { device, "device-map": map, "max-memory": sizes, "offload-folder": offloadFolder } = values;
  if (map !== undefined && device !== "auto") throw usageError("--device-map and --device: give one of them");
  if (offloadFolder !== undefined && map === undefined && sizes === undefined) {
    throw usageError("--offload-folder needs --device-map or --max-memory, or nothing is offloaded");
  }
  const folder = offloadFolder === undefined ? {} : { offloadFolder };
  if (map === undefined && sizes === undefined) return { deviceMap: toDevice(device) };
  const maxMemory = sizes === undefined ? {} : { maxMemory: readSizes(sizes) };
  return { deviceMap: map === undefined ? device : readMap(map), ...maxMemory, ...folder };
}

function readMap(text: string): NonNullable<FromPretrainedOptions["deviceMap"]> {
  if (!text.trimStart().startsWith("{")) return text;
  try {
    return JSON.parse(text) as Record<string, string>;
  } catch (error) {
    throw usageError(`--device-map must be a name, or JSON such as {"": "cpu"}: ${(error as Error).message}`);
  }
}

/** Sizes by device: bytes, or a text with a unit. */
function readSizes(text: string): Record<string, number | string> {
  const pairs = text.split(",").map((pair) => pair.split("="));
  const wrong = pairs.find((pair) => pair.length !== 2 || pair.some((part) => part.trim() === ""));
  if (wrong) throw usageError(`--max-memory must be such as cuda:0=10GiB,cpu=20GiB, got ${text}`);
  return Object.fromEntries(pairs.map(([device, size]) => [device?.trim(), sizeOf(size?.trim() as string)]));
}

const sizeOf = (text: string): number | string => (/^\d+$/.test(text) ? Number(text) : text);

function showProgress(terminal: Terminal, progress: FromPretrainedProgress): void {
  const { bytes: done, totalBytes, name, stage } = progress;
  const label = stage === "download" ? "Downloading" : "Loading";
  terminal.progress(label, done, totalBytes, `${bytes(done)} of ${bytes(totalBytes)}  ${name}`);
}

/** For `savePretrained`. */
export function savingProgress(terminal: Terminal): (done: { bytes: number; totalBytes: number }) => void {
  return ({ bytes: done, totalBytes }) =>
    terminal.progress("Saving", done, totalBytes, `${bytes(done)} of ${bytes(totalBytes)}`);
}
