// Hermes, Qwen and others: <tool_call>\n{"name": "f", "arguments": {...}}\n</tool_call>, as often as there are calls.
import type { ToolDialect, ToolFunction } from "./dialect.js";
import { jsonText, newCallId, oneOrMore, tagOf, textWith } from "./dialect.js";

const tag = (one: ToolFunction) => tagOf(one, `<tool_call>\n{"name": "${one.name}", "arguments": `, "}\n</tool_call>");

export const hermes: ToolDialect = {
  markers: ["<tool_call>", "</tool_call>"],
  shape: {
    triggers: ["<tool_call>"],
    head: new RegExp(`^<tool_call>\\s*\\{\\s*"name"\\s*:\\s*"${jsonText}"\\s*,\\s*"arguments"\\s*:\\s*`),
    more: null,
    done: /^\s*\}\s*<\/tool_call>/,
  },
  calls: (functions, isParallel) => oneOrMore(functions.map(tag), "\n", isParallel),
  textWithCalls: (functions, isParallel) => textWith(["<tool_call>"], functions.map(tag), isParallel),
  newId: newCallId,
};
