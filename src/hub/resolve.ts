// From what names a model to a folder with its files: a folder as it is, an id from the cache, or from the hub.
import { readFile, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { BnbError } from "../tensor/errors.js";
import { checkRepoId, checkRevision, exists, hubSettings, ModelCache } from "./cache.js";
import { INDEX, PICKLE, PICKLE_INDEX, SINGLE, shardsOfIndex } from "./checkpoint.js";
import { downloadFile } from "./download.js";
import type { HubRequests } from "./http.js";
import { request, throwIfAborted, withRetries } from "./http.js";
import { makeFolders } from "./make-folders.js";

/** What of a model is wanted. */
export type Needs = "model" | "tokenizer" | "config" | "adapter";

export interface ResolveOptions {
  /** Branch, tag or commit. Default "main". */
  readonly revision?: string | undefined;
  /** For private and gated models. Default HF_TOKEN, or what `hf auth login` left. */
  readonly token?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onDownload?: ((file: string, bytes: number, total: number) => void) | undefined;
  /** Whether nothing is downloaded. Default HF_HUB_OFFLINE. */
  readonly offline?: boolean | undefined;
  /** Milliseconds before the first retry. */
  readonly retryDelay?: number | undefined;
}

const tokenizerFiles =
  /^(tokenizer[^/\\]*\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|chat_template\.(jinja|json))$/;
const modelFiles = /^((config|generation_config|modules|sentence_bert_config)|\d+_Pooling\/config)\.json$/;

/** Of an adapter, by the names of PEFT; the weights last. */
const adapterFiles = ["adapter_config.json", "adapter_model.safetensors"];

/**
 * A folder that holds what is needed of the model `name`: `name` itself where it is a folder, else a snapshot in the
 * cache of Hugging Face's libraries, into which missing files are brought. HF_HUB_OFFLINE keeps it to the cache.
 *
 * Throws ERR_BNB_ARGUMENT for what is neither, ERR_BNB_FILE for what cannot be had.
 */
export async function resolveModel(name: string, needs: Needs, options: ResolveOptions = {}): Promise<string> {
  const local = await stat(name).catch(() => undefined);
  if (local?.isDirectory()) return name;
  if (/^[./~\\]|\\|\.(safetensors|gguf|bin)$/.test(name) || local) refusePath(name, local !== undefined);
  checkRepoId(name);
  const { revision = "main" } = options;
  checkRevision(revision);
  const settings = await hubSettings();
  const cache = new ModelCache(settings.cache, name);
  const known = await cache.commitOf(revision);
  const isOffline = options.offline ?? settings.offline;
  const isThere = known !== undefined && (await isComplete(cache.snapshot(known), needs));
  if (isThere && (isOffline || needs !== "model" || (await isAccompanied(cache, known)))) return cache.snapshot(known);
  if (isOffline) {
    const why = options.offline ? "it is no folder and nothing is downloaded for this" : "HF_HUB_OFFLINE is set";
    const rule = `the cache at ${settings.cache} must hold it, as ${why}`;
    throw new BnbError("ERR_BNB_FILE", `${name}: ${rule}, and files of revision ${revision} are missing there`);
  }
  const { signal, retryDelay } = options;
  const requests: HubRequests = {
    endpoint: settings.endpoint,
    token: options.token ?? settings.token,
    signal,
    ...(retryDelay !== undefined && { retryDelay }),
  };
  try {
    if (isThere) {
      await accompany(cache, name, known, requests, options);
      return cache.snapshot(known);
    }
    return await fetchSnapshot(cache, name, revision, needs, requests, options);
  } catch (cause) {
    if (!(cause instanceof Error && "syscall" in cause)) throw cause;
    const rule = `${name}: the cache at ${settings.cache} could not be written: ${cause.message}`;
    throw new BnbError("ERR_BNB_FILE", rule, { cause });
  }
}

function refusePath(name: string, isFile: boolean): never {
  const hint = name.endsWith(".gguf") ? ": GGUF files are llama.cpp's own, use the model's safetensors files" : "";
  const what = isFile ? "is a file, not the folder of a model" : "is no folder";
  throw new BnbError("ERR_BNB_FILE", `${name}: ${what}${hint}`);
}

async function isComplete(snapshot: string, needs: Needs): Promise<boolean> {
  const has = (name: string): Promise<boolean> => exists(join(snapshot, name));
  if (needs === "tokenizer") return has("tokenizer.json");
  if (needs === "adapter") return (await Promise.all(adapterFiles.map(has))).every(Boolean);
  if (!(await has("config.json"))) return false;
  if (needs === "config") return true;
  for (const index of [INDEX, PICKLE_INDEX]) {
    const text = await readFile(join(snapshot, index), "utf8").catch(() => undefined);
    if (text === undefined) continue;
    for (const shard of shardsOfIndex(text, index)) if (!(await has(shard))) return false;
    return true;
  }
  return (await has(SINGLE)) || has(PICKLE);
}

/** Of a model's small files the one that Python may not have fetched with the weights, and most need. */
const sign = "tokenizer.json";
/** Milliseconds that a model which is there may wait for the hub. */
const PATIENCE = 5000;

async function isAccompanied(cache: ModelCache, commit: string): Promise<boolean> {
  return (await exists(join(cache.snapshot(commit), sign))) || exists(cache.absent(commit, sign));
}

/**
 * Brings the small files beside weights that are there. A hub that does not answer at once, and a cache that cannot be
 * written, are no reason to go without the model.
 */
async function accompany(
  cache: ModelCache,
  id: string,
  commit: string,
  requests: HubRequests,
  options: ResolveOptions,
): Promise<void> {
  const soon = AbortSignal.timeout(PATIENCE);
  const signal = requests.signal ? AbortSignal.any([requests.signal, soon]) : soon;
  try {
    const { files } = await listFiles(id, commit, { ...requests, signal, attempts: 1 });
    await fetchSmall(cache, { id, commit, files }, requests, options);
  } catch (error) {
    throwIfAborted(requests.signal);
    const mayPass =
      error instanceof BnbError
        ? ["ERR_BNB_FILE", "ERR_BNB_ABORTED"].includes(error.code)
        : error instanceof Error && "syscall" in error;
    if (!mayPass) throw error;
  }
}

/** All that a model has beside its weights, and a note if it has no tokenizer.json. */
async function fetchSmall(
  cache: ModelCache,
  { id, commit, files }: { readonly id: string; readonly commit: string; readonly files: readonly string[] },
  requests: HubRequests,
  { onDownload }: ResolveOptions,
): Promise<void> {
  for (const name of files.filter((file) => tokenizerFiles.test(file) || modelFiles.test(file))) {
    await downloadFile(cache, { id, commit, name }, requests, (bytes, total) => onDownload?.(name, bytes, total));
  }
  if (files.includes(sign)) return;
  const note = cache.absent(commit, sign);
  await makeFolders(dirname(note));
  await writeFile(note, "");
}

async function fetchSnapshot(
  cache: ModelCache,
  id: string,
  revision: string,
  needs: Needs,
  requests: HubRequests,
  options: ResolveOptions,
): Promise<string> {
  const { onDownload } = options;
  const { commit, files } = await listFiles(id, revision, requests);
  const download = (name: string): Promise<string> =>
    downloadFile(cache, { id, commit, name }, requests, (bytes, total) => onDownload?.(name, bytes, total));
  if (needs === "config") {
    if (!files.includes("config.json")) throw new BnbError("ERR_BNB_FILE", `${id}: must hold config.json, has none`);
    await download("config.json");
  }
  if (needs === "adapter") {
    const missing = adapterFiles.filter((name) => !files.includes(name));
    if (missing.length > 0) {
      const rule = `${id}: must hold ${adapterFiles.join(" and ")} of an adapter`;
      throw new BnbError("ERR_BNB_FILE", `${rule}, has no ${missing.join(" and no ")}`);
    }
    for (const name of adapterFiles) await download(name);
  }
  // Weights last: a snapshot that has them is complete.
  if (needs === "tokenizer") {
    for (const name of files.filter((file) => tokenizerFiles.test(file))) await download(name);
  }
  if (needs === "model") {
    await fetchSmall(cache, { id, commit, files }, requests, options);
    const index = [INDEX, SINGLE, PICKLE_INDEX, PICKLE].find((name) => files.includes(name));
    if (index === undefined) {
      const gguf = files.some((file) => file.endsWith(".gguf")) ? "; its GGUF files are llama.cpp's own" : "";
      throw new BnbError("ERR_BNB_FILE", `${id}: must hold ${SINGLE} or ${INDEX}, has neither${gguf}`);
    }
    const path = await download(index);
    if (index.endsWith(".json")) {
      for (const shard of shardsOfIndex(await readFile(path, "utf8"), index)) await download(shard);
    }
  }
  if (commit !== revision) {
    await makeFolders(dirname(cache.ref(revision)));
    await writeFile(cache.ref(revision), commit);
  }
  return cache.snapshot(commit);
}

/** The commit that a revision is at, and the files of its top folder. */
async function listFiles(
  id: string,
  revision: string,
  requests: HubRequests,
): Promise<{ commit: string; files: string[] }> {
  const url = `${requests.endpoint}/api/models/${id}/revision/${encodeURIComponent(revision)}`;
  const json = await withRetries(url, requests, async () => {
    const text = await (await request(url, requests)).text();
    return JSON.parse(text) as { sha?: unknown; siblings?: { rfilename?: unknown }[] };
  });
  const { sha, siblings } = json ?? {};
  if (typeof sha !== "string" || !/^[0-9a-f]{40}$/.test(sha) || !Array.isArray(siblings)) {
    throw new BnbError("ERR_BNB_FILE", `${url}: the server must give a commit and a list of files`);
  }
  const files = siblings.flatMap((file) => (typeof file?.rfilename === "string" ? [file.rfilename] : []));
  return { commit: sha, files };
}
