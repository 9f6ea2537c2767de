// A checkpoint of one or several safetensors files as one lazy source of tensors, and the writer of such folders.
import { readFile, realpath, stat } from "node:fs/promises";
import { basename, dirname, join, sep } from "node:path";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";
import { byteLengthOf } from "./file-dtype.js";
import { SafetensorsFile } from "./safetensors.js";
import { formatError } from "./safetensors-header.js";
import type { WritableTensor, WritableTensors } from "./safetensors-writer.js";
import { replaceFile, saveSafetensors } from "./safetensors-writer.js";
import type { LoadOptions, TensorInfo, TensorSource } from "./source.js";
import type { StrictObject } from "./strict-json.js";
import { parseStrictJson } from "./strict-json.js";

const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const MAX_INDEX_BYTES = 256 << 20;

/**
 * Opens a checkpoint: a folder with model.safetensors, or with model.safetensors.index.json and its shards; or one
 * safetensors file. Every header is read and checked at once, no tensor is. Throws ERR_BNB_FORMAT for a damaged or
 * hostile file or index, ERR_BNB_FILE for what cannot be opened.
 */
export async function openCheckpoint(path: string): Promise<TensorSource> {
  const folder = await stat(path).catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be opened: ${cause.message}`, { cause });
  });
  if (!folder.isDirectory()) return SafetensorsFile.open(path);
  const index = await readFileIfAny(join(path, INDEX));
  if (index !== undefined) return openShards(path, parseIndex(index));
  if (await stat(join(path, SINGLE)).catch(() => undefined)) return SafetensorsFile.open(join(path, SINGLE));
  throw new BnbError("ERR_BNB_FILE", `${path}: must hold ${SINGLE} or ${INDEX}, has neither`);
}

async function readFileIfAny(path: string): Promise<string | undefined> {
  const found = await stat(path).catch(() => undefined);
  if (found === undefined) return undefined;
  if (found.size > MAX_INDEX_BYTES) throw formatError(basename(path), `has ${found.size} bytes, too many for an index`);
  return readFile(path, "utf8");
}

/** Names of tensors by the file that holds them. */
function parseIndex(text: string): Map<string, string[]> {
  let document: unknown;
  try {
    document = parseStrictJson(text.trimEnd(), 8);
  } catch (cause) {
    throw formatError(INDEX, `is not JSON: ${(cause as Error).message}`, cause);
  }
  const weightMap = document instanceof Map ? (document as StrictObject).get("weight_map") : undefined;
  if (!(weightMap instanceof Map)) throw formatError(INDEX, "must have an object weight_map");
  const shards = new Map<string, string[]>();
  for (const [name, file] of weightMap as StrictObject) {
    if (typeof file !== "string" || !isPlainName(file)) {
      const rule = "must lie in a file of the same folder that ends in .safetensors";
      throw formatError(INDEX, `tensor ${JSON.stringify(name)} ${rule}, got ${JSON.stringify(file)}`);
    }
    const names = shards.get(file);
    if (names) names.push(name);
    else shards.set(file, [name]);
  }
  if (shards.size === 0) throw formatError(INDEX, "weight_map is empty");
  return shards;
}

const isPlainName = (file: string): boolean => /^(?!\.)[^/\\:\0]+\.safetensors$/.test(file) && file.length <= 255;

async function openShards(folder: string, shards: ReadonlyMap<string, readonly string[]>): Promise<TensorSource> {
  const roots = await rootsOf(folder);
  const holders = new Map<string, SafetensorsFile>();
  const opened: SafetensorsFile[] = [];
  try {
    for (const [file, names] of shards) {
      const real = await realpath(join(folder, file)).catch((cause: Error) => {
        throw new BnbError("ERR_BNB_FILE", `${INDEX}: its shard ${file} could not be opened: ${cause.message}`, {
          cause,
        });
      });
      if (!roots.some((root) => real.startsWith(root + sep))) {
        throw formatError(INDEX, `its shard ${file} is a link that leaves the folder of the model`);
      }
      const shard = await SafetensorsFile.open(join(folder, file));
      opened.push(shard);
      for (const name of names) {
        if (!shard.has(name)) throw formatError(INDEX, `tensor ${JSON.stringify(name)} is not in its shard ${file}`);
        holders.set(name, shard);
      }
    }
    // What a shard holds beside the map's names is ignored, unless it could be taken for one of them.
    for (const shard of opened) {
      for (const name of shard.names()) {
        const holder = holders.get(name);
        if (holder === undefined || holder === shard) continue;
        const both = `${basename(holder.path)} and ${basename(shard.path)}`;
        throw formatError(INDEX, `tensor ${JSON.stringify(name)} is in two shards, ${both}`);
      }
    }
  } catch (error) {
    await Promise.all(opened.map((shard) => shard.close()));
    throw error;
  }
  return new ShardedCheckpoint(holders, opened);
}

/** Where the files of a model may lie after following links: its folder, or the blobs of the hub's cache. */
async function rootsOf(folder: string): Promise<string[]> {
  const real = await realpath(folder);
  const isSnapshot = basename(dirname(real)) === "snapshots";
  return isSnapshot ? [real, join(dirname(dirname(real)), "blobs")] : [real];
}

class ShardedCheckpoint implements TensorSource {
  readonly #holders: ReadonlyMap<string, SafetensorsFile>;
  readonly #shards: readonly SafetensorsFile[];

  constructor(holders: ReadonlyMap<string, SafetensorsFile>, shards: readonly SafetensorsFile[]) {
    this.#holders = holders;
    this.#shards = shards;
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
  async bytes(name: string): Promise<Uint8Array> {
    return this.#holder(name).bytes(name);
  }
  async close(): Promise<void> {
    await Promise.all(this.#shards.map((shard) => shard.close()));
  }

  #holder(name: string): SafetensorsFile {
    const holder = this.#holders.get(name);
    if (holder === undefined) throw formatError(INDEX, `has no tensor ${JSON.stringify(name)}`);
    return holder;
  }
}

export interface SaveCheckpointOptions {
  /** Bytes of tensors in one file, which a single larger tensor exceeds. Default 5e9, as transformers has it. */
  readonly maxShardSize?: number;
  /** Unquantized parameters, for the index: `metadata.total_parameters`. */
  readonly totalParameters?: number;
}

/**
 * Saves tensors into a folder as transformers does: model.safetensors, or numbered shards with an index when they
 * exceed `maxShardSize`. Tensors fill the shards in the order given; each file is replaced only when it is complete,
 * and the index, which makes them the checkpoint, comes last.
 */
export async function saveCheckpoint(
  folder: string,
  tensors: WritableTensors,
  options: SaveCheckpointOptions = {},
): Promise<void> {
  const { maxShardSize = 5e9, totalParameters } = options;
  const entries = tensors instanceof Map ? [...tensors] : Object.entries(tensors as Record<string, WritableTensor>);
  const shards: Map<string, WritableTensor>[] = [];
  let room = 0;
  let total = 0;
  for (const [name, source] of entries) {
    const nbytes = sizeOf(source);
    total += nbytes;
    if (shards.length === 0 || nbytes > room) {
      shards.push(new Map());
      room = maxShardSize;
    }
    room -= nbytes;
    (shards.at(-1) as Map<string, WritableTensor>).set(name, source);
  }
  if (shards.length <= 1) {
    await saveSafetensors(join(folder, SINGLE), shards[0] ?? new Map());
    return;
  }
  const weightMap: Record<string, string> = {};
  const digits = (n: number): string => String(n).padStart(5, "0");
  for (const [i, shard] of shards.entries()) {
    const file = `model-${digits(i + 1)}-of-${digits(shards.length)}.safetensors`;
    await saveSafetensors(join(folder, file), shard);
    for (const name of shard.keys()) weightMap[name] = file;
  }
  const sorted = Object.fromEntries(Object.entries(weightMap).sort(([a], [b]) => (a < b ? -1 : 1)));
  const metadata = { ...(totalParameters !== undefined && { total_parameters: totalParameters }), total_size: total };
  const index = `${escapeNonAscii(JSON.stringify({ metadata, weight_map: sorted }, null, 2))}\n`;
  await replaceFile(join(folder, INDEX), async (file) => {
    await file.writeFile(index);
  });
}

const sizeOf = (source: WritableTensor): number =>
  "nbytes" in source ? source.nbytes : (byteLengthOf(source.dtype, source.shape) ?? 0);

const escapeNonAscii = (json: string): string =>
  json.replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
