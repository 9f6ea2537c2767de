// A checkpoint of one or several files as one lazy source of tensors; older ones in files of torch.save, too.
import { readFile, realpath, stat } from "node:fs/promises";
import { basename, dirname, join, sep } from "node:path";
import { aString, checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";
import { exists } from "./cache.js";
import { openPickle } from "./pickle-file.js";
import { openSafetensors } from "./safetensors.js";
import { formatError } from "./safetensors-header.js";
import type { LoadOptions, TensorInfo, TensorSource } from "./source.js";
import type { StrictObject } from "./strict-json.js";
import { parseStrictJson } from "./strict-json.js";
import type { TensorFile } from "./tensor-file.js";

/** The names of a checkpoint's files, as transformers has them. */
export const SINGLE = "model.safetensors";
export const INDEX = "model.safetensors.index.json";
/** What older checkpoints have in their place. */
export const PICKLE = "pytorch_model.bin";
export const PICKLE_INDEX = "pytorch_model.bin.index.json";
const MAX_INDEX_BYTES = 256 << 20;

/**
 * Opens a checkpoint: a folder with model.safetensors, or with model.safetensors.index.json and its shards, or else with
 * pytorch_model.bin (see `openPickle`) or its shards; or one such file. Every header is read and checked at once, no tensor is. Throws ERR_BNB_FORMAT for a damaged or
 * hostile file or index, ERR_BNB_FILE for what cannot be opened.
 */
export async function openCheckpoint(path: string): Promise<TensorSource> {
  checkArgument("openCheckpoint", "path", path, aString);
  const folder = await stat(path).catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be opened: ${cause.message}`, { cause });
  });
  if (!folder.isDirectory()) return openFile(path);
  for (const [index, single] of [
    [INDEX, SINGLE],
    [PICKLE_INDEX, PICKLE],
  ] as const) {
    const text = await readFileIfAny(join(path, index));
    if (text !== undefined) return openShards(path, parseIndex(text, index), index);
    if (await exists(join(path, single))) return openFile(join(path, single));
  }
  throw new BnbError("ERR_BNB_FILE", `${path}: must hold ${SINGLE} or ${INDEX}, has neither`);
}

const openFile = (path: string): Promise<TensorFile> =>
  path.endsWith(".bin") ? openPickle(path) : openSafetensors(path);

async function readFileIfAny(path: string): Promise<string | undefined> {
  const found = await stat(path).catch(() => undefined);
  if (found === undefined) return undefined;
  if (found.size > MAX_INDEX_BYTES) throw formatError(basename(path), `has ${found.size} bytes, too many for an index`);
  return readFile(path, "utf8");
}

/** The files that an index names. */
export function shardsOfIndex(text: string, file = INDEX): string[] {
  return [...parseIndex(text, file).keys()];
}

/** Names of tensors by the file that holds them. */
function parseIndex(text: string, index = INDEX): Map<string, string[]> {
  const ending = index === INDEX ? ".safetensors" : ".bin";
  let document: unknown;
  try {
    document = parseStrictJson(text.trimEnd(), 8);
  } catch (cause) {
    throw formatError(index, `is not JSON: ${(cause as Error).message}`, cause);
  }
  const weightMap = document instanceof Map ? (document as StrictObject).get("weight_map") : undefined;
  if (!(weightMap instanceof Map)) throw formatError(index, "must have an object weight_map");
  const shards = new Map<string, string[]>();
  for (const [name, file] of weightMap as StrictObject) {
    if (typeof file !== "string" || !isPlainName(file, ending)) {
      const rule = `must lie in a file of the same folder that ends in ${ending}`;
      throw formatError(index, `tensor ${JSON.stringify(name)} ${rule}, got ${JSON.stringify(file)}`);
    }
    const names = shards.get(file);
    if (names) names.push(name);
    else shards.set(file, [name]);
  }
  if (shards.size === 0) throw formatError(index, "weight_map is empty");
  return shards;
}

const isPlainName = (file: string, ending: string): boolean =>
  /^(?!\.)[^/\\:\0]+$/.test(file) && file.endsWith(ending) && file.length > ending.length && file.length <= 255;

async function openShards(
  folder: string,
  shards: ReadonlyMap<string, readonly string[]>,
  index: string,
): Promise<TensorSource> {
  const roots = await rootsOf(folder);
  const holders = new Map<string, TensorFile>();
  const opened: TensorFile[] = [];
  try {
    for (const [file, names] of shards) {
      const real = await realpath(join(folder, file)).catch((cause: Error) => {
        throw new BnbError("ERR_BNB_FILE", `${index}: its shard ${file} could not be opened: ${cause.message}`, {
          cause,
        });
      });
      if (!roots.some((root) => real.startsWith(root + sep))) {
        throw formatError(index, `its shard ${file} is a link that leaves the folder of the model`);
      }
      const shard = await openFile(join(folder, file));
      opened.push(shard);
      for (const name of names) {
        if (!shard.has(name)) throw formatError(index, `tensor ${JSON.stringify(name)} is not in its shard ${file}`);
        holders.set(name, shard);
      }
    }
    // What a shard holds beside the map's names is ignored, unless it could be taken for one of them.
    for (const shard of opened) {
      for (const name of shard.names()) {
        const holder = holders.get(name);
        if (holder === undefined || holder === shard) continue;
        const both = `${basename(holder.path)} and ${basename(shard.path)}`;
        throw formatError(index, `tensor ${JSON.stringify(name)} is in two shards, ${both}`);
      }
    }
  } catch (error) {
    await Promise.all(opened.map((shard) => shard.close()));
    throw error;
  }
  return new ShardedCheckpoint(holders, opened, index);
}

/** Where the files of a model may lie after following links: its folder, or the blobs of the hub's cache. */
async function rootsOf(folder: string): Promise<string[]> {
  const real = await realpath(folder);
  const isSnapshot = basename(dirname(real)) === "snapshots";
  return isSnapshot ? [real, join(dirname(dirname(real)), "blobs")] : [real];
}

class ShardedCheckpoint implements TensorSource {
  readonly #holders: ReadonlyMap<string, TensorFile>;
  readonly #shards: readonly TensorFile[];

  readonly #index: string;

  constructor(holders: ReadonlyMap<string, TensorFile>, shards: readonly TensorFile[], index: string) {
    this.#holders = holders;
    this.#shards = shards;
    this.#index = index;
  }

  names(): IterableIterator<string> {
    return this.#holders.keys();
  }
  has(name: string): boolean {
    return this.#holders.has(name);
  }
  info(name: string): TensorInfo {
    return this.#holder(name).info(name);
  }
  async load(name: string, options?: LoadOptions): Promise<Tensor> {
    return this.#holder(name).load(name, options);
  }
  async bytes(name: string, begin?: number, end?: number): Promise<Uint8Array> {
    return this.#holder(name).bytes(name, begin, end);
  }
  async close(): Promise<void> {
    await Promise.all(this.#shards.map((shard) => shard.close()));
  }

  #holder(name: string): TensorFile {
    checkArgument(this.#index, "name", name, aString);
    const holder = this.#holders.get(name);
    if (holder === undefined) throw formatError(this.#index, `has no tensor ${JSON.stringify(name)}`);
    return holder;
  }
}
