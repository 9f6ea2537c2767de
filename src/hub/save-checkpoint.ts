// Writes a checkpoint into a folder as transformers does: one safetensors file, or numbered shards with their index.
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { aFunction, aNumberAbove, anAbortSignal, anInteger, aString, checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { INDEX, SINGLE } from "./checkpoint.js";
import { byteLengthOf } from "./file-dtype.js";
import type { LoadProgress } from "./load-checkpoint.js";
import type { Replacement } from "./replace-files.js";
import { replaceFiles } from "./replace-files.js";
import type { StagedTensor, WritableTensors } from "./safetensors-writer.js";
import { entriesOf, stageSafetensors } from "./safetensors-writer.js";

/** Options of `saveCheckpoint`. */
export interface SaveCheckpointOptions {
  /** Bytes of tensors in one file, which a single larger tensor exceeds. Default 5e9, as transformers has it. */
  readonly maxShardSize?: number;
  /** Unquantized parameters, for the index: `metadata.total_parameters`. */
  readonly totalParameters?: number;
  /** Called as tensors are written. */
  readonly onProgress?: (progress: LoadProgress) => void;
  /** Stops the saving with ERR_BNB_ABORTED, and leaves nothing of it. */
  readonly signal?: AbortSignal;
}
const saveOptions = optionTable<SaveCheckpointOptions>({
  maxShardSize: aNumberAbove(0),
  totalParameters: anInteger(0),
  onProgress: aFunction,
  signal: anAbortSignal,
});

type Entry = readonly [name: string, tensor: StagedTensor];

/**
 * Saves tensors into a folder, which is made if need be: model.safetensors, or numbered shards with an index when they
 * exceed `maxShardSize`. Tensors fill the shards in the order given. Files get their names when all are complete and on
 * the disk, the index last; those of an earlier checkpoint that no longer belong to it are then removed.
 *
 * Throws ERR_BNB_FILE when the system refuses; what was there then stays.
 */
export async function saveCheckpoint(
  folder: string,
  tensors: WritableTensors,
  options: SaveCheckpointOptions = {},
): Promise<void> {
  checkArgument("saveCheckpoint", "folder", folder, aString);
  checkOptions("saveCheckpoint", options, saveOptions);
  const entries = entriesOf("saveCheckpoint", tensors);
  await replaceFiles((files) => stageCheckpoint(files, folder, entries, options));
}

/** As saveCheckpoint; the files get their names with the others of `files`. */
export async function stageCheckpoint(
  files: Replacement,
  folder: string,
  entries: readonly Entry[],
  { maxShardSize = 5e9, totalParameters, onProgress, signal }: SaveCheckpointOptions = {},
): Promise<void> {
  const total = { totalTensors: entries.length, totalBytes: entries.reduce((sum, [, t]) => sum + sizeOf(t), 0) };
  let done = { tensors: 0, bytes: 0 };
  const onTensor = (name: string, nbytes: number): void => {
    throwIfAborted(signal);
    done = { tensors: done.tensors + 1, bytes: done.bytes + nbytes };
    onProgress?.({ name, ...done, ...total });
  };
  const shards = shardsOf(entries, maxShardSize);
  const isSingle = shards.length <= 1;
  const number = (n: number): string => String(n).padStart(5, "0");
  const names = isSingle
    ? [SINGLE]
    : shards.map((_, i) => `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`);
  for (const [i, name] of names.entries()) {
    await stageSafetensors(files, join(folder, name), shards[i] ?? [], { onTensor });
  }
  if (!isSingle) {
    const holders = shards.flatMap((shard, i) => shard.map(([name]) => [name, names[i] as string] as const));
    const weightMap = Object.fromEntries(holders.sort(([a], [b]) => (a < b ? -1 : 1)));
    const parameters = totalParameters === undefined ? {} : { total_parameters: totalParameters };
    const index = { metadata: { ...parameters, total_size: total.totalBytes }, weight_map: weightMap };
    const text = `${escapeNonAscii(JSON.stringify(index, null, 2))}\n`;
    await files.write(join(folder, INDEX), (file) => file.writeFile(text));
  }
  for (const name of await readdir(folder)) {
    const isOfCheckpoint = name === SINGLE || name === INDEX || /^model-\d{5}-of-\d{5}\.safetensors$/.test(name);
    const isNew = names.includes(name) || (name === INDEX && !isSingle);
    if (isOfCheckpoint && !isNew) files.remove(join(folder, name));
  }
}

/** Throws ERR_BNB_ABORTED where nobody wants the files any more. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (!signal?.aborted) return;
  throw new BnbError("ERR_BNB_ABORTED", "saveCheckpoint: aborted by its signal", { cause: signal.reason });
}

/** As huggingface_hub splits: in the order given, a tensor beyond the limit alone. */
function shardsOf(entries: readonly Entry[], maxShardSize: number): Entry[][] {
  const shards: Entry[][] = [];
  let shard: Entry[] = [];
  let size = 0;
  for (const entry of entries) {
    const nbytes = sizeOf(entry[1]);
    if (nbytes > maxShardSize) {
      shards.push([entry]);
      continue;
    }
    if (size + nbytes > maxShardSize) {
      shards.push(shard);
      shard = [];
      size = 0;
    }
    shard.push(entry);
    size += nbytes;
  }
  if (shard.length > 0) shards.push(shard);
  return shards;
}

const sizeOf = (source: StagedTensor): number =>
  "nbytes" in source ? source.nbytes : (byteLengthOf(source.dtype, source.shape) ?? 0);

const escapeNonAscii = (json: string): string =>
  json.replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
