// Calls in texts that come in any pieces.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Tokenizer } from "../../src/hub/index.js";
import type { Delta } from "../../src/serve/tools/call-parser.js";
import { CallParser } from "../../src/serve/tools/call-parser.js";
import type { ToolFormat } from "../../src/serve/tools/choose.js";
import { chooseDialect } from "../../src/serve/tools/choose.js";
import type { ToolFunction } from "../../src/serve/tools/dialect.js";

const withTemplate = (template: string): Tokenizer =>
  ({ chatTemplates: new Map([["default", template]]) }) as unknown as Tokenizer;

/** Pieces of one text or of one call as one. */
function joined(deltas: readonly Delta[]): (string | [string, string])[] {
  const parts: (string | [string, string])[] = [];
  for (const delta of deltas) {
    const last = parts.at(-1);
    if (delta.type === "call") parts.push([delta.name, ""]);
    else if (delta.type === "arguments" && !last) parts.push(["", delta.text]);
    else if (delta.type === "arguments") (last as [string, string])[1] += delta.text;
    else if (typeof last === "string") parts[parts.length - 1] = last + delta.text;
    else parts.push(delta.text);
  }
  return parts;
}

const tricky = '{"a": "}]\\" </tool_call> {", "b": [{"c": {}}, "\\\\"]}';
const cases: [template: string, text: string, parts: unknown[]][] = [
  [
    "<tool_call>",
    `Let me <tool see.\n<tool_call>\n{"name": "f", "arguments": ${tricky}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>`,
    ["Let me <tool see.\n", ["f", tricky], ["g", "{}"]],
  ],
  ["<tool_call>", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call> and so', [["f", "{}"], " and so"]],
  ["<|python_tag|>", `{"name": "f", "parameters": ${tricky}}`, [["f", tricky]]],
  ["<|python_tag|>", `<|python_tag|>{"name": "f", "parameters": {}}`, [["f", "{}"]]],
  [
    "[TOOL_CALLS] [",
    `Well [TOOL_CALLS] [{"name": "f", "arguments": ${tricky}}, {"name": "g", "arguments": {}}]`,
    ["Well ", ["f", tricky], ["g", "{}"]],
  ],
  [
    "[TOOL_CALLS][ARGS]",
    `[TOOL_CALLS]f[ARGS]${tricky}[TOOL_CALLS]g[ARGS]{"x": 1}`,
    [
      ["f", tricky],
      ["g", '{"x": 1}'],
    ],
  ],
  // Cut off.
  ["<tool_call>", 'a<tool_call>\n{"name": "f", "argum', ['a<tool_call>\n{"name": "f", "argum']],
  ["<tool_call>", '<tool_call>\n{"name": "f", "arguments": {"a": "b', [["f", '{"a": "b']]],
  ["<tool_call>", "one < two <tool", ["one < two <tool"]],
];

const write: ToolFunction = {
  name: "write",
  strict: false,
  parameters: {
    type: "object",
    properties: {
      path: { type: "string" },
      lines: { type: "integer" },
      note: { anyOf: [{ type: "string" }, { type: "null" }] },
      more: { $ref: "#/$defs/more" },
    },
    $defs: { more: { type: "object" } },
  },
};
const xml = (...values: [name: string, value: string][]) =>
  `<tool_call>\n<function=write>\n${values.map(([name, value]) => `<parameter=${name}>\n${value}\n</parameter>\n`).join("")}</function>\n</tool_call>`;
const code = 'if (a < b) {\n  say("\\t</parameter>");\n}\n</paramete\n';
const xmlCases: [text: string, parts: unknown[]][] = [
  [
    `Now <tool see.${xml(["path", code], ["lines", "12"], ["note", "null"], ["more", '{"a": "\\n"}'])}`,
    ["Now <tool see.", ["write", { path: code, lines: 12, note: null, more: { a: "\n" } }]],
  ],
  // What is a text of numbers stays one; what its schema does not have is what it looks like.
  [
    `${xml(["path", "12"], ["note", "12"], ["other", "[1]"], ["another", "[1"])}\n${xml()}`,
    [
      ["write", { path: "12", note: "12", other: [1], another: "[1" }],
      ["write", {}],
    ],
  ],
  [xml(["path", ""]), [["write", { path: "" }]]],
];

describe("a parser of calls as XML", () => {
  const { shape, reader } = chooseDialect(withTemplate("<tool_call>\n<function="))!;
  const parserOf = () => new CallParser(shape, (name) => reader!(name === "write" ? write : undefined));

  it.each(xmlCases)("finds those of %j however it is cut", (text, parts) => {
    fc.assert(
      fc.property(fc.array(fc.nat(text.length), { maxLength: 12 }), (cuts) => {
        const parser = parserOf();
        const at = [...new Set([0, ...cuts, text.length])].sort((a, b) => a - b);
        const deltas = at.slice(1).flatMap((end, i) => parser.push(text.slice(at[i], end)));
        const found = joined([...deltas, ...parser.end()]);
        expect(found.map((part) => (typeof part === "string" ? part : [part[0], JSON.parse(part[1])]))).toEqual(parts);
      }),
      { numRuns: 60, seed: 4 },
    );
  });

  it("tells texts as they come, and nothing more of a call that was cut off", () => {
    const parser = parserOf();
    const text = "<tool_call>\n<function=write>\n<parameter=path>\nsrc/a.ts and more";
    expect(joined([...parser.push(text), ...parser.end()])).toEqual([["write", '{"path": "src/a.ts and more']]);
    const number = parserOf();
    number.push("<tool_call>\n<function=write>\n");
    expect(joined([...number.push("<parameter=lines>\n12"), ...number.end()])).toEqual([["", '"lines": ']]);
  });
});

describe("a parser of calls", () => {
  it.each(cases)("of %s finds them however %j is cut", (template, text, parts) => {
    const { shape } = chooseDialect(withTemplate(template))!;
    fc.assert(
      fc.property(fc.array(fc.nat(text.length), { maxLength: 12 }), (cuts) => {
        const parser = new CallParser(shape);
        const at = [...new Set([0, ...cuts, text.length])].sort((a, b) => a - b);
        const deltas = at.slice(1).flatMap((end, i) => parser.push(text.slice(at[i], end)));
        expect(joined([...deltas, ...parser.end()])).toEqual(parts);
      }),
      { numRuns: 60, seed: 3 },
    );
  });

  it("is that of the template, or the one that is asked for", () => {
    const markers = (template: string, format?: ToolFormat) => chooseDialect(withTemplate(template), format)?.markers;
    expect(markers("no tools")).toBeUndefined();
    expect(markers("no tools", "hermes")).toEqual(["<tool_call>", "</tool_call>"]);
    expect(markers("{{ '<tool_call>' }}<function=")).toEqual(["<tool_call>", "</tool_call>"]);
    expect(chooseDialect(withTemplate("<tool_call>"), "qwen3-coder")?.reader).toBeDefined();
    expect(markers("{{ '<|python_tag|>' }}")).toEqual(["<|python_tag|>"]);
    expect(markers("[TOOL_CALLS][ARGS]")).toEqual(["[TOOL_CALLS]", "[ARGS]"]);
    expect(markers("[TOOL_CALLS]", "llama3")).toEqual(["<|python_tag|>"]);
  });
});
