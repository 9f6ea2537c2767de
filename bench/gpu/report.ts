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
  timing: Timing["timing"];
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

const columns = ["op", "case", "cache", "timing", "us", "floor", "share", "error", "versus"] as const;
const widths = [26, 66, 5, 6, 8, 8, 5, 7, 0];
const isNumber = (column: string): boolean => ["us", "floor", "share", "error"].includes(column);
const line = (cells: readonly string[]): string =>
  cells.map((cell, i) => (isNumber(columns[i]!) ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!))).join(" ");

/** The table's head; its rows are printed as they come, so that a run that is cut short has shown what it found. */
export const heading = (): string => line(columns);

export function row(r: Result): string {
  const value = (x: unknown): string => (Array.isArray(x) ? x.join("x") : String(x));
  const cells: Record<(typeof columns)[number], string> = {
    op: r.op,
    case: Object.entries(r.case)
      .filter(([key, x]) => !(key === "nested" && x === false))
      .map(([key, x]) => (["dtype", "quantType", "model", "set"].includes(key) ? value(x) : `${key}=${value(x)}`))
      .join(" "),
    cache: r.cache,
    timing: r.timing,
    us: fixed(r.us.median),
    floor: fixed(r.floorUs),
    share: `${(100 * r.ofCeiling).toFixed(0)} %`,
    error: r.relErr === null ? "-" : r.relErr.toExponential(1),
    versus: r.versus.map((v) => `${v.ratio.toFixed(2)}x ${v.impl}`).join(", "),
  };
  return line(columns.map((name) => cells[name])).trimEnd();
}

/** What a Python program found: a case, or why it could not go on. */
export type Baseline =
  | (Pick<Result, "op" | "case" | "us" | "timing"> & { impl: string })
  | { op: string; error: string };

export function baselineRow(found: Baseline): string {
  if ("error" in found) return `FAILED ${found.op}: ${found.error}`;
  const described = Object.entries(found.case).map(([key, x]) => (typeof x === "number" ? `${key}=${x}` : String(x)));
  return `${found.impl}: ${found.op} ${described.join(" ")} ${found.timing} ${fixed(found.us.median)} us`;
}

const fixed = (us: number): string => (us < 100 ? us.toFixed(2) : us.toFixed(0));
