// Which samples go together, in which order: a pure function of lengths, seed and epoch, so that a run that goes on later
// meets the same batches. No batch is padded: samples lie one behind the other and do not see each other.
import { seededRandom } from "../models/seeded-random.js";

/** How the samples of an epoch become batches. */
export interface BatchPlan {
  /** Samples of a batch; with packing, `batchSize * maxLength` tokens instead. */
  readonly batchSize: number;
  readonly seed: number;
  /** Else samples come in the order of the data. */
  readonly shuffle: boolean;
  /** Samples of like length in one batch. */
  readonly groupByLength: boolean;
  /** Tokens that a batch is filled to with samples, or null. */
  readonly packedTokens: number | null;
}

/** Batches that are sorted by length together: as many as keep the order random over an epoch. */
const GROUPED_BATCHES = 50;

/** Numbers of the samples of each batch of an epoch. */
export function epochBatches(lengths: readonly number[], epoch: number, plan: BatchPlan): number[][] {
  const { batchSize, seed, shuffle, groupByLength, packedTokens } = plan;
  // Neighbouring seeds must not give the orders of neighbouring epochs.
  const uniform = seededRandom(seed * 1_000_003 + epoch);
  const order = shuffle ? shuffled(lengths.length, uniform) : lengths.map((_, i) => i);
  const sorted = groupByLength ? groupedByLength(order, lengths, batchSize, uniform) : order;
  return packedTokens === null ? chunks(sorted, batchSize) : packed(sorted, lengths, packedTokens);
}

/** The numbers below n in a random order (Fisher and Yates). */
function shuffled(n: number, uniform: () => number): number[] {
  const order = Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(uniform() * (i + 1));
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  return order;
}

function groupedByLength(
  order: readonly number[],
  lengths: readonly number[],
  batchSize: number,
  uniform: () => number,
): number[] {
  const groups = chunks(order, batchSize * GROUPED_BATCHES).flatMap((group) =>
    chunks(
      group.sort((a, b) => (lengths[b] as number) - (lengths[a] as number)),
      batchSize,
    ),
  );
  // The longest batch comes first, where a lack of memory shows at once; a last short one stays at the end.
  const last = groups.length > 1 && (groups.at(-1) as number[]).length < batchSize ? [groups.pop() as number[]] : [];
  const first = groups.splice(0, 1);
  const mixed = shuffled(groups.length, uniform).map((i) => groups[i] as number[]);
  return [...first, ...mixed, ...last].flat();
}

/** Samples in order, each batch as full as the next sample lets it be. */
function packed(order: readonly number[], lengths: readonly number[], most: number): number[][] {
  const batches: number[][] = [];
  let free = 0;
  for (const i of order) {
    const length = lengths[i] as number;
    if (batches.length === 0 || length > free) {
      batches.push([]);
      free = most;
    }
    (batches.at(-1) as number[]).push(i);
    free -= length;
  }
  return batches;
}

function chunks<T>(items: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) => items.slice(i * size, (i + 1) * size));
}
