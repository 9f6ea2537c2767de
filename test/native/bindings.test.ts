// Every native op is declared in ops.h, bound in bindings.cc, typed in addon.ts and used by the library.
import { describe, expect, it } from "vitest";
import { camelCase, filesIn, read, withoutComments } from "../helpers/sources.js";

const matches = (path: string, pattern: RegExp) => [...withoutComments(read(path)).matchAll(pattern)];

// A declaration at the start of a line: a type, which may span template arguments, a name, an opening parenthesis.
const declared = matches("csrc/ops/ops.h", /^[\w:]+(?:<[^;(]*>)?[&*\s]+(\w+)\(/gm).map((match) => camelCase(match[1]!));
const bound = matches("csrc/napi/bindings.cc", /\bbind<\s*&ops::(\w+)\s*>\(\s*"(\w+)\b/g);
const typed = matches("src/tensor/addon.ts", /^\s*(\w+):\s*NativeOp</gm).map((match) => match[1]!);

describe("native ops", () => {
  it("are found", () => {
    expect(declared.length).toBeGreaterThan(10);
  });

  it("have one name in two spellings", () => {
    for (const [, op, name] of bound) expect(name).toBe(camelCase(op!));
  });

  it("are declared, bound and typed alike", () => {
    const names = bound.map((match) => match[2]!).sort();
    expect(new Set(names).size).toBe(names.length);
    expect(names).toEqual([...declared].sort());
    expect([...typed].sort()).toEqual(names);
  });

  it("are all used", () => {
    const sources = filesIn("src", ".ts").filter((path) => !path.startsWith("src/native/"));
    const text = sources.map((path) => withoutComments(read(path))).join("\n");
    expect(typed.filter((name) => !new RegExp(`\\baddon\\.${name}\\b`).test(text))).toEqual([]);
  });
});
