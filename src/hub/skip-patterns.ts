// Which modules stay unquantized, as transformers resolves it: a module stays if a pattern matches its path from the
// start, as a regular expression, or if its path ends with the pattern as it stands.
import { BnbError } from "../tensor/errors.js";
import { linearPattern } from "./linear-pattern.js";

const MAX_PATTERN = 256;
/** Of a pattern that is matched by trying: paths have a hundred characters, of which so many loops try the power. */
const MAX_LOOPS = 4;

/**
 * Throws ERR_BNB_FORMAT for a pattern that a file must not bring along: a long one, or one that cannot be matched in a time
 * that grows with the path alone.
 */
export function checkSkipPattern(pattern: string): void {
  const fail = (what: string): never => {
    const shown = JSON.stringify(pattern.slice(0, 40));
    throw new BnbError("ERR_BNB_FORMAT", `quantization_config: the pattern ${shown} of llm_int8_skip_modules ${what}`);
  };
  if (pattern.length > MAX_PATTERN) fail(`has ${pattern.length} characters, at most ${MAX_PATTERN} may be`);
  if (regexOf(pattern) === undefined) fail("must be a regular expression");
  if (!linearPattern(pattern)) fail("must not look around or back, nor repeat thousands of times");
}

/**
 * Throws ERR_BNB_OPTION for a pattern of the options of `op` whose matching may take for ever. `isTried`: it is matched by
 * trying, not by `matchesWhole`.
 */
export function checkFilePattern(pattern: string, op: string, isTried = false): void {
  const fail = (what: string): never => {
    const shown = JSON.stringify(pattern.slice(0, 40));
    throw new BnbError("ERR_BNB_OPTION", `${op}: the pattern ${shown} ${what}`);
  };
  if (pattern.length > MAX_PATTERN) fail(`has ${pattern.length} characters, at most ${MAX_PATTERN} may be`);
  if (hasNestedQuantifier(pattern)) fail("must have no quantifier on a group that contains one");
  if (regexOf(pattern) === undefined) fail("must be a regular expression");
  if (!isTried && linearPattern(pattern)) return;
  const bare = withoutSets(pattern);
  if ((bare.match(/[*+]|\{\d+,\}/g) ?? []).length > MAX_LOOPS || /\|[^()]*\)[*+{]/.test(bare)) {
    fail(`must repeat no alternatives, and at most ${MAX_LOOPS} parts without bound, as it is matched by trying`);
  }
}

/** Whether all of a text matches a pattern that `checkFilePattern` let pass. */
export function matchesWhole(pattern: string, text: string): boolean {
  const all = `(?:${pattern})$`;
  return linearPattern(all)?.(text) ?? new RegExp(`^${all}`).test(text);
}

// One character in place of each that is escaped, or of a set.
const withoutSets = (pattern: string): string => pattern.replace(/\\./gs, "_").replace(/\[\^?\]?[^\]]*\]/g, "_");

/** Whether a group such as `(a+)` is itself repeated. */
function hasNestedQuantifier(pattern: string): boolean {
  const bare = withoutSets(pattern);
  const inside: boolean[] = [];
  for (let i = 0; i < bare.length; i++) {
    const character = bare[i] as string;
    if (character === "(") inside.push(false);
    else if (character === ")") {
      const found = inside.pop() ?? false;
      const repeats = /[*+{?]/.test(bare[i + 1] ?? "");
      if (found && repeats) return true;
      if ((found || repeats) && inside.length > 0) inside[inside.length - 1] = true;
    } else if (/[*+{]/.test(character) || (character === "?" && bare[i - 1] !== "(")) {
      if (inside.length > 0) inside[inside.length - 1] = true;
    }
  }
  return false;
}

function regexOf(pattern: string): RegExp | undefined {
  try {
    return new RegExp(`^(?:${pattern})`);
  } catch {
    return undefined;
  }
}

/** A test of module paths, and of what the patterns matched. */
export class SkipList {
  readonly #patterns: { text: string; matches: (path: string) => boolean; matched: boolean }[];

  /** Throws ERR_BNB_OPTION for a pattern that is no regular expression. */
  constructor(patterns: readonly string[]) {
    this.#patterns = patterns.map((text) => {
      const regex = regexOf(text);
      // The caller's own may be more than a file's.
      if (regex) return { text, matches: linearPattern(text) ?? ((path) => regex.test(path)), matched: false };
      const rule = "BitsAndBytesConfig: each of llmInt8SkipModules must be a regular expression";
      throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${JSON.stringify(text)}`);
    });
  }

  /** Whether the module at `path` stays unquantized. */
  skips(path: string): boolean {
    let skipped = false;
    for (const pattern of this.#patterns) {
      if (!pattern.matches(path) && !path.endsWith(pattern.text)) continue;
      pattern.matched = true;
      skipped = true;
    }
    return skipped;
  }

  /** Patterns that no path so far was skipped by. */
  get unmatched(): string[] {
    return this.#patterns.flatMap(({ text, matched }) => (matched ? [] : [text]));
  }
}
