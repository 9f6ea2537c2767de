// What every group of GPU benchmarks works with: the device, the effort, the ceilings, and where results go. A case
// whose output is wrong gets no time.
import type { Device, DType, Tensor } from "bitsandbytes-node";
import { emptyCache, randn, slice, tidy } from "bitsandbytes-node";
import type { Case, Ceilings, Result, Versus } from "./report.js";
import { result, row, versus } from "./report.js";
import type { Effort, Work } from "./stream.js";
import { compare, time } from "./stream.js";

/** More than any last cache, three times over: how much data the copies of a cold case span. */
const coldBytes = 192e6;

export interface Peer {
  impl: string;
  work: Work;
}

export interface Failure {
  op: string;
  case: Record<string, unknown>;
  error: string;
}

/** Which cases are timed: small shapes, for a machine where nothing can be timed; a choice; or all. */
export type Extent = "tiny" | "quick" | "full";

export interface ContextOptions {
  device: Device;
  effort: Effort;
  extent: Extent;
  ceilings: Ceilings;
  /** When no further case begins, by `performance.now()`. */
  deadline: number;
  /** Called after each case. */
  save: () => void;
}

export class Context {
  readonly device: Device;
  readonly effort: Effort;
  readonly tiny: boolean;
  readonly ceilings: Ceilings;
  readonly results: Result[] = [];
  readonly failures: Failure[] = [];
  /** Cases that the time did not suffice for. */
  readonly notRun: Omit<Failure, "error">[] = [];
  readonly #extent: Extent;
  readonly #deadline: number;
  readonly #save: () => void;

  constructor({ device, effort, extent, ceilings, deadline, save }: ContextOptions) {
    this.device = device;
    this.effort = effort;
    this.tiny = extent === "tiny";
    this.ceilings = ceilings;
    this.#extent = extent;
    this.#deadline = deadline;
    this.#save = save;
  }

  /** What is timed of something at each extent. */
  pick<T>(cases: Record<Extent, T>): T {
    return cases[this.#extent];
  }

  get #isLate(): boolean {
    return performance.now() >= this.#deadline;
  }

  /** Normal random numbers; a product of zeros is faster than a real one. */
  random(shape: readonly number[], dtype: DType, std = 1): Tensor {
    return randn(shape, { dtype, std, device: this.device });
  }

  /** Copies needed for `nbytes` each to be cold in turn. Very small ones stay warm: launching is all their time. */
  copies(nbytes: number, cache: "cold" | "warm" = "cold"): number {
    if (cache === "warm") return 1;
    return this.tiny ? 2 : Math.min(512, Math.ceil(coldBytes / nbytes));
  }

  /** Times a case that `check` finds right: its error must be at most `limit`. */
  async measure(what: Omit<Case, "relErr">, check: Check, ours: Work, peer?: Peer): Promise<void> {
    if (this.#isLate) {
      this.notRun.push({ op: what.op, case: what.case });
      return;
    }
    try {
      const relErr = await check.error();
      if (!(relErr <= check.limit)) throw new Error(`wrong by ${relErr}, at most ${check.limit} is allowed`);
      const full: Case = { ...what, relErr };
      const others: Versus[] = [];
      if (peer) {
        const comparison = await compare(this.device, ours, peer.work, this.effort);
        others.push(versus(peer.impl, comparison));
        this.#add(result(full, comparison.ours, this.ceilings, others));
      } else {
        this.#add(result(full, await time(this.device, ours, this.effort), this.ceilings, others));
      }
    } catch (error) {
      this.fail(what.op, what.case, error);
    }
  }

  #add(found: Result): void {
    this.results.push(found);
    console.log(row(found));
    this.#save();
  }

  /** Runs a case with what it allocates; one that cannot, fails alone. */
  async attempt(op: string, what: Record<string, unknown>, run: () => Promise<void>): Promise<void> {
    if (this.#isLate) {
      this.notRun.push({ op, case: what });
      return;
    }
    try {
      await run();
    } catch (error) {
      this.fail(op, what, error);
      (globalThis as { gc?: () => void }).gc?.();
    }
    // What one case held is not what the next needs.
    emptyCache();
  }

  fail(op: string, what: Record<string, unknown>, error: unknown): void {
    const text = error instanceof Error ? error.message : String(error);
    this.failures.push({ op, case: what, error: text });
    console.log(`FAILED ${op} ${JSON.stringify(what)}: ${text.split("\n")[0]}`);
    this.#save();
  }
}

/** How wrong a case may be, and how wrong it is. */
export interface Check {
  error: () => Promise<number>;
  limit: number;
}

/** For a peer or an op that the test suite alone checks. */
export const unchecked: Check = { error: async () => 0, limit: 0 };

export const bytesOf: Partial<Record<DType, number>> = { float32: 4, float16: 2, bfloat16: 2, int8: 1, uint8: 1 };

/** Entries `start` to before `end` of the first axis, on the host. */
export async function readRows(x: Tensor, start: number, end: number): Promise<Float32Array> {
  const rows = tidy(() => slice(x, 0, start, end));
  const values = await rows.floats();
  rows.dispose();
  return values;
}
