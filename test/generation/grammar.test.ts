// Texts that are what a format says: a random model at a high temperature writes JSON that another library finds valid, texts
// beside it are untouched, and what cannot be compiled is refused by name.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Ajv } from "ajv";
import fc from "fast-check";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { TextOptions } from "../../src/generation/index.js";
import { Engine } from "../../src/generation/index.js";
import type { GrammarText } from "../../src/hub/grammars.js";
import { compileLimit } from "../../src/hub/grammars.js";
import type { ResponseFormat } from "../../src/hub/index.js";
import { AutoTokenizer } from "../../src/hub/index.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import { bnb } from "../helpers/bnb.js";

const root = mkdtempSync(join(tmpdir(), "bnb-grammar-"));
const folder = join(root, "model");
let model: CausalLM;

beforeAll(async () => {
  const sizes = ["--hidden-size", "32", "--intermediate-size", "64", "--layers", "1", "--dtype", "float32"];
  expect(await bnb("make-model", folder, ...sizes, "--device", "cpu")).toMatchObject({ code: 0 });
  model = await AutoModelForCausalLM.fromPretrained(folder, { deviceMap: "cpu" });
});
afterAll(() => {
  model.dispose();
  rmSync(root, { recursive: true });
});

/** A byte each is a token. Those that begin characters of three bytes or none would mostly be followed by others. */
const rare = Object.fromEntries(
  [0xc0, 0xc1, ...Array.from({ length: 32 }, (_, i) => 0xe0 + i)].map((id) => [id, -100]),
);
/** The end of a string is one byte of 250, which a bias makes likelier. */
const drawn: TextOptions = {
  ...{ doSample: true, temperature: 2, topK: 0, maxNewTokens: 900 },
  logitBias: {
    ...rare,
    [`"`.charCodeAt(0)]: 6,
    ["}".charCodeAt(0)]: 4,
    ["]".charCodeAt(0)]: 4,
  },
};

async function write(responseFormat: ResponseFormat, options: TextOptions = {}): Promise<string> {
  const [one] = await model.complete("Say it:", { ...drawn, seed: 1, responseFormat, ...options });
  expect(one!.finishReason).toBe("stop");
  return one!.text!;
}

const { schemas } = fc.letrec((tie) => ({
  schemas: fc.oneof(
    { maxDepth: 3, depthSize: "small" },
    fc.constantFrom<object>(
      { type: "integer" },
      { type: "number" },
      { type: "boolean" },
      { type: "null" },
      { type: "string", maxLength: 5 },
      { enum: ["red", "green", 3, null] },
      { const: { a: [1, "two"] } },
      { type: ["string", "null"], maxLength: 3 },
      { type: "string", pattern: "^[a-c]{2,4}-[0-9]+$" },
      { type: "string", pattern: "^.[^a][ -~]\\s$" },
      { type: "string", format: "email" },
      { type: "string", format: "date-time" },
      { type: "string", minLength: 3 },
      { type: "integer", minimum: -3, maximum: 12 },
    ),
    fc
      .record({ items: tie("schemas"), minItems: fc.constantFrom(0, 1, 2), more: fc.constantFrom(0, 2) })
      .map(({ items, minItems, more }) => ({ type: "array", items, minItems, maxItems: minItems + more })),
    fc.array(tie("schemas"), { minLength: 1, maxLength: 3 }).chain((values) =>
      fc.subarray(values.map((_, i) => `p${i}`)).map((required) => ({
        type: "object",
        properties: Object.fromEntries(values.map((value, i) => [`p${i}`, value])),
        required,
        additionalProperties: false,
      })),
    ),
    fc.array(tie("schemas"), { minLength: 1, maxLength: 2 }).map((anyOf) => ({ anyOf })),
  ),
}));

describe("a schema", () => {
  it("of any kind is kept", async () => {
    const ajv = new Ajv({ strict: false, validateFormats: false });
    const samples = fc.sample(schemas as fc.Arbitrary<object>, { numRuns: 80, seed: 11 });
    const kinds = new Set<unknown>();
    await Promise.all(
      samples.map(async (schema, seed) => {
        const text = await write({ type: "json_schema", schema }, { seed });
        const value: unknown = JSON.parse(text);
        const isValid = ajv.validate(schema, value);
        expect(isValid, `${text} of ${JSON.stringify(schema)}: ${ajv.errorsText()}`).toBe(true);
        kinds.add(Array.isArray(value) ? "array" : value === null ? "null" : typeof value);
      }),
    );
    expect([...kinds].sort()).toEqual(["array", "boolean", "null", "number", "object", "string"]);
  });

  it("may be recursive, and with strict: false have properties that it does not name", async () => {
    const node = {
      $defs: {
        node: {
          type: "object",
          properties: { value: { type: "integer" }, next: { anyOf: [{ $ref: "#/$defs/node" }, { type: "null" }] } },
          required: ["value", "next"],
          additionalProperties: false,
        },
      },
      $ref: "#/$defs/node",
    };
    expect(new Ajv().validate(node, JSON.parse(await write({ type: "json_schema", schema: node })))).toBe(true);
    const open = { type: "object", properties: { a: { type: "integer" } }, required: ["a"] };
    const keys = await Promise.all(
      [1, 2, 3].map(async (seed) => {
        const options = { seed, logitBias: { ...rare, [`"`.charCodeAt(0)]: 6 } };
        return Object.keys(JSON.parse(await write({ type: "json_schema", schema: open, strict: false }, options)));
      }),
    );
    for (const key of keys) expect(key).toContain("a");
    expect(Math.max(...keys.map(({ length }) => length))).toBeGreaterThan(1);
  });
});

describe("a format", () => {
  it("may be a JSON object, or a grammar", async () => {
    for (const seed of [1, 2, 3]) {
      const value: unknown = JSON.parse(await write({ type: "json_object" }, { seed }));
      expect(value !== null && typeof value === "object" && !Array.isArray(value)).toBe(true);
    }
    const grammar = 'root ::= "(" ("yes" | "no") (", " root)? ")"';
    expect(await write({ type: "grammar", grammar })).toMatch(/^(\((yes|no)(, )?)+\)+$/);
  });

  it("ends its text where nothing can end it but itself", async () => {
    const format = { type: "grammar", grammar: 'root ::= [a-c]{3} "."' } as const;
    const [one] = await model.complete("a", { ...drawn, seed: 1, responseFormat: format, eosTokenId: [] });
    expect(one!.text).toMatch(/^[a-c]{3}\.$/);
    expect(one).toMatchObject({ finishReason: "stop" });
    expect(one!.tokens).toHaveLength(4);
  });

  it("allows what the other rules of the text allow", async () => {
    const grammar = "root ::= [a-z]{5}";
    const text = await write(
      { type: "grammar", grammar },
      { prefixAllowedTokens: () => [..."aeiou0"].map((one) => one.charCodeAt(0)).concat(258) },
    );
    expect(text).toMatch(/^[aeiou]{5}$/);
  });

  it("changes nothing of texts beside it, and text is none", async () => {
    using engine = new Engine(model, { kvTokens: 4096 });
    const plain = { ...drawn, seed: 5, maxNewTokens: 30 };
    const take = async (options: TextOptions): Promise<number[]> => {
      const made: number[] = [];
      for await (const id of engine.submit("Beside", options)) made.push(id);
      return made;
    };
    const want = await take(plain);
    expect(await take({ ...plain, responseFormat: { type: "text" } })).toEqual(want);
    const [beside] = await Promise.all([
      take(plain),
      take({ ...drawn, seed: 2, responseFormat: { type: "json_object" } }),
    ]);
    expect(beside).toEqual(want);
  });
});

describe("what is refused", () => {
  it.each<[format: unknown, message: string]>([
    [{ type: "yaml" }, 'responseFormat.type must be text, json_object, json_schema or grammar, got "yaml"'],
    [{ type: "json_schema" }, "responseFormat.schema must be an object, got undefined"],
    [
      { type: "json_schema", schema: { type: "nope" } },
      'responseFormat must be one that can be compiled, got: Unsupported type "nope"',
    ],
    [{ type: "json_schema", schema: { $ref: "#/x" } }, "got: Cannot find field x"],
    [{ type: "grammar", grammar: 'root ::= "a' }, "responseFormat must be one that can be compiled, got: EBNF"],
    [{ type: "grammar", grammar: 3 }, "responseFormat.grammar must be a text of at most 65536 characters, got 3"],
    [
      { type: "json_schema", schema: { type: "array", items: { type: "array", uniqueItems: true } } },
      "responseFormat.schema.items must have no keyword that a grammar cannot keep where it is strict, got uniqueItems",
    ],
    [
      { type: "json_schema", schema: { type: "object", required: ["a"] } },
      'responseFormat.schema.required must name properties where it is strict, got "a"',
    ],
    [
      { type: "json_schema", schema: { description: "x".repeat(70_000) } },
      "responseFormat.schema must have at most 65536 characters as JSON, got 70018",
    ],
    [
      { type: "json_schema", schema: JSON.parse(`${'{"items":'.repeat(40)}{}${"}".repeat(40)}`) },
      "responseFormat.schema must have at most 32 levels, got more",
    ],
  ])("%o", async (format, message) => {
    const options = { responseFormat: format as ResponseFormat, maxNewTokens: 4 };
    await expect(model.complete("a", options)).rejects.toThrow(message);
    await expect(model.complete("a", options)).rejects.toMatchObject({ code: "ERR_BNB_OPTION" });
  });

  it("a format of beams", async () => {
    const options = { responseFormat: { type: "json_object" }, numBeams: 2 } as const;
    await expect(model.complete("a", options)).rejects.toThrow(
      "complete: responseFormat must come without beams, got 2",
    );
  });
});

it("texts are followed while another grammar is compiled, also one that was compiled behind theirs", async () => {
  const tokenizer = await AutoTokenizer.fromPretrained(folder);
  const { grammars } = tokenizer;
  const open = (letters: string) =>
    grammars.open("test", "format", { type: "grammar", grammar: `root ::= "${letters}"` }, [258]);
  using first = await open("abcdef");
  using second = await open("ghijkl");
  using third = await open("abcdef");
  const slow = { type: "grammar", grammar: 'root ::= ([a-z]{1,900} "b"){1,90}' } as const;
  let isOver = false;
  const compiling = grammars.compile("test", "format", slow).catch((error: unknown) => {
    isOver = true;
    return error;
  });
  for (const [text, letters] of [
    [first, "abcdef"],
    [second, "ghijkl"],
    [third, "abcdef"],
  ] as const) {
    for (const letter of letters) await text.accept(letter.charCodeAt(0));
    await text.accept(258);
    expect([text.isOver, isOver]).toEqual([true, false]);
  }
  tokenizer.dispose();
  await compiling;
});

describe("a grammar that takes too long", () => {
  const { ms } = compileLimit;
  afterEach(() => {
    compileLimit.ms = ms;
  });

  it("is refused, and texts that follow others go on", async () => {
    const { grammars } = model.tokenizer!;
    const grammar = 'root ::= "abcdef"';
    using text = await grammars.open("test", "format", { type: "grammar", grammar }, [258]);
    await text.accept("a".charCodeAt(0));
    compileLimit.ms = 0;
    const slow = { type: "grammar", grammar: 'root ::= ([a-z]{1,900} "b"){1,90}' } as const;
    await expect(grammars.compile("test", "format", slow)).rejects.toThrow(
      "test: format must be one that can be compiled, got: it takes more than 0 ms",
    );
    for (const letter of "bcdef") {
      const id = letter.charCodeAt(0);
      const allowed = [...Array(259).keys()].filter((i) => (text.allowed![i >> 5]! >> (i & 31)) & 1);
      expect(allowed).toEqual([id]);
      await text.accept(id);
    }
    expect(text.isOver).toBe(false);
    await text.accept(258);
    expect(text.isOver).toBe(true);
  });

  it("is refused alone where its thread has texts that are waited for", async () => {
    const { grammars } = model.tokenizer!;
    const words = ["ab", "cd", "ef", "gh", "ij", "kl"];
    const source = (word: string) => ({ type: "grammar", grammar: `root ::= "${word}"` }) as const;
    // One after another, each in the thread that has least to do: all have texts then.
    const texts: GrammarText[] = [];
    for (const word of words) texts.push(await grammars.open("test", "format", source(word), [258]));
    compileLimit.ms = 300;
    const slow = { type: "grammar", grammar: 'root ::= (("a"|"b"){1,900} "c"){1,900}' } as const;
    const refused = grammars.compile("test", "format", slow).then(
      () => "compiled",
      (error: Error) => error.message,
    );
    await new Promise((resolve) => setTimeout(resolve, 30));
    await Promise.all(texts.map((text, i) => text.accept(words[i]!.charCodeAt(0))));
    expect(await refused).toContain("got: it takes more than 300 ms");
    for (const [i, text] of texts.entries()) {
      await text.accept(words[i]!.charCodeAt(1));
      await text.accept(258);
      expect(text.isOver).toBe(true);
      text.dispose();
    }
  });

  it("of a tokenizer that is disposed meanwhile is not called wrong", async () => {
    const tokenizer = await AutoTokenizer.fromPretrained(folder);
    const compiling = tokenizer.grammars.compile("test", "format", { type: "json_object" });
    setTimeout(() => tokenizer.dispose(), 20);
    await expect(compiling).rejects.toMatchObject({ code: "ERR_BNB_DISPOSED", message: "Tokenizer: it was disposed" });
  });
});
