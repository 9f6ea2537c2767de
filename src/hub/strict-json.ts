// JSON read strictly, for files that anybody may have written: duplicate keys, deep nesting and lone surrogates are
// errors, and objects become Maps, so that `__proto__` is a name like any other.

/** What a document holds. Numbers that are not plain non-negative integers up to 2^53 - 1 become NaN. */
export type StrictValue = string | number | boolean | null | readonly StrictValue[] | StrictObject;
export type StrictObject = ReadonlyMap<string, StrictValue>;

const numberToken = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?/y;
const plainInteger = /^\d+$/;
const controlCharacter = /[^ -\uffff]/; // below the space
const loneSurrogate = /\p{Surrogate}/u;
const literals: readonly (readonly [string, StrictValue])[] = [
  ["true", true],
  ["false", false],
  ["null", null],
];

/**
 * Parses `text`, in which only spaces may follow the document. Objects and arrays nest at most `maxDepth` deep.
 * Throws a SyntaxError that says what is wrong and at which character.
 */
export function parseStrictJson(text: string, maxDepth: number): StrictValue {
  let at = 0;
  let depth = 0;

  const fail = (what: string): never => {
    throw new SyntaxError(`${what} at character ${at}`);
  };
  const skipSpace = (): void => {
    for (let c = text.charCodeAt(at); c === 32 || c === 10 || c === 13 || c === 9; c = text.charCodeAt(++at));
  };
  const expect = (character: string): void => {
    skipSpace();
    if (text[at] !== character)
      fail(at < text.length ? `expected "${character}"` : `ends where "${character}" should be`);
    at++;
  };
  /** After an item: whether another one follows. */
  const another = (close: string): boolean => {
    skipSpace();
    const found = text[at];
    if (found !== "," && found !== close) fail(at < text.length ? `expected "," or "${close}"` : "ends too early");
    at++;
    return found === ",";
  };

  function string(): string {
    expect('"');
    const start = at;
    for (;;) {
      const quote = text.indexOf('"', at);
      if (quote < 0) fail("a string that does not end");
      let slashes = 0;
      while (text[quote - 1 - slashes] === "\\" && quote - 1 - slashes >= start) slashes++;
      at = quote + 1;
      if (slashes % 2 === 0) break;
    }
    const raw = text.slice(start, at - 1);
    if (controlCharacter.test(raw)) fail("a control character in a string");
    let value = raw;
    if (raw.includes("\\")) {
      try {
        value = JSON.parse(`"${raw}"`) as string;
      } catch {
        fail("an escape that is not JSON");
      }
    }
    if (loneSurrogate.test(value)) fail("half a surrogate pair");
    return value;
  }

  function object(): StrictObject {
    const entries = new Map<string, StrictValue>();
    at++;
    skipSpace();
    if (text[at] === "}") {
      at++;
      return entries;
    }
    do {
      const key = string();
      if (entries.has(key)) fail(`the key ${JSON.stringify(key.slice(0, 200))} for the second time`);
      expect(":");
      entries.set(key, value());
    } while (another("}"));
    return entries;
  }

  function array(): readonly StrictValue[] {
    const items: StrictValue[] = [];
    at++;
    skipSpace();
    if (text[at] === "]") {
      at++;
      return items;
    }
    do items.push(value());
    while (another("]"));
    return items;
  }

  function nested<T>(read: () => T): T {
    if (++depth > maxDepth) fail(`nested more than ${maxDepth} deep`);
    const result = read();
    depth--;
    return result;
  }

  function value(): StrictValue {
    skipSpace();
    const first = text[at];
    if (first === '"') return string();
    if (first === "{") return nested(object);
    if (first === "[") return nested(array);
    for (const [word, meaning] of literals) {
      if (!text.startsWith(word, at)) continue;
      at += word.length;
      return meaning;
    }
    numberToken.lastIndex = at;
    const token = numberToken.exec(text)?.[0];
    if (token === undefined) return fail(at < text.length ? "no JSON value" : "ends where a value should be");
    at += token.length;
    const parsed = Number(token);
    return plainInteger.test(token) && Number.isSafeInteger(parsed) ? parsed : Number.NaN;
  }

  const document = value();
  while (text[at] === " ") at++;
  if (at < text.length) fail("more than one value");
  return document;
}
