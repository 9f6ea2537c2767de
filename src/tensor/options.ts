// Options of public functions: an object literal with known keys and values of the right type, else an error that
// says which keys there are and which of them was probably meant.
import type { Check } from "./checks.js";
import { failCheck } from "./checks.js";
import { describe, isPlainObject } from "./describe.js";
import { BnbError } from "./errors.js";
import { withNearest } from "./nearest.js";

/** The options of a function, as `checkOptions` wants them. */
export interface OptionTable<O> {
  readonly checks: { readonly [Key in keyof O]-?: Check };
  readonly required: readonly string[];
}

/**
 * One check for each key of an options type: the compiler sees to it that none is missing and none is too many.
 *
 * @example
 * const matmulOptions = optionTable<MatmulOptions>({ transposeA: aBoolean, transposeB: aBoolean });
 * checkOptions("matmul", options, matmulOptions);
 */
export function optionTable<O>(checks: { readonly [Key in keyof O]-?: Check }): OptionTable<O> {
  const required = Object.entries<Check>(checks).filter(([, check]) => check.required === true);
  return { checks, required: required.map(([key]) => key) };
}

/**
 * Throws ERR_BNB_OPTION unless `given` is a plain object whose keys are all in the table and whose values pass their
 * checks (undefined passes, as if the key was not there, except for required ones). undefined passes for `given`, too.
 */
export function checkOptions<O>(op: string, given: unknown, table: OptionTable<O>): void {
  if (given === undefined && table.required.length === 0) return;
  if (!isPlainObject(given)) {
    const keys = Object.keys(table.checks).join(", ");
    throw new BnbError("ERR_BNB_OPTION", `${op}: options must be an object (of ${keys}), got ${describe(given)}`);
  }
  const values = given as Readonly<Record<string, unknown>>;
  const checks = table.checks as Readonly<Record<string, Check>>;
  for (const key in values) {
    if (!Object.hasOwn(checks, key)) failUnknownKey(op, key, Object.keys(checks));
    const value = values[key];
    const check = checks[key] as Check;
    if (value !== undefined && !check.holds(value)) failCheck(op, key, value, check, "ERR_BNB_OPTION");
  }
  for (const key of table.required) {
    if (values[key] === undefined) failCheck(op, key, undefined, checks[key] as Check, "ERR_BNB_OPTION");
  }
}

/** Throws ERR_BNB_OPTION: the known keys, the one that came, and the one that was probably meant. */
export function failUnknownKey(op: string, key: string, known: readonly string[]): never {
  const rule = `${op}: options must be among ${known.join(", ")}`;
  throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${withNearest(key, known)}`);
}
