// Llama 3: {"name": "f", "parameters": {...}}, perhaps behind <|python_tag|>. One call a message: what several look like is
// not fixed.
import type { ToolDialect, ToolFunction } from "./dialect.js";
import { jsonText, newCallId, oneOrMore, tagOf, textWith } from "./dialect.js";

const marker = "<|python_tag|>";
const tag = (one: ToolFunction, before = "") => tagOf(one, `${before}{"name": "${one.name}", "parameters": `, "}");

export const llama3: ToolDialect = {
  markers: [marker],
  shape: {
    triggers: [marker, '{"name": "'],
    head: new RegExp(`^(?:<\\|python_tag\\|>)?\\s*\\{\\s*"name"\\s*:\\s*"${jsonText}"\\s*,\\s*"parameters"\\s*:\\s*`),
    more: null,
    done: /^\s*\}/,
  },
  calls: (functions) =>
    oneOrMore(
      functions.map((one) => tag(one)),
      "; ",
      false,
    ),
  textWithCalls: (functions) => {
    const tags = functions.flatMap((one) => [tag(one), tag(one, marker)]);
    return textWith([marker, '{"name": "'], tags, false);
  },
  newId: newCallId,
};
