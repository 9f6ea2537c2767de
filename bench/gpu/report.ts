// What a GPU benchmark reports: the cases with their floors, the ceilings of the run, one JSON file, a short table.
import type { Comparison, Timing } from "./stream.js";

export interface Ceilings {
  /** Read plus written bytes of a large copy. */
  copyGBs: number;
  /** A bfloat16 product of random matrices. */
  gemmBf16TFLOPs: number;
}

export interface Case {
  group: number;
  op: string;
  /** What was measured: shapes, types, block sizes. */
  case: Record<string, unknown>;
  cache: "cold" | "warm";
  /** Each input read once, each output written once. */
  requiredBytes: number;
  /** Floating-point operations that need the matrix units; 0 where memory is the only limit. */
  flops: number;
  /** Against float64 or, where "exact", 0 for equal bits; null where the suite checks what this does not. */
  relErr: number | null;
}

export interface Versus {
  impl: string;
  /** Theirs over ours. */
  ratio: number;
  p10: number;
  p90: number;
  us: number;
}

export interface Result extends Case {
  impl: "ours";
  timing: "stream";
  us: Timing["us"];
  queueUs: number;
  reps: number;
  launches: number;
  GBs: number;
  TFLOPs: number;
  /** The floor's time over ours. */
  ofCeiling: number;
  floorUs: number;
  versus: Versus[];
}

export const floorUs = ({ requiredBytes, flops }: Case, ceilings: Ceilings): number =>
  Math.max(requiredBytes / ceilings.copyGBs / 1e3, flops / ceilings.gemmBf16TFLOPs / 1e6);

export function result(what: Case, timing: Timing, ceilings: Ceilings, versus: Versus[] = []): Result {
  const floor = floorUs(what, ceilings);
  const { median } = timing.us;
  return {
    ...what,
    impl: "ours",
    timing: "stream",
    ...timing,
    GBs: what.requiredBytes / median / 1e3,
    TFLOPs: what.flops / median / 1e6,
    floorUs: floor,
    ofCeiling: floor / median,
    versus,
  };
}

export function versus(impl: string, { ratio, peer }: Comparison): Versus {
  return { impl, ratio: ratio.median, p10: ratio.p10, p90: ratio.p90, us: peer.us.median };
}

/** Numbers to four digits, as the result files hold them. */
export const rounded = (_: string, value: unknown): unknown =>
  typeof value === "number" && !Number.isInteger(value) && Number.isFinite(value)
    ? Number(value.toPrecision(4))
    : value;

/** ||a - b|| / ||b||; infinity if a value is not finite. */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (a[i]! - b[i]!) ** 2;
    norm += b[i]! ** 2;
  }
  const error = Math.sqrt(difference / (norm || 1));
  return Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
}

export function print(results: readonly Result[]): void {
  const rows = results.map((r) => ({
    op: r.op,
    case: Object.entries(r.case)
      .map(([key, value]) => `${key}=${Array.isArray(value) ? value.join("x") : String(value)}`)
      .join(" "),
    cache: r.cache,
    us: fixed(r.us.median),
    floor: fixed(r.floorUs),
    share: `${(100 * r.ofCeiling).toFixed(0)} %`,
    error: r.relErr === null ? "-" : r.relErr.toExponential(1),
    versus: r.versus.map((v) => `${v.ratio.toFixed(2)}x ${v.impl}`).join(", "),
  }));
  const columns = Object.keys(rows[0] ?? {}) as (keyof (typeof rows)[number])[];
  const widths = columns.map((name) => Math.max(name.length, ...rows.map((row) => row[name].length)));
  const line = (cells: string[]): string =>
    cells
      .map((cell, i) => (i < 3 || i === 7 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)))
      .join("  ")
      .trimEnd();
  console.log(line([...columns]));
  for (const row of rows) console.log(line(columns.map((name) => row[name])));
}

const fixed = (us: number): string => (us < 100 ? us.toFixed(2) : us.toFixed(0));
