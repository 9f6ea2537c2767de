// How a GPU is timed from JavaScript, which has no events: many repetitions are queued, then one synchronize waits for
// all of them, and the time of an empty loop is taken off ("timing": "stream"). The queue keeps the GPU busy as long as a
// repetition takes it longer than queueing takes here; "queueUs" says how long that is. Repetitions so short that it might
// not are recorded as one graph, which is replayed ("timing": "graph"): the time is then the GPU's own.
import type { Device, Graph } from "bitsandbytes-node";
import { BnbError, capture, tidy } from "bitsandbytes-node";
import { quantile } from "../timing.js";

/** Queues repetition i; what it makes is disposed. */
export type Work = (i: number) => void;

export interface Spread {
  median: number;
  p10: number;
  p90: number;
}

export interface Timing {
  /** Microseconds a repetition. */
  us: Spread;
  /** Microseconds until JavaScript has queued one. */
  queueUs: number;
  timing: "stream" | "graph";
  /** Bursts that were timed, and repetitions in each. */
  reps: number;
  launches: number;
}

export function spread(values: readonly number[]): Spread {
  const [median, p10, p90] = [0.5, 0.1, 0.9].map((q) => quantile(values, q)) as [number, number, number];
  return { median, p10, p90 };
}

export interface Effort {
  /** Bursts wanted, and how many there must be however long they take. */
  bursts: number;
  fewest: number;
  /** Microseconds that a burst should take. */
  burstUs: number;
  /** Milliseconds after which a case has bursts enough. */
  patience: number;
}
export const thorough: Effort = { bursts: 50, fewest: 10, burstUs: 5000, patience: 1500 };
export const quick: Effort = { bursts: 20, fewest: 5, burstUs: 3000, patience: 300 };
export const hasty: Effort = { bursts: 2, fewest: 2, burstUs: 1, patience: 0 };

/** Repetitions shorter than this, in microseconds, are recorded; and so many at most. */
const recordBelow = 50;
const recorded = 256;

interface Burst {
  total: number;
  queued: number;
}

/** `launches` repetitions, from number `first` on; a graph does many of them at once. */
async function burst(device: Device, work: Work, launches: number, first: number, step = 1): Promise<Burst> {
  await device.synchronize();
  const start = performance.now();
  for (let i = 0; i < launches; i += step) tidy(() => work(first + i));
  const queued = performance.now() - start;
  await device.synchronize();
  return { total: 1000 * (performance.now() - start), queued: 1000 * queued };
}

const nothing: Work = () => {};

/** How a burst is made. */
interface Plan {
  work: Work;
  launches: number;
  /** Repetitions that one call of `work` does. */
  step: number;
  graph: Graph<void> | null;
}

async function planFor(device: Device, work: Work, effort: Effort): Promise<Plan> {
  const { launches, us } = await launchesFor(device, work, effort);
  const step = Math.min(launches, recorded);
  const graph = us < recordBelow ? record(device, work, step) : null;
  if (!graph) return { work, launches, step: 1, graph };
  return { work: () => graph.replay(), launches: Math.ceil(launches / step) * step, step, graph };
}

/** Null for work that cannot be recorded, such as work that makes tensors of JavaScript's numbers. */
function record(device: Device, work: Work, calls: number): Graph<void> | null {
  const all = (): void => {
    for (let i = 0; i < calls; i++) tidy(() => work(i));
  };
  try {
    return capture(all, { device });
  } catch (error) {
    if (error instanceof BnbError && error.code === "ERR_BNB_UNSUPPORTED") return null;
    throw error;
  }
}

/** Launches a burst needs, found by doubling, and microseconds that one takes; this also warms up. */
async function launchesFor(device: Device, work: Work, effort: Effort): Promise<{ launches: number; us: number }> {
  if (effort.burstUs <= 1) {
    await burst(device, work, 1, 0);
    return { launches: 2, us: 0 };
  }
  let launches = 1;
  for (;;) {
    await burst(device, work, launches, 0);
    const { total } = await burst(device, work, launches, 0);
    if (total >= effort.burstUs / 2 || launches >= 4096) {
      // At least 20 in a burst, unless one alone takes long.
      const least = total / launches > 1000 ? 4 : 20;
      const wanted = Math.max(least, Math.min(4096, Math.ceil((launches * effort.burstUs) / total)));
      return { launches: wanted, us: total / launches };
    }
    launches *= 2;
  }
}

const goesOn = (bursts: number, start: number, effort: Effort): boolean =>
  bursts < effort.fewest || (bursts < effort.bursts && performance.now() - start < effort.patience);

class Samples {
  readonly us: number[] = [];
  readonly queueUs: number[] = [];
  readonly #device: Device;
  readonly #plan: Plan;
  #first = 0;

  constructor(device: Device, plan: Plan) {
    this.#device = device;
    this.#plan = plan;
  }

  async take(): Promise<number> {
    const { work, launches, step } = this.#plan;
    const empty = await burst(this.#device, nothing, launches, 0, step);
    const { total, queued } = await burst(this.#device, work, launches, this.#first, step);
    this.#first += launches;
    const us = Math.max(0, total - empty.total) / launches;
    this.us.push(us);
    this.queueUs.push(queued / launches);
    return us;
  }

  /** What was found; the samples end with it. */
  finish(): Timing {
    const { graph, launches } = this.#plan;
    graph?.dispose();
    return {
      us: spread(this.us),
      queueUs: quantile(this.queueUs, 0.5),
      timing: graph ? "graph" : "stream",
      reps: this.us.length,
      launches,
    };
  }
}

/** Bursts of `work`. It gets the number of the repetition, to take another copy of its data each time. */
export async function time(device: Device, work: Work, effort: Effort): Promise<Timing> {
  const samples = new Samples(device, await planFor(device, work, effort));
  const start = performance.now();
  while (goesOn(samples.us.length, start, effort)) await samples.take();
  return samples.finish();
}

export interface Comparison {
  ours: Timing;
  peer: Timing;
  /** peer / ours over the pairs: how many times faster we are. */
  ratio: Spread;
}

/** Alternates bursts of ours and of the peer: A B B A. */
export async function compare(device: Device, ours: Work, peer: Work, effort: Effort): Promise<Comparison> {
  const a = new Samples(device, await planFor(device, ours, effort));
  const b = new Samples(device, await planFor(device, peer, effort));
  const ratios: number[] = [];
  const start = performance.now();
  for (let i = 0; goesOn(i, start, effort); i++) {
    const first = i % 2 === 0 ? await a.take() : await b.take();
    const second = i % 2 === 0 ? await b.take() : await a.take();
    const [mine, theirs] = i % 2 === 0 ? [first, second] : [second, first];
    ratios.push(theirs / mine);
  }
  return { ours: a.finish(), peer: b.finish(), ratio: spread(ratios) };
}
