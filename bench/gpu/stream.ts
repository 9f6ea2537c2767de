// How a GPU is timed from JavaScript, which has no events: many repetitions are queued, then one synchronize waits for
// all of them, and the time of an empty loop is taken off ("timing": "stream"). The queue keeps the GPU busy as long as a
// repetition takes it longer than queueing takes here; "queueUs" says how long that is.
import type { Device } from "bitsandbytes-node";
import { tidy } from "bitsandbytes-node";
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
}
export const thorough: Effort = { bursts: 50, fewest: 10, burstUs: 5000 };
export const hasty: Effort = { bursts: 2, fewest: 2, burstUs: 1 };

/** Milliseconds after which a case has bursts enough. */
const patience = 1500;

interface Burst {
  total: number;
  queued: number;
}

async function burst(device: Device, work: Work, launches: number, first: number): Promise<Burst> {
  await device.synchronize();
  const start = performance.now();
  for (let i = 0; i < launches; i++) tidy(() => work(first + i));
  const queued = performance.now() - start;
  await device.synchronize();
  return { total: 1000 * (performance.now() - start), queued: 1000 * queued };
}

const nothing: Work = () => {};

/** Launches a burst needs, found by doubling; this also warms up. */
async function launchesFor(device: Device, work: Work, effort: Effort): Promise<number> {
  if (effort.burstUs <= 1) return 2;
  let launches = 1;
  for (;;) {
    await burst(device, work, launches, 0);
    const { total } = await burst(device, work, launches, 0);
    if (total >= effort.burstUs / 2 || launches >= 4096) {
      // At least 20 in a burst, unless one alone takes long.
      const least = total / launches > 1000 ? 4 : 20;
      return Math.max(least, Math.min(4096, Math.ceil((launches * effort.burstUs) / total)));
    }
    launches *= 2;
  }
}

const goesOn = (bursts: number, start: number, effort: Effort): boolean =>
  bursts < effort.fewest || (bursts < effort.bursts && performance.now() - start < patience);

class Samples {
  readonly us: number[] = [];
  readonly queueUs: number[] = [];
  readonly #device: Device;
  readonly #work: Work;
  readonly #launches: number;
  #first = 0;

  constructor(device: Device, work: Work, launches: number) {
    this.#device = device;
    this.#work = work;
    this.#launches = launches;
  }

  async take(): Promise<number> {
    const empty = await burst(this.#device, nothing, this.#launches, 0);
    const { total, queued } = await burst(this.#device, this.#work, this.#launches, this.#first);
    this.#first += this.#launches;
    const us = Math.max(0, total - empty.total) / this.#launches;
    this.us.push(us);
    this.queueUs.push(queued / this.#launches);
    return us;
  }

  timing(): Timing {
    return {
      us: spread(this.us),
      queueUs: quantile(this.queueUs, 0.5),
      reps: this.us.length,
      launches: this.#launches,
    };
  }
}

/** Bursts of `work`. It gets the number of the repetition, to take another copy of its data each time. */
export async function time(device: Device, work: Work, effort: Effort): Promise<Timing> {
  const samples = new Samples(device, work, await launchesFor(device, work, effort));
  const start = performance.now();
  while (goesOn(samples.us.length, start, effort)) await samples.take();
  return samples.timing();
}

export interface Comparison {
  ours: Timing;
  peer: Timing;
  /** peer / ours over the pairs: how many times faster we are. */
  ratio: Spread;
}

/** Alternates bursts of ours and of the peer: A B B A. */
export async function compare(device: Device, ours: Work, peer: Work, effort: Effort): Promise<Comparison> {
  const a = new Samples(device, ours, await launchesFor(device, ours, effort));
  const b = new Samples(device, peer, await launchesFor(device, peer, effort));
  const ratios: number[] = [];
  const start = performance.now();
  for (let i = 0; goesOn(i, start, effort); i++) {
    const first = i % 2 === 0 ? await a.take() : await b.take();
    const second = i % 2 === 0 ? await b.take() : await a.take();
    const [mine, theirs] = i % 2 === 0 ? [first, second] : [second, first];
    ratios.push(theirs / mine);
  }
  return { ours: a.timing(), peer: b.timing(), ratio: spread(ratios) };
}
