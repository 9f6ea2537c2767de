// The file of --config: everything that `bnb finetune` can be told, as YAML or JSON.
import { readFile } from "node:fs/promises";
import { extname } from "node:path";
import { parse } from "yaml";
import type { LoraConfigOptions } from "../../peft/index.js";
import { aBoolean, aNumberAbove, anInteger, aPlainObject, arrayOf, aString, oneOf } from "../../tensor/checks.js";
import { BnbError } from "../../tensor/errors.js";
import { checkOptions, optionTable } from "../../tensor/options.js";
import type { TrainingArguments } from "../../train/index.js";
import { usageError } from "../command.js";
import type { TaskName } from "./task.js";
import { tasks } from "./task.js";

/** What the base computes in. */
export const baseFormats = ["nf4", "fp4", "int8", "float"] as const;
export type BaseFormat = (typeof baseFormats)[number];

/** What becomes of a sample that is too long. */
export const tooLongChoices = ["cut", "skip", "error"] as const;

/** The arguments of a Trainer that a config may hold; the others follow from the command. */
export type ConfiguredArguments = Omit<
  TrainingArguments,
  "outputDir" | "resumeFromCheckpoint" | "reportTo" | "signal" | "maxLength"
>;

/** The keys of a config file. */
export interface FinetuneConfig {
  data?: string;
  evalData?: string;
  output?: string;
  task?: TaskName;
  beta?: number;
  base?: BaseFormat;
  maxLength?: number;
  skipBadRows?: boolean;
  onDisk?: boolean;
  tooLong?: (typeof tooLongChoices)[number];
  chatTemplate?: string;
  prompts?: readonly string[];
  report?: string;
  lora?: LoraConfigOptions;
  training?: ConfiguredArguments;
}
const configTable = optionTable<FinetuneConfig>({
  data: aString,
  evalData: aString,
  output: aString,
  task: oneOf(tasks),
  beta: aNumberAbove(0),
  base: oneOf(baseFormats),
  maxLength: anInteger(2),
  skipBadRows: aBoolean,
  onDisk: aBoolean,
  tooLong: oneOf(tooLongChoices),
  chatTemplate: aString,
  prompts: arrayOf(aString),
  report: aString,
  lora: aPlainObject,
  training: aPlainObject,
});

/** Arguments of a Trainer that are not for `training`, and what says them. */
const elsewhere: Readonly<Record<string, string>> = {
  outputDir: "output does",
  resumeFromCheckpoint: "--resume does",
  maxLength: "maxLength outside of training does",
  reportTo: "the command reports itself",
  signal: "Ctrl-C is one",
};

/** Reads and checks a config file. Throws ERR_BNB_OPTION for what cannot be read, is no YAML, or has unknown keys. */
export async function readFinetuneConfig(path: string): Promise<FinetuneConfig> {
  const text = await readFile(path, "utf8").catch((cause: Error) => {
    throw new BnbError("ERR_BNB_OPTION", `--config must be a readable file: ${cause.message}`, { cause });
  });
  let config: unknown;
  try {
    config = extname(path).toLowerCase() === ".json" ? JSON.parse(text) : parse(text);
  } catch (cause) {
    // The parser shows the place in further lines.
    const [first] = (cause as Error).message.split("\n");
    throw new BnbError("ERR_BNB_OPTION", `${path}: is neither YAML nor JSON: ${first?.replace(/:$/, "")}`, { cause });
  }
  // An empty file says nothing.
  const found = config ?? {};
  checkOptions(path, found, configTable);
  const { training = {} } = found as FinetuneConfig;
  for (const [key, reason] of Object.entries(elsewhere)) {
    if (Object.hasOwn(training, key)) throw usageError(`${path}: training must not have ${key}: ${reason}`);
  }
  return found as FinetuneConfig;
}
