// What sentence-transformers keeps beside an encoder: how the hidden states of a text become its vector.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { JsonObject } from "../hub/config-text.js";
import { parseConfig } from "../hub/config-text.js";
import { BnbError } from "../tensor/errors.js";
import type { EmbedOptions } from "./encoder.js";
import type { Pooling } from "./pooling.js";

const modes: Readonly<Record<string, Pooling>> = {
  pooling_mode_cls_token: "first",
  pooling_mode_mean_tokens: "mean",
  pooling_mode_lasttoken: "last",
};

/**
 * The options that a checkpoint's modules.json, pooling config and sentence_bert_config.json stand for; none where it has no
 * such files. Throws ERR_BNB_FORMAT for files that are no JSON, ERR_BNB_UNSUPPORTED for another way of pooling.
 */
export async function readEmbedOptions(folder: string): Promise<EmbedOptions> {
  const text = await textOf(folder, "modules.json");
  if (text === null) return {};
  const modules = modulesOf(text);
  const pathOf = (kind: string): string | undefined => modules.find(({ type }) => type.endsWith(`.${kind}`))?.path;
  const pooling = pathOf("Pooling");
  const options: EmbedOptions = { normalize: pathOf("Normalize") !== undefined };
  if (pooling !== undefined && /^\w+$/.test(pooling)) {
    const config = await configOf(folder, join(pooling, "config.json"));
    if (config) options.pooling = poolingOf(config);
  }
  const { max_seq_length: most } = (await configOf(folder, "sentence_bert_config.json")) ?? {};
  if (Number.isInteger(most) && (most as number) >= 2) options.maxLength = most as number;
  return options;
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
  return list.flatMap((item: { type?: unknown; path?: unknown } | null) =>
    typeof item?.type === "string" && typeof item.path === "string" ? [{ type: item.type, path: item.path }] : [],
  );
}

async function configOf(folder: string, name: string): Promise<JsonObject | null> {
  const text = await textOf(folder, name);
  return text === null ? null : parseConfig(text);
}

const textOf = (folder: string, name: string): Promise<string | null> =>
  readFile(join(folder, name), "utf8").catch(() => null);
