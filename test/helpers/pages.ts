// Sequences of keys and values laid out in shuffled pages, for tests of what reads and writes those.
import type { Tensor } from "../../src/index.js";
import { tensor } from "../../src/index.js";
import type { KvLayer } from "../../src/ops/kv-append.js";
import type { PageTable } from "../../src/ops/paged-attention.js";
import { noise } from "./noise.js";
import { uniforms } from "./random.js";
import type { FloatDType } from "./tolerance.js";

export const pageRows = 16;

/** A sequence: how many keys it has, and how many of its last tokens are rows of the step. */
export interface SequenceSizes {
  keys: number;
  rows: number;
}

/** Pages for sequences, drawn from a shuffled pool with some to spare; `pageOf[s][i]` is page i of sequence s. */
export function shuffledPages(sequences: readonly SequenceSizes[], seed = 1): { pages: number; pageOf: number[][] } {
  const counts = sequences.map(({ keys }) => Math.ceil(keys / pageRows));
  const pages = counts.reduce((a, b) => a + b, 0) + 3;
  const next = uniforms(seed);
  const pool = Array.from({ length: pages }, (_, i) => i);
  for (let i = pages - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [pool[i], pool[j]] = [pool[j]!, pool[i]!];
  }
  return { pages, pageOf: counts.map((n) => pool.splice(0, n)) };
}

/** The slot of token `at` of a sequence. */
export function slotOf(pages: readonly number[], at: number): number {
  return pages[Math.floor(at / pageRows)]! * pageRows + (at % pageRows);
}

/** The table of a step; entries beyond a sequence's pages are garbage that must not be read. */
export function pageTable(sequences: readonly SequenceSizes[], pageOf: number[][], device: string): PageTable {
  const int = (values: number[], shape: number[]): Tensor => tensor(values, { shape, dtype: "int32", device });
  const most = Math.max(1, ...pageOf.map((pages) => pages.length)) + 1;
  const starts = [0];
  for (const { rows } of sequences) starts.push(starts.at(-1)! + rows);
  const rows = pageOf.flatMap((pages) => [...pages, ...Array<number>(most - pages.length).fill(-77)]);
  return {
    starts: int(starts, [starts.length]),
    lengths: int(
      sequences.map(({ keys }) => keys),
      [sequences.length],
    ),
    pages: int(rows, [sequences.length, most]),
  };
}

export type PageType = FloatDType | "int8";

/** A layer full of noise, the table of a step over it, and each sequence's keys and values [keys, heads, dim]. */
export function pagedLayer(
  sequences: readonly SequenceSizes[],
  { kvHeads, dim }: { kvHeads: number; dim: number },
  dtype: PageType,
  device: string,
): { layer: KvLayer; table: PageTable; keys: Float64Array[]; values: Float64Array[] } {
  const { pages, pageOf } = shuffledPages(sequences);
  const rows = pages * kvHeads * pageRows;
  const shape = [pages, kvHeads, pageRows, dim];
  const make = (seed: number): Tensor => {
    const data = noise(rows * dim, seed);
    if (dtype !== "int8") return tensor(data, { shape, dtype, device });
    return tensor(
      Int8Array.from(data, (x) => Math.max(-127, Math.min(127, Math.round(40 * x)))),
      { shape, device },
    );
  };
  const scales = (seed: number): Tensor =>
    tensor(
      noise(rows, seed).map((x) => (1 + x * x) / 80),
      { shape: shape.slice(0, 3), device },
    );
  const layer: KvLayer = {
    keys: make(11),
    values: make(12),
    ...(dtype === "int8" && { keyScales: scales(13), valueScales: scales(14) }),
  };
  const read = (x: Tensor, by?: Tensor): Float64Array[] => {
    const [data, scale] = [x.floatsSync(), by?.floatsSync()];
    return sequences.map(({ keys }, s) => {
      const out = new Float64Array(keys * kvHeads * dim);
      for (let j = 0; j < keys; j++)
        for (let h = 0; h < kvHeads; h++) {
          const row = (pageOf[s]![Math.floor(j / pageRows)]! * kvHeads + h) * pageRows + (j % pageRows);
          for (let d = 0; d < dim; d++)
            out[(j * kvHeads + h) * dim + d] = data[row * dim + d]! * (scale === undefined ? 1 : scale[row]!);
        }
      return out;
    });
  };
  return {
    layer,
    table: pageTable(sequences, pageOf, device),
    keys: read(layer.keys, layer.keyScales),
    values: read(layer.values, layer.valueScales),
  };
}
