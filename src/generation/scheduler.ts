// What the next step computes: a pure function of who waits, of the pool of pages and of a budget of tokens.
import { pageSize } from "../models/step-plan.js";
import type { BlockSequence } from "./block-pool.js";

/** A sequence as the scheduler sees it. */
export interface Job {
  /** Its age: the oldest has the smallest. */
  readonly order: number;
  /** All tokens known; the keys and values of the first `sequence.length` are there. */
  readonly ids: readonly number[];
  readonly sequence: BlockSequence;
  /** How many of the last tokens must be in the step that answers; 0 when nobody waits for an answer. */
  readonly wanted: number;
  /** Tokens that were there from the start: computed in parts. Those behind come one by one. */
  readonly prompt: number;
  /** How many of the next tokens may be computed in one part. Default: all. */
  readonly alike?: number;
}

/** The next `count` tokens of a job. */
export interface Part<J extends Job> {
  readonly job: J;
  readonly count: number;
  /** Whether they are the last ones. */
  readonly answers: boolean;
}

/** How much of prompts a step has room for; at least a page at first. */
export interface PromptRoom {
  /** How many tokens from a position on. */
  at(position: number): number;
  take(position: number, count: number): void;
}

export interface Limits {
  /** Tokens of a step. */
  tokens: number;
  /** Sequences of a step. */
  sequences: number;
  /** What has room of prompts in a step in which so many texts have their next token. Default: as much as in the step. */
  prompts?: (answers: number) => PromptRoom;
  /**
   * Whether the parts of a sequence are the same however much room there is and whatever it lost: one page of the prompt,
   * then one token.
   */
  steady?: boolean;
}

/**
 * The parts of the next step, for which pages are reserved.
 *
 * Jobs that have all but their last tokens behind them come first, then parts of prompts, the older before the younger,
 * in multiples of 16 tokens. Pages that hold what a job needs next are taken over. Where pages are missing, somebody
 * loses his and computes them again later: first those for whom nobody waits, then the youngest, never an older for
 * a younger. So the oldest that waits always gets its turn, if the pool can hold it at all.
 */
export function schedule<J extends Job>(jobs: readonly J[], limits: Limits): Part<J>[] {
  const byAge = [...jobs].sort((a, b) => a.order - b.order);
  const waiting = byAge.filter((job) => job.wanted > 0).slice(0, limits.sequences);
  for (const job of waiting) job.sequence.adopt(job.ids, job.wanted);
  const parts = new Map<J, Part<J>>();
  const pending = (job: J) => job.ids.length - job.sequence.length;
  const left = () => [...parts.values()].reduce((rest, part) => rest - part.count, limits.tokens);

  /** Reserves pages, at the cost of others if need be. */
  const secure = (job: J, count: number): boolean => {
    while (!job.sequence.reserve(count)) {
      const loses = victim(byAge, job);
      if (!loses) return false;
      loses.sequence.truncate(0);
      parts.delete(loses);
    }
    return true;
  };

  const isAnswering = (job: J) => pending(job) === job.wanted;
  const prompts = waiting.filter((job) => !isAnswering(job));
  // A prompt that is the oldest has its turn also next to many answers.
  const kept = prompts[0] && prompts[0] === waiting[0] ? pageSize : 0;
  for (const job of waiting.filter(isAnswering)) {
    const count = pending(job);
    const fits = count <= left() - kept || (parts.size === 0 && kept === 0);
    if (fits && pending(job) === job.wanted && secure(job, count)) parts.set(job, { job, count, answers: true });
  }

  const ofPrompts = limits.prompts?.(parts.size);
  const coming = new Set<string>();
  for (const job of prompts) {
    const key = job.sequence.nextKey(job.ids);
    // An older one computes the same tokens right now: wait for its pages.
    if (key !== null && coming.has(key)) continue;
    const { length } = job.sequence;
    const room = Math.min(ofPrompts?.at(length) ?? Infinity, parts.size === 0 ? limits.tokens : left());
    const count = limits.steady ? steadyPart(job, room) : partOf(job, room);
    if (count === 0 || !secure(job, count)) continue;
    parts.set(job, { job, count, answers: count === pending(job) });
    ofPrompts?.take(length, count);
    if (key !== null) coming.add(key);
  }
  return [...parts.values()];
}

/** How many tokens of a prompt fit: all, or as many as end at the end of a page and leave `wanted` together. */
function partOf({ sequence: { length }, ids, wanted, alike = Infinity }: Job, room: number): number {
  const pending = ids.length - length;
  if (alike < pending && alike <= room) return Math.min(alike, pending - wanted);
  if (pending <= room) return pending;
  const most = Math.min(room, pending - wanted);
  const end = Math.floor((length + most) / pageSize) * pageSize;
  return Math.max(0, end - length);
}

function steadyPart({ sequence: { length }, ids, prompt }: Job, room: number): number {
  const end =
    length < prompt ? Math.min(prompt, ids.length, (Math.floor(length / pageSize) + 1) * pageSize) : length + 1;
  return end - length <= room ? end - length : 0;
}

function victim<J extends Job>(byAge: readonly J[], job: J): J | undefined {
  const holders = byAge.filter((other) => other !== job && other.sequence.pages.length > 0);
  const idle = holders.filter((other) => other.wanted === 0);
  return idle.at(-1) ?? holders.filter((other) => other.order > job.order).at(-1);
}
