// The loops of a compiled CUDA kernel, read from its machine code: 16 bytes an instruction since compute capability
// 7.0, its operation in the lowest 12 bits. Only branches are decoded; what they do was checked against the branch to
// itself that ends every kernel.

const branches = new Set([0x947, 0x547]); // BRA, and BRA on a uniform predicate
const ends = new Set([0x94d, 0x950, 0x949, 0x94a]); // EXIT, RET, BRX, JMP: nothing after them is reached through them
const switches = new Set([0x949]); // BRX: to one of several places, which only its table knows
const calls = new Set([0x943, 0x944]); // CALL: under a predicate a branch, else of the slow path of a division

/** @typedef {{ start: number, length: number, path: number }} Loop in instructions */
/** @typedef {{ start: number, end: number, slow: boolean, next: number[] }} Block `end` is exclusive; `next` are blocks */

/**
 * Where a branch at byte `at` of the code goes: 4-byte units, counted from the next instruction.
 * @param {bigint} low
 * @param {bigint} high
 * @param {number} at
 */
function target(low, high, at) {
  const upper = BigInt.asIntN(48, (low >> 34n) | (high << 30n));
  // Since 9.0 the lowest eight bits stand apart; before, they are zero and the others are not shifted.
  const apart = (low >> 16n) & 0xffn;
  return { near: at + 16 + Number(upper) * 4, far: at + 16 + Number((upper << 8n) | apart) * 4 };
}

/** @param {Buffer} code */
function decode(code) {
  const count = code.length / 16;
  /** @type {(i: number) => [low: bigint, high: bigint]} */
  const words = (i) => [code.readBigUInt64LE(i * 16), code.readBigUInt64LE(i * 16 + 8)];
  /** @type {(i: number) => boolean} */
  const isBranch = (i) => {
    const low = words(i)[0];
    const operation = Number(low & 0xfffn);
    return branches.has(operation) || (calls.has(operation) && ((low >> 12n) & 0xfn) !== 7n);
  };
  // Which of the two encodings this is, the branch to itself tells.
  /** @type {"near" | "far" | null} */
  let encoding = null;
  for (let i = count - 1; i >= 0 && encoding === null; i--) {
    if (!isBranch(i)) continue;
    const to = target(...words(i), i * 16);
    encoding = to.near === i * 16 ? "near" : to.far === i * 16 ? "far" : null;
  }
  if (encoding === null) throw new Error("no branch to itself at the end: this encoding of branches is not known");
  const jumps = new Map();
  const stops = new Set();
  const slow = new Set();
  const tables = new Set();
  for (let i = 0; i < count; i++) {
    const [low, high] = words(i);
    const unpredicated = ((low >> 12n) & 0xfn) === 7n;
    // BRA.DIV is taken by a warp whose threads have come apart; ours have not where it stands.
    const diverged = ((high >> 27n) & 1n) === 1n;
    if (isBranch(i)) {
      const to = target(low, high, i * 16)[encoding] / 16;
      if (!Number.isInteger(to) || to < 0 || to >= count) throw new Error(`instruction ${i} branches to ${to}`);
      jumps.set(i, { to, always: unpredicated && ((high >> 23n) & 0x1fn) === 7n, never: diverged });
    } else if (ends.has(Number(low & 0xfffn)) && unpredicated) stops.add(i);
    else if (calls.has(Number(low & 0xfffn))) slow.add(i);
    if (switches.has(Number(low & 0xfffn))) tables.add(i);
  }
  return { count, jumps, stops, slow, tables };
}

/**
 * Basic blocks in order of their address.
 * @param {ReturnType<typeof decode>} decoded
 * @returns {Block[]}
 */
function blocks({ count, jumps, stops, slow, tables }) {
  const starts = new Set([0]);
  for (const [i, { to }] of jumps) starts.add(to).add(i + 1);
  for (const i of stops) starts.add(i + 1);
  const sorted = [...starts].filter((start) => start < count).sort((a, b) => a - b);
  const index = new Map(sorted.map((start, i) => [start, i]));
  const graph = sorted.map((start, i) => {
    const end = sorted[i + 1] ?? count;
    const jump = jumps.get(end - 1);
    const next = jump && !jump.never ? [/** @type {number} */ (index.get(jump.to))] : [];
    if (!jump?.always && !stops.has(end - 1) && i + 1 < sorted.length) next.push(i + 1);
    return { start, end, next, slow: [...slow].some((i) => start <= i && i < end) };
  });
  // A table leads to where nothing else does.
  const reached = new Set(graph.flatMap((block) => block.next));
  for (const block of graph) {
    if (tables.has(block.end - 1)) block.next.push(...[...graph.keys()].filter((i) => i > 0 && !reached.has(i)));
  }
  return graph;
}

/**
 * For each block the set of blocks through which every path from the entry to it goes, as bits of a BigInt.
 * @param {Block[]} graph
 */
function dominators(graph) {
  /** @type {number[][]} */
  const before = graph.map(() => []);
  graph.forEach((block, i) => {
    for (const next of block.next) before[next].push(i);
  });
  const all = (1n << BigInt(graph.length)) - 1n;
  const found = graph.map((_, i) => (i === 0 ? 1n : all));
  for (let changed = true; changed; ) {
    changed = false;
    for (let i = 1; i < graph.length; i++) {
      const through = before[i].reduce((both, from) => both & found[from], all) | (1n << BigInt(i));
      if (through !== found[i]) [found[i], changed] = [through, true];
    }
  }
  return { found, before };
}

/**
 * The loops of one kernel, given its code (the section .text.<name> of a cubin), in the order of their addresses:
 * in instructions. The length is from the first of the loop to the last branch back to it; the
 * path is the longest way through one turn of it, loops inside counted once. What the compiler moved out of the way
 * because it is rarely run does not count.
 * @param {Buffer} code
 * @returns {Loop[]}
 */
export function loops(code) {
  const graph = blocks(decode(code));
  const { found: dominating, before } = dominators(graph);
  const unreached = (1n << BigInt(graph.length)) - 1n; // subroutines are not reached by branches
  /** @type {(a: number, b: number) => boolean} */
  const dominates = (a, b) => ((dominating[b] >> BigInt(a)) & 1n) === 1n;
  /** @type {(i: number) => number} */
  const size = (i) => graph[i].end - graph[i].start;
  const loops = new Map(); // by header
  graph.forEach((block, from) => {
    if (from > 0 && dominating[from] === unreached) return;
    for (const header of block.next) {
      if (!dominates(header, from)) continue;
      if (from === header && size(from) === 1) continue; // the one that ends the kernel
      const loop = loops.get(header) ?? { body: new Set([header]), last: from };
      loop.last = Math.max(loop.last, from);
      const reach = [from];
      for (let i = reach.pop(); i !== undefined; i = reach.pop()) {
        if (loop.body.has(i)) continue;
        loop.body.add(i);
        reach.push(...before[i]);
      }
      loops.set(header, loop);
    }
  });
  return [...loops]
    .map(([header, { body, last }]) => {
      const inside = [...body].filter((i) => i >= header && i <= last);
      const longest = new Map(); // from a block to the end of the turn; -Infinity where no way leads there
      /** @type {(i: number) => number} */
      const way = (i) => {
        if (longest.has(i)) return longest.get(i);
        longest.set(i, -Infinity);
        const ahead = graph[i].next.map((next) =>
          next === header ? 0 : !inside.includes(next) || dominates(next, i) ? -Infinity : way(next),
        );
        const path = graph[i].slow ? -Infinity : size(i) + Math.max(...ahead);
        longest.set(i, path);
        return path;
      };
      const length = inside.reduce((n, i) => n + size(i), 0);
      return { start: graph[header].start, length, path: way(header) };
    })
    .sort((a, b) => a.start - b.start);
}
