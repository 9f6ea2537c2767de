// The config.json of a model, which for an id of the hub is all that is downloaded.
import { readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { JsonObject } from "../hub/config-text.js";
import { parseConfig } from "../hub/config-text.js";
import type { ResolveOptions } from "../hub/resolve.js";
import { resolveModel } from "../hub/resolve.js";
import { BnbError } from "../tensor/errors.js";

/** Of a folder, of that file itself, or of an id of the hub. Throws ERR_BNB_FILE and ERR_BNB_FORMAT. */
export async function readConfig(model: string, options: ResolveOptions): Promise<JsonObject> {
  const name = basename(model) === "config.json" ? dirname(model) : model;
  const folder = await resolveModel(name, "config", options);
  const path = join(folder, "config.json");
  const text = await readFile(path, "utf8").catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be read: ${cause.message}`, { cause });
  });
  return parseConfig(text);
}
