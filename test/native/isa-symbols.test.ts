// What the kernels' object files define and need. A weak symbol compiled with AVX-512 flags could be the copy that
// the linker keeps for everyone, so each object may define only functions of its own namespace, and none weak.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { root } from "../helpers/sources.js";

const isas = process.arch === "x64" ? ["base", "avx2", "avx512"] : ["base"];

// CMake and node-gyp put their objects in different folders.
function objects(isa: string): string[] {
  const folders = [`build/CMakeFiles/kernels_${isa}.dir`, `build/Release/obj.target/kernels_${isa}`];
  const folder = folders.map((path) => join(root, path)).find((path) => existsSync(path));
  if (!folder) return [];
  const names = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".o"));
  return names.map((name) => join(folder, name));
}

interface Symbol {
  kind: string;
  name: string;
}

function symbols(paths: string[]): Symbol[] {
  const lines = execFileSync("nm", ["--demangle", "--extern-only", ...paths], { encoding: "utf8", maxBuffer: 1 << 28 });
  return [...lines.matchAll(/^(?:[0-9a-f]+|\s+) (\w) (.+)$/gm)].map((match) => ({ kind: match[1]!, name: match[2]! }));
}

describe.each(isas)("kernels_%s", (isa) => {
  const all = symbols(objects(isa));

  it("has objects to look at", () => {
    expect(all.filter((symbol) => symbol.kind === "T").length).toBeGreaterThan(0);
  });

  it("defines only functions of its own namespace", () => {
    // A pointer to what unwinds the stack, which each object brings along: data, not code.
    const personality = (symbol: Symbol) => symbol.name === "DW.ref.__gxx_personality_v0";
    const defined = all.filter((symbol) => !["U", "w", "v"].includes(symbol.kind) && !personality(symbol));
    expect(defined.filter((symbol) => !symbol.name.startsWith(`bnb::cpu_${isa}::`))).toEqual([]);
    expect(defined.filter((symbol) => !["T", "R", "D", "B"].includes(symbol.kind))).toEqual([]);
  });

  it("needs only what the process offers to kernels", () => {
    const offered = [
      /^bnb::(parallel_range|thread_count|take_scratch|give_back_scratch|report_fault|has_avx_vnni)\(/,
      // For scratch memory to be given back while an exception passes.
      /^(__gxx_personality_v0|_Unwind_Resume)$/,
      // The C library's, which exist once.
      /^(memcpy|memmove|memset|memcmp|powf|_GLOBAL_OFFSET_TABLE_|__stack_chk_fail)$/,
    ];
    const needed = new Set(all.filter((symbol) => symbol.kind === "U").map((symbol) => symbol.name));
    // A kernel may call another kernel of its own ISA.
    const foreign = [...needed].filter(
      (name) => !name.startsWith(`bnb::cpu_${isa}::`) && !offered.some((pattern) => pattern.test(name)),
    );
    expect(foreign).toEqual([]);
  });
});
