// The compile gates for CUDA kernels: what they read from the compiler's output, and what they let pass.
import { describe, expect, it } from "vitest";
import type { Figures, Table } from "../../tools/cuda/cubin.mjs";
import {
  compare,
  formatTable,
  instructionsPerElement,
  mainLoop,
  measure,
  parsePtxas,
  parseTable,
  sections,
  shortNames,
} from "../../tools/cuda/cubin.mjs";
import { loops } from "../../tools/cuda/sass.mjs";

const report = `ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4sumsPf' for 'sm_90'
ptxas info    : Function properties for _Z4sumsPf
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 128 bytes smem, 396 bytes cmem[0]
ptxas info    : Compiling entry function '_Z4copyPf' for 'sm_90'
ptxas info    : Function properties for _Z4copyPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
ptxas info    : Function properties for _Z6helperf
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
`;

/** A 64-bit ELF file of nothing but a header, sections and their table. */
function elfWith(contents: Record<string, Buffer>): Buffer {
  const names = ["", ".shstrtab", ...Object.keys(contents)];
  const bodies = [Buffer.alloc(0), Buffer.from(`${names.join("\0")}\0`, "latin1"), ...Object.values(contents)];
  const offsets = bodies.map((_, i) => 64 + bodies.slice(0, i).reduce((sum, body) => sum + body.length, 0));
  const start = 64 + bodies.reduce((sum, body) => sum + body.length, 0);
  const elf = Buffer.concat([Buffer.alloc(64), ...bodies, Buffer.alloc(names.length * 64)]);
  elf.set([0x7f, 0x45, 0x4c, 0x46, 2, 1]);
  elf.writeBigUInt64LE(BigInt(start), 0x28);
  elf.writeUInt16LE(64, 0x3a);
  elf.writeUInt16LE(names.length, 0x3c);
  elf.writeUInt16LE(1, 0x3e);
  let name = 0;
  for (const [i, body] of bodies.entries()) {
    const header = start + i * 64;
    elf.writeUInt32LE(name, header);
    elf.writeBigUInt64LE(BigInt(offsets[i] ?? 0), header + 0x18);
    elf.writeBigUInt64LE(BigInt(body.length), header + 0x20);
    name += (names[i] ?? "").length + 1;
  }
  return elf;
}

/**
 * Machine code from a list of "add", "call", "exit" and "bra <to>", each with an "@" before it when it is under a
 * predicate; ends as every kernel does.
 */
function assemble(lines: string[], encoding: "near" | "far"): Buffer {
  const all = [...lines, `bra ${lines.length}`];
  const code = Buffer.alloc(all.length * 16);
  for (const [i, line] of all.entries()) {
    const [operation, to] = line.replace("@", "").split(" ");
    let low = { add: 0x210n, call: 0x944n, exit: 0x94dn, bra: 0x947n }[operation ?? ""] ?? 0n;
    let high = 7n << 23n;
    low |= (line.startsWith("@") ? 0n : 7n) << 12n;
    if (to !== undefined) {
      const units = BigInt(Number(to) - i - 1) * 4n; // of 4 bytes
      const upper = BigInt.asUintN(48, encoding === "near" ? units : units >> 8n);
      if (encoding === "far") low |= (units & 0xffn) << 16n;
      low |= BigInt.asUintN(64, upper << 34n);
      high |= upper >> 30n;
    }
    code.writeBigUInt64LE(low, i * 16);
    code.writeBigUInt64LE(high, i * 16 + 8);
  }
  return code;
}

const base: Figures = { registers: 40, spill: 0, stack: 0, shared: 1024, code: 4096, loop: 100 };
const file = "kernels/sums.cu";
const tableOf = (kernels: Record<string, Partial<Figures>>, compiler = "nvcc 13.0.88"): Table => ({
  compiler,
  archs: ["90"],
  rows: new Map(
    Object.entries(kernels).map(([name, change]) => [`${file}\t${name}`, new Map([["90", { ...base, ...change }]])]),
  ),
});
const check = (before: Table, now: Table) => {
  const { wrong, shrunk } = compare(before, now, [file], ["90"]);
  return { wrong: wrong.map(({ message }) => message), shrunk: shrunk.map(({ message }) => message) };
};

describe("what the compiler says", () => {
  it("registers, spills, stack and shared memory come from ptxas, of kernels only", () => {
    expect(Object.fromEntries(parsePtxas(report))).toEqual({
      _Z4sumsPf: { registers: 40, spill: 16, stack: 8, shared: 128 },
      _Z4copyPf: { registers: 12, spill: 0, stack: 0, shared: 0 },
    });
  });

  it("the size of the code and the main loop come from the cubin", () => {
    const loop = assemble(["add", "add", "@bra 1", "exit"], "far");
    const elf = elfWith({
      ".text._Z4sumsPf": loop,
      ".text._Z4copyPf": assemble(["add", "exit"], "near"),
      ".nv.info": Buffer.alloc(20),
    });
    expect(sections(elf).get(".nv.info")).toHaveLength(20);
    const found = measure(report, elf);
    expect([...found.values()].map(({ code, loop }) => [code, loop])).toEqual([
      [5 * 16, 2],
      [3 * 16, 0],
    ]);
    expect(() => sections(Buffer.alloc(64))).toThrow("not a 64-bit ELF file");
  });

  it("names lose what all kernels share, and keep what tells overloads apart", () => {
    const prefix = "bnb::cuda::(anonymous namespace)::";
    expect(
      shortNames([
        `void ${prefix}rms<bnb::Row<bnb::bf16, (bool)1> >(bnb::bf16 const*, float (*)(int), long)`,
        `${prefix}fill(float*)`,
        `${prefix}fill(int*)`,
      ]),
    ).toEqual(["rms<Row<bf16, (bool)1>>", "fill(float*)", "fill(int*)"]);
  });
});

describe.each(["near", "far"] as const)("the loops of machine code with %s branches", (encoding) => {
  const found = (lines: string[]) => loops(assemble(lines, encoding));

  it("are what a branch goes back over", () => {
    expect(found(["add", "add", "add", "@bra 1", "exit"])).toEqual([{ start: 1, length: 3, path: 3 }]);
    expect(found(["add", "exit"])).toEqual([]);
  });

  it("the path is the longer of two ways", () => {
    // 1: to 4 or on; 2, 3: one way; 4, 5: the other, and the end
    const lines = ["add", "@bra 5", "add", "add", "bra 7", "add", "add", "@bra 1", "exit"];
    expect(found(lines)).toEqual([{ start: 1, length: 7, path: 5 }]);
  });

  it("a call is not on the path, and neither is what stands behind the loop", () => {
    const lines = ["add", "@bra 4", "call", "add", "@bra 7", "@bra 1", "exit", "add", "add", "bra 5"];
    expect(found(lines)).toEqual([{ start: 1, length: 5, path: 3 }]);
  });

  it("a place that is reached past the branch's target is no loop", () => {
    expect(found(["@bra 3", "add", "add", "add", "@bra 2", "exit"])).toEqual([]);
  });

  it("the main loop is the innermost of those that hold most of the work", () => {
    const nested = (inner: number, outer: number) => [
      "add",
      "add",
      ...Array(inner).fill("add"),
      "@bra 2",
      ...Array(outer).fill("add"),
      "@bra 1",
      "exit",
    ];
    expect(mainLoop(assemble(nested(6, 1), encoding))).toBe(7);
    expect(mainLoop(assemble(nested(1, 9), encoding))).toBe(13);
  });

  it("code that does not end with a branch to itself is refused", () => {
    expect(() => loops(Buffer.alloc(64))).toThrow("no branch to itself");
  });
});

describe("the table", () => {
  it("reads as it was written, and is sorted", () => {
    const table = tableOf({ "b<float>": { spill: 4 }, a: {} });
    const text = formatTable(table);
    const read = parseTable(text);
    expect(formatTable(read)).toBe(text);
    expect(read.compiler).toBe(table.compiler);
    expect([...read.rows.keys()]).toEqual([`${file}\ta`, `${file}\tb<float>`]);
    expect(read.rows.get(`${file}\tb<float>`)?.get("90")).toEqual({ ...base, spill: 4 });
  });

  it("may lack an architecture that a kernel does not have", () => {
    const table = { ...tableOf({ a: {} }), archs: ["75", "90"] };
    expect(parseTable(formatTable(table)).rows.get(`${file}\ta`)?.has("75")).toBe(false);
  });
});

describe("instructions per element", () => {
  it("stand beside what the design allows, for the kernels that were measured", () => {
    const measured = tableOf({ "a<float>": { loop: 100 }, b: { loop: 50 } });
    const design = `# file\n${file}\ta<float>\t75\t40\t2.4\n${file}\tb\t90\t25\t2\n${file}\tother\t75\t1\t1\n${file}\tb\t100\t1\t1\n`;
    expect(instructionsPerElement(design, measured, ["90"])).toEqual([
      "a<float>: 2.4 allowed: sm_90 2.50  above the design",
      "b: 2 allowed: sm_90 2.00",
    ]);
  });
});

describe("the gate", () => {
  const before = tableOf({ a: {} });

  it("lets 5 % pass and no more", () => {
    expect(check(before, tableOf({ a: { registers: 42, code: 4300 } })).wrong).toEqual([]);
    expect(check(before, tableOf({ a: { registers: 43 } })).wrong).toEqual(["a: sm_90 registers 40 -> 43"]);
    expect(check(before, tableOf({ a: { code: 4304 } })).wrong).toEqual(["a: sm_90 code 4096 -> 4304"]);
  });

  it("lets no spill pass, also where the table has it", () => {
    expect(check(before, tableOf({ a: { spill: 4 } })).wrong).toEqual(["a: sm_90 spills 4 bytes"]);
    expect(check(tableOf({ a: { spill: 4 } }), tableOf({ a: { spill: 4 } })).wrong).toEqual([
      "a: sm_90 spills 4 bytes",
    ]);
  });

  it("asks for kernels that are missing on either side", () => {
    expect(check(before, tableOf({ a: {}, b: {} })).wrong).toEqual(["b: is not in the table"]);
    expect(check(before, tableOf({})).wrong).toEqual(["a: in the table, but not compiled for sm_90"]);
    expect(check(tableOf({}), tableOf({ a: {} })).wrong).toEqual(["a: is not in the table"]);
  });

  it("mentions what has shrunk", () => {
    expect(check(before, tableOf({ a: { code: 2048 } }))).toEqual({
      wrong: [],
      shrunk: ["a: sm_90 code 4096 -> 2048"],
    });
  });

  it("with another compiler compares spills only", () => {
    const other = (change: Partial<Figures>) => tableOf({ a: change, b: {} }, "nvcc 14.0.1");
    expect(check(before, other({ registers: 80 })).wrong).toEqual([]);
    expect(check(before, other({ spill: 8 })).wrong).toEqual(["a: sm_90 spills 8 bytes"]);
  });
});
