// Bodies of requests with something wrong in them: a value that is another, a field too many or too few, bytes that are none
// of JSON.

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const junk: readonly Json[] = [
  ...[null, true, false, 0, -1, 1, 0.5, 2 ** 31, 2 ** 53, -(2 ** 53), 1e308, -0, 129, 4096],
  ...["", "x", "a\u0000b", "\ud800", "😀", "null", "-1", "x".repeat(3000), "__proto__", "data: [DONE]\n\n"],
  ...([
    [],
    {},
    [null],
    [[]],
    [-1],
    [1e9],
    ["x", 1],
    { a: 1 },
    [[1], "a"],
    { type: "text" },
    { type: "json_schema" },
  ] as Json[]),
];
const keys = [
  "__proto__",
  "constructor",
  "toString",
  "",
  "stream",
  "n",
  "tools",
  "functions",
  "prompt",
  "input",
  "messages",
];

/** A copy of `body` that is changed in one to three ways, as bytes. */
export function mutatedBody(body: object, random: () => number): Buffer {
  const copy = structuredClone(body) as Json;
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;
  for (let i = 1 + Math.floor(random() * 3); i > 0; i--) changeValue(copy, random, pick);
  const bytes = Buffer.from(JSON.stringify(copy));
  return random() < 0.7 ? bytes : changeBytes(bytes, random, pick);
}

function changeValue(root: Json, random: () => number, pick: <T>(list: readonly T[]) => T): void {
  let at = root as { [key: string]: Json };
  // Down to some depth, by chance.
  for (;;) {
    const inner = Object.values(at).filter((value) => typeof value === "object" && value !== null);
    if (inner.length === 0 || random() < 0.6) break;
    at = pick(inner) as { [key: string]: Json };
  }
  const own = Object.keys(at);
  const way = random();
  if (own.length === 0 || way < 0.15) {
    Object.defineProperty(at, Array.isArray(at) ? String(own.length) : pick(keys), {
      value: structuredClone(pick(junk)),
      enumerable: true,
      configurable: true,
      writable: true,
    });
  } else if (way < 0.25) Reflect.deleteProperty(at, pick(own));
  else if (way < 0.3) at[pick(own)] = deep(200);
  else at[pick(own)] = structuredClone(pick(junk));
}

function deep(depth: number): Json {
  let value: Json = 1;
  for (let i = 0; i < depth; i++) value = i % 2 === 0 ? [value] : { a: value };
  return value;
}

function changeBytes(bytes: Buffer, random: () => number, pick: <T>(list: readonly T[]) => T): Buffer {
  const at = Math.floor(random() * bytes.length);
  const byte = Buffer.of(Math.floor(random() * 256));
  return pick([
    () => bytes.subarray(0, at),
    () => Buffer.concat([bytes.subarray(0, at), byte, bytes.subarray(at + 1)]),
    () => Buffer.concat([bytes.subarray(0, at), byte, bytes.subarray(at)]),
    () => Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.min(bytes.length, at + 5))]),
    () => Buffer.concat([bytes, bytes]),
    () => Buffer.from(`[${String(bytes)}]`),
    () => Buffer.from(JSON.stringify(String(bytes))),
    () => Buffer.alloc(0),
  ])();
}
