// The pool of pages and the scheduler, under random use: a memory of strings stands in for keys and values, and every
// slot must hold what the text up to its token says.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { BlockSequence } from "../../src/generation/block-pool.js";
import { BlockPool } from "../../src/generation/block-pool.js";
import type { Job, Limits } from "../../src/generation/scheduler.js";
import { schedule } from "../../src/generation/scheduler.js";

const seed = 20260901;

class Simulated implements Job {
  readonly order: number;
  readonly ids: number[];
  readonly sequence: BlockSequence;
  readonly prompt: number;
  wanted = 0;

  constructor(order: number, ids: number[], sequence: BlockSequence) {
    this.prompt = ids.length;
    this.order = order;
    this.ids = ids;
    this.sequence = sequence;
  }
}

/** Pages whose slots hold the text that their key and value would depend on. */
class World {
  readonly pool: BlockPool;
  readonly memory: string[];
  jobs: Simulated[] = [];
  order = 0;

  constructor(size: number, sharePrefixes = true) {
    this.pool = new BlockPool(size, { sharePrefixes });
    this.memory = new Array<string>(size * 16).fill("never written");
  }

  open(ids: number[]): Simulated {
    const job = new Simulated(this.order++, ids, this.pool.open());
    this.jobs.push(job);
    return job;
  }

  fork(job: Simulated): Simulated {
    const other = new Simulated(this.order++, [...job.ids], job.sequence.fork());
    this.jobs.push(other);
    return other;
  }

  close(job: Simulated): void {
    job.sequence.dispose();
    this.jobs = this.jobs.filter((other) => other !== job);
  }

  step(limits: Limits) {
    const parts = schedule(this.jobs, limits);
    for (const [from, to] of this.pool.takeCopies()) {
      for (let row = 0; row < 16; row++) this.memory[to * 16 + row] = this.memory[from * 16 + row] as string;
    }
    for (const { job, count } of parts) {
      const start = job.sequence.length;
      job.sequence.append(job.ids.slice(start, start + count));
      for (let p = start; p < start + count; p++) {
        this.memory[job.sequence.slot(p)] = job.ids.slice(0, p + 1).join();
      }
    }
    for (const { job, answers } of parts) if (answers) job.wanted = 0;
    return parts;
  }

  check(): void {
    const users = new Map<number, number>();
    for (const { ids, sequence } of this.jobs) {
      // One comparison a sequence: a matcher for each slot would take most of the time.
      const held = Array.from({ length: sequence.length }, (_, p) => this.memory[sequence.slot(p)] as string);
      const wrong = held.findIndex((text, p) => text !== ids.slice(0, p + 1).join());
      expect(wrong, `a slot of ${ids.join()}`).toBe(-1);
      for (const page of sequence.pages) users.set(page, (users.get(page) ?? 0) + 1);
    }
    expect(this.pool.available).toBe(this.pool.size - users.size);
  }
}

const limits = { tokens: 96, sequences: 6 };

/** Room for so many tokens of prompts. */
const roomFor = (tokens: number) => () => {
  let left = tokens;
  const take = (_: number, count: number) => {
    left -= count;
  };
  return { at: () => left, take };
};

// Zeros with a short end, so that texts often begin alike, also with those of long ago.
const end = fc.array(fc.integer({ min: 0, max: 1 }), { maxLength: 5 });
const text = (max: number) =>
  fc
    .tuple(fc.nat(max - 5), end)
    .map(([zeros, ones]) => [...new Array<number>(zeros).fill(0), ...ones])
    .filter(({ length }) => length > 0);
const actions = fc.array(
  fc.oneof(
    fc.record({ kind: fc.constant("open" as const), ids: text(60), copies: fc.integer({ min: 1, max: 3 }) }),
    fc.record({ kind: fc.constant("ask" as const), who: fc.nat(9), ids: text(6), all: fc.boolean() }),
    fc.record({ kind: fc.constant("fork" as const), who: fc.nat(9) }),
    fc.record({ kind: fc.constant("truncate" as const), who: fc.nat(9), to: fc.nat(70) }),
    fc.record({ kind: fc.constant("close" as const), who: fc.nat(9) }),
    fc.record({ kind: fc.constant("step" as const) }),
    fc.record({ kind: fc.constant("step" as const) }),
  ),
  { maxLength: 60 },
);

describe("pool and scheduler", () => {
  it.each([true, false])("hold what the texts say, and leak no page (shared prefixes: %s)", (share) => {
    fc.assert(
      fc.property(actions, fc.integer({ min: 8, max: 24 }), fc.constantFrom(16, 40, 96), (list, size, prompts) => {
        const world = new World(size, share);
        for (const action of list) {
          const job = "who" in action ? world.jobs[action.who % Math.max(1, world.jobs.length)] : undefined;
          if (action.kind === "open") for (let i = 0; i < action.copies; i++) world.open([...action.ids]).wanted = 1;
          else if (action.kind === "step") {
            const oldest = world.jobs.find(({ wanted }) => wanted > 0);
            const before = oldest?.sequence.length;
            const wanted = new Map(world.jobs.map((job) => [job, job.wanted]));
            const parts = world.step({ ...limits, prompts: roomFor(prompts) });
            const ofPrompts = parts.filter(({ job, count }) => count > (wanted.get(job) as number));
            expect(ofPrompts.reduce((sum, { count }) => sum + count, 0)).toBeLessThanOrEqual(prompts);
            // What is asked for never exceeds the pool here, so the oldest always has its turn.
            if (oldest) {
              expect(parts.some((part) => part.job === oldest)).toBe(true);
              expect(oldest.sequence.length).toBeGreaterThan(before as number);
            }
            expect(parts.reduce((sum, { count }) => sum + count, 0)).toBeLessThanOrEqual(limits.tokens);
            expect(parts.length).toBeLessThanOrEqual(limits.sequences);
            expect(new Set(parts.map((part) => part.job)).size).toBe(parts.length);
          } else if (!job) continue;
          else if (action.kind === "ask" && job.wanted === 0 && job.ids.length < 100) {
            job.ids.push(...action.ids);
            job.wanted = action.all ? action.ids.length : 1;
          } else if (action.kind === "fork" && job.wanted === 0) world.fork(job);
          else if (action.kind === "truncate" && job.wanted === 0) {
            job.ids.length = Math.max(1, Math.min(job.ids.length, action.to));
            job.sequence.truncate(Math.min(job.sequence.length, job.ids.length));
          } else if (action.kind === "close") world.close(job);
          world.check();
        }
        for (const job of [...world.jobs]) world.close(job);
        expect(world.pool.available).toBe(size);
      }),
      { seed, numRuns: 250 },
    );
  });

  it("finish everything that is asked for, however little room there is", () => {
    fc.assert(
      fc.property(
        fc.array(text(110), { minLength: 1, maxLength: 12 }),
        fc.integer({ min: 7, max: 16 }),
        fc.constantFrom(16, 96),
        (all, size, prompts) => {
          const world = new World(size);
          const ends = new Map<Simulated, number>();
          for (const ids of all) {
            const job = world.open(ids);
            job.wanted = 1;
            ends.set(job, Math.min(ids.length + 20, 112));
          }
          for (let steps = 0; world.jobs.length > 0; steps++) {
            expect(steps).toBeLessThan(all.length * 100);
            world.step({ ...limits, prompts: roomFor(prompts) });
            world.check();
            for (const job of world.jobs.filter(({ wanted }) => wanted === 0)) {
              if (job.ids.length >= (ends.get(job) as number)) world.close(job);
              else {
                job.ids.push(job.ids.length % 3);
                job.wanted = 1;
              }
            }
          }
        },
      ),
      { seed, numRuns: 20 },
    );
  });
});

const count = (n: number) => Array.from({ length: n }, (_, i) => i);

describe("schedule", () => {
  it("takes answers before prompts, the older before the younger, prompts in whole pages", () => {
    const world = new World(64);
    const [old, prompt, young] = [[1], count(200), [2, 3]].map((ids) => world.open(ids));
    (old as Simulated).wanted = 1;
    (young as Simulated).wanted = 1;
    world.step(limits);
    (old as Simulated).ids.push(7);
    (young as Simulated).ids.push(7);
    for (const job of world.jobs) job.wanted = 1;
    const parts = world.step({ tokens: 70, sequences: 8 });
    expect(parts.map(({ job, count, answers }) => [job.order, count, answers])).toEqual([
      [0, 1, true],
      [2, 1, true],
      [1, 64, false],
    ]);
    expect((prompt as Simulated).sequence.length).toBe(64);
  });

  it("lets equal prompts wait for the first, and computes only their ends", () => {
    const world = new World(64);
    for (let i = 0; i < 4; i++) world.open(count(50)).wanted = 1;
    expect(world.step({ tokens: 200, sequences: 8 }).map((part) => part.count)).toEqual([50]);
    expect(world.step({ tokens: 200, sequences: 8 }).map((part) => part.count)).toEqual([2, 2, 2]);
    expect(world.pool.size - world.pool.available).toBe(3 + 4);
  });

  it("finds a prefix again after its sequence is gone, until its pages are needed, the end of a chain first", () => {
    const world = new World(6);
    const first = world.open(count(64));
    first.wanted = 1;
    world.step(limits);
    world.close(first);
    expect(world.pool.available).toBe(6);
    // Three pages for others: two empty ones, and the last of the chain.
    world.open(new Array<number>(33).fill(9)).wanted = 1;
    world.step(limits);
    const again = world.open(count(64));
    again.wanted = 1;
    expect(world.step(limits).map((part) => part.count)).toEqual([16]);
    world.check();
  });

  it("takes pages from those for whom nobody waits, then from the youngest, never from an older", () => {
    const world = new World(4);
    const jobs = [3, 2, 1].map((id) => world.open(new Array<number>(16).fill(id)));
    for (const job of jobs) job.wanted = 1;
    world.step(limits);
    const [old, middle, young] = jobs as [Simulated, Simulated, Simulated];
    const ask = (job: Simulated) => {
      job.ids.push(0);
      job.wanted = 1;
    };
    ask(middle);
    ask(young);
    // One page is left for the middle one; the young one's comes from the old one, for whom nobody waits.
    expect(world.step(limits).map((part) => part.job)).toEqual([middle, young]);
    expect(old.sequence.length).toBe(0);
    for (const job of jobs) if (job.wanted === 0) ask(job);
    expect(world.step(limits).map((part) => part.job)).toContain(old);
    expect(young.sequence.length).toBe(0);
    expect(middle.sequence.length).toBe(18);
    world.check();
  });

  it("keeps what other salts hold apart", () => {
    const pool = new BlockPool(8);
    const [a, b, c] = ["x", "y", "x"].map((salt) => pool.open(salt)) as [BlockSequence, BlockSequence, BlockSequence];
    a.reserve(16);
    a.append(count(16));
    b.adopt(count(17), 1);
    c.adopt(count(17), 1);
    expect([b.length, c.length]).toEqual([0, 16]);
    expect(c.pages).toEqual(a.pages);
  });

  it("finds a page no more once other tokens are written to it", () => {
    const pool = new BlockPool(8);
    const a = pool.open();
    a.reserve(16);
    a.append(count(16));
    a.truncate(10); // guesses that were wrong
    a.reserve(6);
    a.append([90, 91, 92, 93, 94, 95]);
    const b = pool.open();
    b.adopt(count(17), 1);
    expect(b.length).toBe(0);
    b.adopt([...count(10), 90, 91, 92, 93, 94, 95, 0], 1);
    expect(b.pages).toEqual(a.pages);
  });

  it("forgets all prefixes when their contents are lost", () => {
    const pool = new BlockPool(4);
    const a = pool.open();
    a.reserve(32);
    a.append(count(32));
    a.dispose();
    pool.forget();
    const b = pool.open();
    b.adopt(count(33), 1);
    expect(b.length).toBe(0);
    expect(pool.available).toBe(4);
  });

  it("holds, shares and forgets more than fit into one call of a function", () => {
    const tokens = 1 << 18;
    const pool = new BlockPool(1 << 18);
    const one = pool.open();
    expect(one.reserve(tokens)).toBe(true);
    one.append(count(tokens));
    const other = one.fork();
    expect([other.length, other.pages]).toEqual([tokens, one.pages]);
    const many = Array.from({ length: (1 << 18) - tokens / 16 }, (_, i) => pool.open(String(i)));
    for (const text of many) {
      text.reserve(16);
      text.append(count(16));
      text.dispose();
    }
    pool.forget();
    expect(pool.available).toBe(many.length);
  });

  it("refuses to count tokens that have no room", () => {
    const sequence = new BlockPool(1).open();
    expect(sequence.reserve(17)).toBe(false);
    expect(sequence.reserve(5)).toBe(true);
    expect(() => sequence.append(count(17))).toThrow("append: ids must be at most the 16 reserved, got 17");
  });
});
