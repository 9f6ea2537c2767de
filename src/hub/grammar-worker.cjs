// The thread behind Grammars: compiles grammars against the vocabulary of a tokenizer, follows texts through them, and says
// which tokens may come next. XGrammar runs as WebAssembly.
"use strict";
const { readFileSync } = require("node:fs");
const { compileFunction } = require("node:vm");
const { parentPort, workerData } = require("node:worker_threads");

/** What may stand between the parts of a JSON text: more invites a model to write spaces for ever. */
const mostSpaces = 1;

const file = require.resolve("@mlc-ai/web-xgrammar");
const source = readFileSync(file, "utf8");

/**
 * A copy of XGrammar with memory of its own, and what it printed. Its package says that it is an ES module, which it is not,
 * and with `process` in sight it imports one: so it is called as the function that it is.
 */
function load() {
  const own = { exports: {} };
  /** @type {string[]} */
  const printed = [];
  const print = (...parts) => printed.push(parts.join(" "));
  const names = ["exports", "module", "require", "__filename", "process", "console"];
  const logs = { log: print, warn: print, error: print };
  compileFunction(source, names, { filename: file })(own.exports, own, require, file, undefined, logs);
  return { library: own.exports, printed };
}

/** What XGrammar said before it gave up. */
function reasonOf({ printed }, error) {
  const fatal = printed.find((line) => line.startsWith("[FATAL]"));
  const reason = fatal?.replace(/^\[FATAL\] \S+ (?:Check failed: \(.*?\) is false: )?/s, "");
  return reason ?? (error instanceof Error ? error.message : String(error));
}

// A copy that gave up is of no use any more: what is new is tried in a copy that nobody else needs.
let trial = load();

async function tried(work) {
  try {
    return await work(trial.library.Grammar);
  } catch (error) {
    const reason = reasonOf(trial, error);
    trial = load();
    throw new Error(reason);
  }
}

async function textOf(promised) {
  const grammar = await promised;
  try {
    return grammar.toString();
  } finally {
    grammar.dispose();
  }
}

async function fromSchema(schema, strict) {
  const given = JSON.stringify(schema);
  return inStrings(
    await tried((Grammar) => textOf(Grammar.fromJSONSchema(given, true, undefined, undefined, strict, mostSpaces))),
  );
}

/** Classes of characters between the parts of JSON, and of what follows a backslash. */
const structure = new Set(["[ \\n\\t]", '[\\"\\\\/bfnrt]']);
/** First and last code points of what stands in no JSON string as it is. */
const notBare = [
  [0, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
];
/** Characters beyond ASCII of a range that are told one by one; of more, all may come. */
const mostOthers = 256;
const named = { n: 10, r: 13, t: 9, f: 12, v: 11, 0: 0 };

/** The grammar of a schema, whose strings may be too free: "." of a pattern is no quote, [^a] no end of a line. */
function inStrings(grammar) {
  return grammar.replace(/"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]/g, (part) => {
    if (part[0] === '"' || structure.has(part)) return part;
    if (part[1] === "^") return `[^\\0-\\x1f\\"\\\\${part.slice(2)}`;
    return onlyBare(part);
  });
}

/** A class without what stands in no string. */
function onlyBare(part) {
  const items = part.slice(1, -1).match(/\\(?:x[\da-f]{2}|u[\da-f]{4}|U[\da-f]{8}|.)|./gisu) ?? [];
  const codeOf = (item) => {
    if (item[0] !== "\\" || item.length === 1) return item.codePointAt(0);
    return item.length > 2 ? Number.parseInt(item.slice(2), 16) : (named[item[1]] ?? item.codePointAt(1));
  };
  const kept = [];
  for (let i = 0; i < items.length; i++) {
    const first = codeOf(items[i]);
    const isRange = items[i + 1] === "-" && i + 2 < items.length;
    const last = isRange ? codeOf(items[i + 2]) : first;
    if (isRange) i += 2;
    // Ranges between what is left out.
    let from = first;
    for (const [low, high] of notBare) {
      if (high < from || low > last) continue;
      if (low > from) kept.push([from, low - 1]);
      from = high + 1;
    }
    if (from <= last) kept.push([from, last]);
  }
  // XGrammar takes what is no ASCII in a class for single bytes, but not in texts and in what a class is not.
  const others = kept.filter(([, to]) => to > 0x7f).map(([from, to]) => [Math.max(from, 0x80), to]);
  const isWide = others.some(([from, to]) => to - from >= mostOthers);
  const texts = others.flatMap(([from, to]) =>
    isWide ? [] : Array.from({ length: to - from + 1 }, (_, at) => `"${String.fromCodePoint(from + at)}"`),
  );
  const code = (point) => `\\x${point.toString(16).padStart(2, "0")}`;
  const ascii = kept.filter(([from]) => from <= 0x7f).map(([from, to]) => `${code(from)}-${code(Math.min(to, 0x7f))}`);
  return `(${[`[${ascii.join("")}]`, ...texts, ...(isWide ? ["[^\\x00-\\x7f]"] : [])].slice(ascii.length > 0 ? 0 : 1).join(" | ")})`;
}

/** A structural tag whose schemas are grammars. */
async function withoutSchemas(format) {
  if (Array.isArray(format)) return Promise.all(format.map(withoutSchemas));
  if (typeof format !== "object" || format === null) return format;
  if (format.type === "json_schema") {
    return { type: "grammar", grammar: await fromSchema(format.json_schema, format.strict) };
  }
  const entries = Object.entries(format).map(async ([key, value]) => [key, await withoutSchemas(value)]);
  return Object.fromEntries(await Promise.all(entries));
}

const main = load();
const compiler = new Promise((resolve, reject) => {
  workerData.vocabulary.once("message", ({ tokens, type }) => {
    const { TokenizerInfo, GrammarCompiler } = main.library;
    // Who follows a text says which tokens end it. A vocabulary must have one, though: one that there is not.
    TokenizerInfo.createTokenizerInfo([...tokens, ""], type, false, tokens.length + 1, [tokens.length])
      .then((info) => GrammarCompiler.createGrammarCompiler(info, false))
      .then(resolve, reject);
  });
});

/** @type {Map<string, any>} */
const grammars = new Map();
/** @type {Map<number, any>} */
const matchers = new Map();

/** The latest used last. */
async function compiled(key) {
  let grammar = grammars.get(key);
  if (grammar) grammars.delete(key);
  else {
    const { type, ...rest } = JSON.parse(key);
    const own = await compiler;
    if (type === "structural_tag") {
      const tag = { type, format: await withoutSchemas(rest.format) };
      await tried((Grammar) => textOf(Grammar.fromStructuralTag(tag)));
      grammar = await own.compileStructuralTag(tag);
    } else {
      const text =
        type === "grammar"
          ? await tried((Grammar) => textOf(Grammar.fromEBNF(rest.grammar)))
          : await fromSchema(rest.schema, rest.strict);
      grammar = await own.compileGrammar(text);
    }
  }
  grammars.set(key, grammar);
  for (const [oldest, unused] of grammars) {
    if (grammars.size <= workerData.kept) break;
    unused.dispose();
    grammars.delete(oldest);
  }
  return grammar;
}

/** Which tokens may follow: null: all. */
async function nextOf(matcher) {
  if (matcher.isTerminated()) return { isOver: true, allowed: null };
  const allowed = await matcher.getNextTokenBitmask();
  return { isOver: false, allowed: allowed.every((word) => word === -1) ? null : allowed };
}

const operations = {
  ready: async () => {
    await compiler;
    return {};
  },
  compile: async ({ key }) => {
    await compiled(key);
    return {};
  },
  /** A text that begins with `tokens`. */
  open: async ({ id, key, ends, tokens }) => {
    const grammar = await compiled(key);
    // Without an end the text is over where the grammar has nothing more.
    const without = ends.length === 0;
    const matcher = await main.library.GrammarMatcher.createGrammarMatcher(
      grammar,
      without ? undefined : ends,
      without,
    );
    matchers.set(id, matcher);
    for (const token of tokens) matcher.acceptToken(token);
    return nextOf(matcher);
  },
  accept: async ({ id, token }) => {
    const matcher = matchers.get(id);
    if (!matcher.acceptToken(token)) throw new Error(`token ${token} does not follow`);
    return nextOf(matcher);
  },
  close: async ({ id }) => {
    matchers.get(id)?.dispose();
    matchers.delete(id);
    return {};
  },
};

parentPort.on("message", ({ call, operation, options }) => {
  operations[operation](options).then(
    (answer) => parentPort.postMessage({ call, ...answer }, answer.allowed ? [answer.allowed.buffer] : []),
    (error) => {
      const isLost = error instanceof WebAssembly.RuntimeError;
      parentPort.postMessage({ call, error: isLost ? reasonOf(main, error) : error.message, isLost });
    },
  );
});
