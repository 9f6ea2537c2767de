// How much of prompts a step may have, so that those who wait for their next token do not wait longer than a step may take.
// What it costs is learned from the steps as they run: a token costs the more the more tokens stand before it, since it
// looks at all of them, and the next tokens of other texts cost what a step of them alone took.
import { pageSize } from "../models/step-plan.js";
import type { PromptRoom } from "./scheduler.js";

/** Tokens of the first step, before anything is known. */
const first = 64;
/** How many times as many tokens a step may have as any before it. */
const mostChange = 4;
/** How many times as long a step may take in which no text has its next token: large steps are the most efficient. */
const longer = 4;
/** Of a step for prompts, where the next tokens of others leave less. */
const leastShare = 1 / 8;
/** Tokens after which an earlier step counts half: how the cost grows lasts. */
const halfLife = 8192;
/** What the cost of earlier steps counts as a multiple of that: how busy the machine is does not last. */
const keptOfPace = 0.5;

/** Tokens of a prompt from a position on. */
export interface Chunk {
  readonly position: number;
  readonly count: number;
}

/** What a step had, and how long it took. */
export interface StepTimes {
  readonly chunks: readonly Chunk[];
  /** Texts that had their next token. */
  readonly answers: number;
  readonly seconds: number;
}

export class StepBudget {
  readonly #seconds: number;
  readonly #most: number;
  #tried = first / mostChange;
  readonly #line = new Line();
  /** What tokens cost now, as a multiple of what the line says. */
  #pace = 1;
  /** The last step without prompts. */
  #rest = { answers: 1, seconds: 0 };

  /** `seconds` that a step should take at most; `most` tokens of prompts that it may ever have. */
  constructor(seconds: number, most: number) {
    this.#seconds = seconds;
    this.#most = most;
  }

  /** For prompts, in a step in which so many texts have their next token: never less than a page, so that prompts go on. */
  room(answers: number): PromptRoom {
    if (!Number.isFinite(this.#seconds)) return new Room(Number.MAX_VALUE, this.#most, new Line());
    const seconds = answers === 0 ? longer * this.#seconds : this.#seconds;
    const left = Math.max(seconds - this.#restOf(answers), seconds * leastShare);
    return new Room(left / this.#pace, Math.min(this.#most, this.#tried * mostChange), this.#line);
  }

  record({ chunks, answers, seconds }: StepTimes): void {
    const tokens = chunks.reduce((sum, { count }) => sum + count, 0);
    if (tokens === 0 && answers > 0) {
      const known = this.#rest;
      this.#rest = { answers, seconds: known.answers === answers ? (known.seconds + seconds) / 2 : seconds };
    }
    // So few say what any step takes.
    if (tokens < Math.min(pageSize, this.#most)) return;
    const cost = Math.max(seconds - this.#restOf(answers), seconds / 100);
    const expected = chunks.reduce((sum, { position, count }) => sum + this.#line.cost(position, count), 0);
    if (expected > 0) {
      const pace = Math.min(mostChange, Math.max(1 / mostChange, cost / expected));
      this.#pace = keptOfPace * this.#pace + (1 - keptOfPace) * pace;
    }
    const seen = chunks.reduce((sum, { position, count }) => sum + count * (position + count / 2), 0);
    // Steps are as long as each other: those of fewer tokens say less of one.
    this.#line.fade(0.5 ** (tokens / halfLife));
    this.#line.add(seen / tokens, cost / tokens, tokens ** 2);
    this.#tried = Math.max(this.#tried, tokens);
  }

  /** What the next tokens of so many texts take, as far as one knows: of more than have been seen at least as much. */
  #restOf(answers: number): number {
    return this.#rest.seconds * Math.min(1, answers / this.#rest.answers);
  }
}

const keys = ["x", "y", "xx", "xy"] as const;

/** What a token costs, by its position: the line through what has been seen. */
class Line {
  #weight = 0;
  readonly #sums = { x: 0, y: 0, xx: 0, xy: 0 };
  #base = 0;
  #slope = 0;

  /** What has been seen counts so much less. */
  fade(factor: number): void {
    this.#weight *= factor;
    for (const key of keys) this.#sums[key] *= factor;
  }

  add(x: number, y: number, weight: number): void {
    const sums = this.#sums;
    const own = { x, y, xx: x * x, xy: x * y };
    this.#weight += weight;
    for (const key of keys) sums[key] += weight * own[key];
    const mean = (key: keyof typeof sums): number => sums[key] / this.#weight;
    // Positions within a page of each other say little of how it grows.
    const slope = (mean("xy") - mean("x") * mean("y")) / (mean("xx") - mean("x") ** 2 + pageSize ** 2);
    this.#slope = Math.min(Math.max(0, slope), mean("y") / mean("x"));
    this.#base = mean("y") - this.#slope * mean("x");
  }

  /** Of tokens from a position on. */
  cost(position: number, count: number): number {
    return count * (this.#base + this.#slope * (position + count / 2));
  }

  /** How many from a position on cost no more than that. */
  count(position: number, cost: number): number {
    if (cost <= 0) return 0;
    const one = this.#base + this.#slope * position;
    return (2 * cost) / (one + Math.sqrt(one ** 2 + 2 * this.#slope * cost));
  }
}

class Room implements PromptRoom {
  #cost: number;
  #tokens: number;
  readonly #line: Line;
  #isFirst = true;

  constructor(cost: number, tokens: number, line: Line) {
    this.#cost = cost;
    this.#tokens = tokens;
    this.#line = line;
  }

  at(position: number): number {
    const fits = Math.floor(Math.min(this.#tokens, this.#line.count(position, this.#cost)));
    return this.#isFirst ? Math.max(fits, Math.min(pageSize, this.#tokens)) : fits;
  }

  take(position: number, count: number): void {
    this.#isFirst = false;
    this.#tokens -= count;
    this.#cost -= this.#line.cost(position, count);
  }
}
