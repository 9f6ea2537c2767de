// The stand-in for vitest in the GPU bundle has everything that the tests ask of vitest.
import { expect, it } from "vitest";
import { filesIn, read, withoutComments } from "../helpers/sources.js";

const standIn = withoutComments(read("tools/gpu-bundle/vitest.mjs"));
// Tests of the repository itself do not travel.
const bundled = filesIn("test", ".ts").filter((path) => !path.startsWith("test/native/"));

it("exports what is imported", () => {
  const lists = [...standIn.matchAll(/^export \{([^}]+)\}/gm)].flatMap((match) => match[1]!.split(","));
  const single = [...standIn.matchAll(/^export (?:const|async function|function) (\w+)/gm)].map((match) => match[1]!);
  const exported = new Set([...lists.map((name) => name.trim()), ...single]);
  const imports = bundled.flatMap((path) =>
    [...read(path).matchAll(/^import \{([^}]+)\} from "vitest"/gm)].flatMap((match) => match[1]!.split(",")),
  );
  const names = new Set(imports.map((name) => name.trim()));
  expect(names.size).toBeGreaterThan(2);
  expect([...names].filter((name) => !exported.has(name))).toEqual([]);
});

it("has the functions of vi that are called", () => {
  const body = /export const vi = \{([\s\S]*?)\n\};/.exec(standIn)![1]!;
  const has = new Set([...body.matchAll(/^ {2}(\w+)[,(]/gm)].map((match) => match[1]!));
  const calls = bundled.flatMap((path) =>
    [...withoutComments(read(path)).matchAll(/\bvi\.(\w+)\(/g)].map((m) => m[1]!),
  );
  expect([...new Set(calls)].filter((name) => !has.has(name))).toEqual([]);
});
