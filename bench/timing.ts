// How everything here is measured: on a device that is synchronized around every repetition, as medians over many,
// and against a peer only in the same run, alternating with it. A peer's threads may go on spinning after its run and
// take a core from whatever is timed next, so nothing is timed before the process is idle, and ours is timed alone, too.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { devices, fmaPeak, randn, synchronize, tidy } from "bitsandbytes-node";

/** Queues the work of one repetition; what it makes is disposed. */
export type Work = () => unknown;

export interface Timing {
  /** Milliseconds. */
  median: number;
  min: number;
  p10: number;
  p90: number;
  reps: number;
}

/** Runs work once, with everything it queued done. Milliseconds. */
export async function once(work: Work): Promise<number> {
  const start = performance.now();
  const result = tidy(() => {
    const value = work();
    return value instanceof Promise ? { value } : undefined;
  });
  if (result) await result.value;
  await synchronize();
  return performance.now() - start;
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const at = q * (sorted.length - 1);
  const low = sorted[Math.floor(at)] as number;
  return low + (at - Math.floor(at)) * ((sorted[Math.ceil(at)] as number) - low);
}

function summarize(times: readonly number[]): Timing {
  const at = (q: number): number => quantile(times, q);
  return { median: at(0.5), min: at(0), p10: at(0.1), p90: at(0.9), reps: times.length };
}

/** At least `reps` repetitions and 0.3 s, after a warm-up. */
export async function time(work: Work, reps = 20): Promise<Timing> {
  for (let i = 0; i < 3; i++) await once(work);
  const times: number[] = [];
  const start = performance.now();
  while (times.length < reps || (performance.now() - start < 300 && times.length < 10_000))
    times.push(await once(work));
  return summarize(times);
}

export interface Comparison {
  ours: Timing;
  peer: Timing;
  /** peer / ours: how many times faster we are; median and spread over the pairs. */
  ratio: { median: number; p10: number; p90: number };
  /** Median of ours alternating with the peer / median of ours alone. Above 1.1 the peer disturbs what it is compared with, or the machine drifted. */
  disturbed: number;
}

/** Waits until the process uses less than 5 % of a core for 10 ms; after half a second gives up. */
async function idle(): Promise<void> {
  const start = performance.now();
  for (;;) {
    const [cpu, at] = [process.cpuUsage(), performance.now()];
    await new Promise((resolve) => setTimeout(resolve, 10));
    const used = process.cpuUsage(cpu);
    const now = performance.now();
    if ((used.user + used.system) / 1000 < 0.05 * (now - at) || now - start > 500) return;
  }
}

/** One repetition in an idle process, right after one that is not timed: threads are awake, as between two layers. */
async function fresh(work: Work): Promise<number> {
  await idle();
  await once(work);
  return once(work);
}

/** Alternates ours and the peer (A B B A ...) on the same inputs. */
export async function compare(ours: Work, peer: Work, pairs = 20): Promise<Comparison> {
  for (let i = 0; i < 3; i++) {
    await once(ours);
    await once(peer);
  }
  const alone: number[] = [];
  const a: number[] = [];
  const b: number[] = [];
  for (let i = 0; i < pairs; i++) alone.push(await fresh(ours));
  for (let i = 0; i < pairs; i++) {
    if (i % 2 === 0) a.push(await fresh(ours));
    b.push(await fresh(peer));
    if (i % 2 === 1) a.push(await fresh(ours));
  }
  const ratios = a.map((t, i) => (b[i] as number) / t);
  const at = (q: number): number => quantile(ratios, q);
  const mine = summarize(a);
  return {
    ours: mine,
    peer: summarize(b),
    ratio: { median: at(0.5), p10: at(0.1), p90: at(0.9) },
    disturbed: mine.median / quantile(alone, 0.5),
  };
}

/** Multiply-adds in registers on all threads of the CPU, GFLOP/s: the best of several runs. */
export async function fmaGigaflops(iterations = 2_000_000): Promise<number> {
  let best = 0;
  for (let i = 0; i < 8; i++) {
    let fmas = 0;
    const ms = await once(async () => {
      const result = fmaPeak(iterations, devices()[0]!);
      fmas = (await result.data())[0] as number;
      result.dispose();
    });
    best = Math.max(best, (2e-6 * fmas) / ms);
  }
  return best;
}

/** What a sum reads from memory a second, 1 GB beyond every cache, in GB/s: the best of several runs. */
export async function readGigabytes(): Promise<number> {
  const elements = 2 ** 28;
  const x = randn([elements]);
  let best = Infinity;
  for (let i = 0; i < 6; i++) best = Math.min(best, await once(() => x.sum()));
  x.dispose();
  return (4e-6 * elements) / best;
}

/** One measured case: what it was, and its figures by name with units in the name ("ms", "GBs", "ofPeak"). */
export interface Result {
  case: string;
  [figure: string]: unknown;
}

/** Writes bench/results/<name>.json with the machine and the commit, and prints a table. */
export function record(name: string, results: readonly Result[], extra: Record<string, unknown> = {}): void {
  const cpu = devices()[0];
  const file = {
    schema: 1,
    name,
    date: new Date().toISOString().slice(0, 10),
    commit: commit(),
    host: {
      cpu: cpu?.name,
      isa: cpu?.isa,
      threads: cpu?.processors,
      node: process.version,
      gpus: devices()
        .slice(1)
        .map((d) => d.name),
    },
    ...extra,
    results,
  };
  mkdirSync("bench/results", { recursive: true });
  const round = (_: string, value: unknown): unknown =>
    typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(4)) : value;
  writeFileSync(`bench/results/${name}.json`, `${JSON.stringify(file, round, 2)}\n`);
  console.table(
    results.map((result) =>
      Object.fromEntries(
        Object.entries(result).map(([key, value]) => [
          key,
          typeof value === "number" ? Number(value.toPrecision(4)) : flat(value),
        ]),
      ),
    ),
  );
}

function flat(value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  const { median } = value as { median?: number };
  return typeof median === "number" ? Number(median.toPrecision(4)) : JSON.stringify(value);
}

function commit(): string {
  try {
    return execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8" }).trim();
  } catch {
    return "unknown";
  }
}
