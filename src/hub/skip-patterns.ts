// Which modules stay unquantized, as transformers resolves it: a module stays if a pattern matches its path from the
// start, as a regular expression, or if its path ends with the pattern as it stands.
import { BnbError } from "../tensor/errors.js";
import { linearPattern } from "./linear-pattern.js";

const MAX_PATTERN = 256;

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
  if (!linearPattern(pattern)) fail("must look ahead only where it begins, not back, nor repeat thousands of times");
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
