// Regular expressions of module paths in an adapter's settings, which files bring along: matched in linear time.
import type { Matcher } from "../hub/linear-pattern.js";
import { linearPattern } from "../hub/linear-pattern.js";
import { BnbError } from "../tensor/errors.js";

const MAX_PATTERN = 1024;

/**
 * Throws ERR_BNB_OPTION for a pattern of `matchesPath` or `matchesEnd` that cannot be matched in a time that grows with the
 * path alone.
 */
export function checkPathPattern(pattern: string, of: "path" | "end", op: string): void {
  const fail = (what: string): never => {
    const shown = JSON.stringify(pattern.slice(0, 40));
    throw new BnbError("ERR_BNB_OPTION", `${op}: the pattern ${shown} ${what}`);
  };
  if (pattern.length > MAX_PATTERN) fail(`has ${pattern.length} characters, at most ${MAX_PATTERN} may be`);
  try {
    new RegExp(pattern);
  } catch {
    fail("must be a regular expression");
  }
  if (!matcherOf(of === "path" ? pattern : behind(pattern))) {
    const ahead = of === "path" ? "look ahead only where it begins, not back" : "not look around or back";
    fail(`must ${ahead}, nor repeat thousands of times`);
  }
}

/** Whether a pattern matches a whole path. */
export const matchesPath = (pattern: string, path: string): boolean => matcherOf(pattern)?.(path) ?? false;

/** Whether a pattern matches a path, or what of it stands behind a dot. */
export const matchesEnd = (pattern: string, path: string): boolean => matcherOf(behind(pattern))?.(path) ?? false;

const behind = (pattern: string): string => `(?:.*\\.)?(?:${pattern})`;

const known = new Map<string, Matcher | null>();
function matcherOf(pattern: string): Matcher | null {
  let found = known.get(pattern);
  if (found === undefined) {
    if (known.size >= 1024) known.clear();
    found = linearPattern(pattern, { whole: true });
    known.set(pattern, found);
  }
  return found;
}
