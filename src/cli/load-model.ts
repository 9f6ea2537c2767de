// The model that a command works with: loaded with progress, in the format that its options ask for.
import { BitsAndBytesConfig } from "../hub/index.js";
import type { CausalLM, FromPretrainedOptions, FromPretrainedProgress } from "../models/index.js";
import { AutoModelForCausalLM } from "../models/index.js";
import { BnbError } from "../tensor/errors.js";
import type { OptionSpec } from "./command.js";
import { choice, deviceOption, revisionOption, usageError } from "./command.js";
import { readConfig } from "./read-config.js";
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

/** For commands that generate. */
export const headOption = {
  head: {
    type: "string",
    value: "FORMAT",
    help: "also keep the output projection in int8, nf4 or fp4, to be faster; or float",
  },
} as const satisfies Record<string, OptionSpec>;

interface LoadValues {
  dtype: string | undefined;
  device: string;
  revision: string | undefined;
  "4bit"?: boolean;
  "8bit"?: boolean;
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
  const { dtype, device, revision } = values;
  if (values["4bit"] && values["8bit"]) throw usageError("--4bit and --8bit: give one of them");
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
  return AutoModelForCausalLM.fromPretrained(name, {
    quantizationConfig,
    deviceMap: device,
    dtype: dtype === undefined ? "auto" : choice("--dtype", dtype, ["float32", "float16", "bfloat16"]),
    ...(revision !== undefined && { revision }),
    onProgress: (progress) => showProgress(terminal, progress),
    signal,
    ...more,
  });
}

/** Keeps the head of a model in the format of --head; the default only where the head is not quantized already. */
export function quantizeHead(model: CausalLM, asked: string | undefined, byDefault: "float" | "int8"): void {
  const format = choice("--head", asked ?? byDefault, ["float", "int8", "nf4", "fp4"]);
  try {
    model.quantizeHead(format === "float" ? null : format);
  } catch (error) {
    if (asked !== undefined || !(error instanceof BnbError && error.code === "ERR_BNB_UNSUPPORTED")) throw error;
  }
}

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
