// What crosses as a number means the same on both sides: the lists of TypeScript against the enums of C++.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { quantTypes } from "../../src/ops/codebooks.js";
import { dtypes } from "../../src/tensor/dtype.js";
import * as enums from "../../src/tensor/enums.js";

const csrc = join(import.meta.dirname, "..", "..", "csrc");
const read = (file: string): string => readFileSync(join(csrc, file), "utf8");

interface Value {
  name: string;
  comment: string;
}

// The values of an enum, in order, each with the comment on its line.
function valuesOf(file: string, name: string): Value[] {
  const body = new RegExp(`enum class ${name} : int32_t \\{([^}]*)\\}`).exec(read(file))?.[1];
  if (body === undefined) throw new Error(`${file} has no enum class ${name}`);
  return [...body.matchAll(/(\w+)(?: = -?\d+)?,?[ \t]*(?:\/\/ *(.*))?/g)].map(([, value, comment]) => ({
    name: value as string,
    comment: comment ?? "",
  }));
}

const camelCase = (name: string): string => name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());

const tables: [file: string, name: string, list: readonly string[]][] = [
  ["core/dtype.h", "DType", dtypes],
  ["core/dtype.h", "QuantType", quantTypes],
  ["core/dtype.h", "Codebook", enums.codebooks],
  ["kernels/elementwise.h", "UnaryOp", enums.unaryOps],
  ["kernels/elementwise.h", "BinaryOp", enums.binaryOps],
  ["kernels/reduce.h", "ReduceOp", enums.reduceOps],
  ["kernels/random_fill.h", "Distribution", enums.distributions],
  ["kernels/optimizer_32bit.h", "UpdateRule", enums.updateRules],
  ["kernels/clip_gradients.h", "ClipRule", enums.clipRules],
  ["kernels/linear_4bit.h", "Linear4BitPlan", enums.linear4bitPlans],
  ["kernels/plan/linear_4bit.h", "Linear4BitVariant", enums.linear4bitVariants],
  ["kernels/plan/matmul.h", "MatmulVariant", enums.matmulVariants],
  ["kernels/plan/matmul.h", "MatmulTile", enums.matmulTiles],
];

describe("numbers that cross", () => {
  it.each(tables)("%s: %s", (file, name, list) => {
    const named = (value: string) => (list.includes(value) ? value : camelCase(value));
    expect(valuesOf(file, name).map((value) => named(value.name))).toEqual([...list]);
  });

  it("which functions save their output", () => {
    const marked = valuesOf("kernels/elementwise.h", "UnaryOp").filter((value) => value.comment === "y");
    expect(marked.map((value) => value.name)).toEqual([...enums.unaryFromOutput]);
  });

  it("the native names of variants, of dtypes and of error codes", () => {
    const strings = (text: string | undefined): string[] => [...(text ?? "").matchAll(/"([^"]+)"/g)].map((m) => m[1]!);
    const variants = /kLinear4BitVariants\[\] = \{([^}]*)\}/.exec(read("kernels/plan/linear_4bit.h"))?.[1];
    expect(strings(variants)).toEqual([...enums.linear4bitVariants]);
    const names = /kNames\[\] = \{([^}]*)\}/.exec(read("cuda/kernels/matmul/dispatch.cc"))?.[1];
    expect(strings(names)).toEqual([...enums.matmulVariants]);
    expect(strings(/kDTypeName\[kDTypeCount\] = \{([^}]*)\}/.exec(read("core/dtype.h"))?.[1])).toEqual([...dtypes]);
    const codes = readFileSync(join(csrc, "..", "src", "native", "errors.ts"), "utf8");
    for (const code of strings(read("core/error.cc")))
      if (code.startsWith("ERR_")) expect(codes).toContain(`"${code}"`);
  });

  it("every list of enums.ts is compared", () => {
    const compared = new Set<unknown>([...tables.map(([, , list]) => list), enums.unaryFromOutput]);
    expect(Object.entries(enums).filter(([, list]) => !compared.has(list))).toEqual([]);
  });
});
