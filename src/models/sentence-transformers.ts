// What sentence-transformers keeps beside an encoder: how the hidden states of a text become its vector.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { JsonObject } from "../hub/config-text.js";
import { parseConfig } from "../hub/config-text.js";
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import type { EmbedOptions } from "./encoder.js";
import type { Pooling } from "./pooling.js";

const modes: Readonly<Record<string, Pooling>> = {
  pooling_mode_cls_token: "first",
  pooling_mode_mean_tokens: "mean",
  pooling_mode_lasttoken: "last",
};

/** Modules that are known; the last one does nothing to a model that is not trained. */
const kinds = ["Transformer", "Pooling", "Normalize", "Dropout"];

/**
 * The options that a checkpoint's modules.json, pooling config and sentence_bert_config.json stand for; none where it has no
 * such files. Throws ERR_BNB_FORMAT for files that make no sense, ERR_BNB_UNSUPPORTED for another way of pooling, and for modules
 * that would change the vectors, such as Dense.
 */
export async function readEmbedOptions(folder: string): Promise<EmbedOptions> {
  const text = await textOf(folder, "modules.json");
  if (text === null) return {};
  const modules = modulesOf(text);
  const kindOf = (type: string): string => type.slice(type.lastIndexOf(".") + 1);
  const other = modules.find(({ type }) => !kinds.includes(kindOf(type)));
  if (other) {
    const rule = `modules.json: modules must be of ${kinds.join(", ")}`;
    throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${JSON.stringify(other.type)}`);
  }
  const pathOf = (kind: string): string | undefined => modules.find(({ type }) => kindOf(type) === kind)?.path;
  const pooling = pathOf("Pooling");
  const options: EmbedOptions = { normalize: pathOf("Normalize") !== undefined };
  if (pooling !== undefined) {
    if (!/^\w+$/.test(pooling)) {
      const rule = "modules.json: the path of Pooling must be a name of letters and digits";
      throw new BnbError("ERR_BNB_FORMAT", `${rule}, got ${JSON.stringify(pooling)}`);
    }
    const config = await configOf(folder, join(pooling, "config.json"));
    if (config) options.pooling = poolingOf(config);
  }
  const { max_seq_length: most } = (await configOf(folder, "sentence_bert_config.json")) ?? {};
  if (Number.isInteger(most) && (most as number) >= 2) options.maxLength = most as number;
  return options;
}

/** The texts of those files, by their names in the folder. */
export function embedFiles(
  { pooling = "mean", normalize = false, maxLength }: EmbedOptions,
  hiddenSize: number,
): Map<string, string> {
  const files = new Map<string, string>();
  const add = (name: string, json: unknown): void => void files.set(name, `${JSON.stringify(json, null, 2)}\n`);
  const names = ["Transformer", "Pooling", ...(normalize ? ["Normalize"] : [])];
  const pathOf = (kind: string, idx: number): string => (idx === 0 ? "" : `${idx}_${kind}`);
  add(
    "modules.json",
    names.map((kind, idx) => {
      return { idx, name: String(idx), path: pathOf(kind, idx), type: `sentence_transformers.models.${kind}` };
    }),
  );
  const isMode = Object.fromEntries(Object.entries(modes).map(([key, mode]) => [key, mode === pooling]));
  add("1_Pooling/config.json", { word_embedding_dimension: hiddenSize, ...isMode });
  if (maxLength !== undefined) {
    add("sentence_bert_config.json", { max_seq_length: maxLength, do_lower_case: false });
  }
  return files;
}

function poolingOf(config: JsonObject): Pooling {
  const wanted = Object.keys(config).filter((key) => key.startsWith("pooling_mode_") && config[key] === true);
  const [key] = wanted;
  if (wanted.length === 1 && key !== undefined && Object.hasOwn(modes, key)) return modes[key] as Pooling;
  const rule = `pooling config: must be one of ${Object.keys(modes).join(", ")}`;
  throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}, got ${wanted.join(", ") || "none"}`);
}

function modulesOf(text: string): { type: string; path: string }[] {
  let list: unknown;
  try {
    list = JSON.parse(text);
  } catch (cause) {
    throw new BnbError("ERR_BNB_FORMAT", `modules.json: must be JSON: ${(cause as Error).message}`, { cause });
  }
  if (!Array.isArray(list)) throw new BnbError("ERR_BNB_FORMAT", "modules.json: must be a list of modules");
  return list.map((item: { type?: unknown; path?: unknown } | null) => {
    if (typeof item?.type === "string" && typeof item.path === "string") return { type: item.type, path: item.path };
    throw new BnbError("ERR_BNB_FORMAT", `modules.json: a module must have type and path, got ${describe(item)}`);
  });
}

async function configOf(folder: string, name: string): Promise<JsonObject | null> {
  const text = await textOf(folder, name);
  return text === null ? null : parseConfig(text);
}

const textOf = (folder: string, name: string): Promise<string | null> =>
  readFile(join(folder, name), "utf8").catch(() => null);
