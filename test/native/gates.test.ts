// The compile gates for CUDA kernels: what they read from the compiler's output, and what they let pass.
import { describe, expect, it } from "vitest";
import type { Figures, Table } from "../../.ci/cubin.mjs";
import { compare, formatTable, measure, parsePtxas, parseTable, sectionSizes, shortNames } from "../../.ci/cubin.mjs";

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

/** A 64-bit ELF file of nothing but a header, a table of section names and the sections' headers. */
function elfWith(sections: Record<string, number>): Buffer {
  const names = ["", ".shstrtab", ...Object.keys(sections)];
  const text = Buffer.from(`${names.join("\0")}\0`, "latin1");
  const start = 64 + text.length;
  const elf = Buffer.alloc(start + names.length * 64);
  elf.set([0x7f, 0x45, 0x4c, 0x46, 2, 1]);
  elf.writeBigUInt64LE(BigInt(start), 0x28);
  elf.writeUInt16LE(64, 0x3a);
  elf.writeUInt16LE(names.length, 0x3c);
  elf.writeUInt16LE(1, 0x3e);
  text.copy(elf, 64);
  let at = 0;
  for (const [i, name] of names.entries()) {
    const header = start + i * 64;
    elf.writeUInt32LE(at, header);
    at += name.length + 1;
    if (name === ".shstrtab") elf.writeBigUInt64LE(64n, header + 0x18);
    elf.writeBigUInt64LE(BigInt(name === ".shstrtab" ? text.length : (sections[name] ?? 0)), header + 0x20);
  }
  return elf;
}

const base: Figures = { registers: 40, spill: 0, stack: 0, shared: 1024, code: 4096 };
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

  it("the size of the code comes from the cubin", () => {
    const elf = elfWith({ ".text._Z4sumsPf": 1280, ".text._Z4copyPf": 256, ".nv.info": 20 });
    expect(sectionSizes(elf).get(".nv.info")).toBe(20);
    const found = measure(report, elf);
    expect([...found.values()].map(({ code }) => code)).toEqual([1280, 256]);
    expect(() => sectionSizes(Buffer.alloc(64))).toThrow("not a 64-bit ELF file");
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

describe("the gate", () => {
  const before = tableOf({ a: {} });

  it("lets 5 % pass and no more", () => {
    expect(check(before, tableOf({ a: { registers: 42, code: 4300 } })).wrong).toEqual([]);
    expect(check(before, tableOf({ a: { registers: 43 } })).wrong).toEqual(["a: sm_90 registers 40 -> 43"]);
    expect(check(before, tableOf({ a: { code: 4304 } })).wrong).toEqual(["a: sm_90 code 4096 -> 4304"]);
  });

  it("lets no spill pass that the table does not have", () => {
    expect(check(before, tableOf({ a: { spill: 4 } })).wrong).toEqual(["a: sm_90 spill 0 -> 4"]);
    expect(check(tableOf({ a: { spill: 4 } }), tableOf({ a: { spill: 4 } })).wrong).toEqual([]);
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
    expect(check(before, other({ spill: 8 })).wrong).toEqual(["a: sm_90 spill 0 -> 8"]);
  });
});
