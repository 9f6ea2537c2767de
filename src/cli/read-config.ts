// The config.json of a model, which for an id of the hub is all that is downloaded.
import { readFile, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { JsonObject } from "../hub/config-text.js";
import { parseConfig } from "../hub/config-text.js";
import type { ResolveOptions } from "../hub/resolve.js";
import { resolveModel } from "../hub/resolve.js";
import { BnbError } from "../tensor/errors.js";
import { usageError } from "./command.js";

/** Throws ERR_BNB_OPTION for a revision of what is a folder, which has none. */
export async function checkRevision(model: string, revision: string | undefined): Promise<void> {
  if (revision === undefined || !(await stat(model).catch(() => undefined))) return;
  throw usageError(`--revision is of models of the hub, and ${model} is a path: leave it out`);
}

/** Of a folder, of that file itself, or of an id of the hub. Throws ERR_BNB_FILE and ERR_BNB_FORMAT. */
export async function readConfig(model: string, options: ResolveOptions): Promise<JsonObject> {
  await checkRevision(model, options.revision);
  const name = basename(model) === "config.json" ? dirname(model) : model;
  const folder = await resolveModel(name, "config", options);
  const path = join(folder, "config.json");
  const text = await readFile(path, "utf8").catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be read: ${cause.message}`, { cause });
  });
  return parseConfig(text);
}
