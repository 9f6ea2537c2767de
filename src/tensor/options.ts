// Options of public functions: an object literal with known keys and values of the right type, else an error that
// says which keys there are and which of them was probably meant.
import type { Check } from "./checks.js";
import { failCheck } from "./checks.js";
import { describe, isPlainObject } from "./describe.js";
import { BnbError } from "./errors.js";

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

/** A name that is not known, with the known one that was probably meant. */
export function withNearest(name: string, known: readonly string[]): string {
  const near = nearest(name, known);
  return near === undefined ? name : `${name} (did you mean ${near}?)`;
}

// What torch, transformers, peft, bitsandbytes and NumPy call it, without underscores: the first that exists is meant.
const aliases: Readonly<Record<string, readonly string[]>> = {
  dim: ["axis", "axes"],
  dims: ["axes", "axis"],
  axis: ["axes"],
  axes: ["axis"],
  keepdim: ["keepDims"],
  learningrate: ["lr"],
  epsilon: ["eps"],
  wd: ["weightDecay"],
  alpha: ["loraAlpha"],
  rank: ["r"],
  dropout: ["loraDropout"],
  targets: ["targetModules"],
  maxtokens: ["maxNewTokens"],
  stop: ["eosTokenId", "stopStrings"],
  stoptokens: ["eosTokenId"],
  doublequant: ["compressStatistics", "nested"],
  usedoublequant: ["compressStatistics", "nested"],
  bnb4bitusedoublequant: ["compressStatistics", "nested"],
  bnb4bitquanttype: ["quantType"],
  bnb4bitcomputedtype: ["computeDtype"],
  bnb4bitquantstorage: ["quantStorage"],
  bits: ["optimBits"],
  iscausal: ["causal"],
  transa: ["transposeA"],
  transb: ["transposeB"],
};

/** The known name that was probably meant: another spelling, another library's word for it, or a typing error. */
export function nearest(given: string, known: readonly string[]): string | undefined {
  const plain = (name: string) => name.replaceAll(/[_-]/g, "").toLowerCase();
  const wanted = plain(given);
  const same = known.find((name) => plain(name) === wanted);
  if (same !== undefined) return same;
  const alias = Object.hasOwn(aliases, wanted) ? aliases[wanted] : undefined;
  const meant = alias?.find((name) => known.includes(name));
  if (meant !== undefined) return meant;
  const allowed = Math.min(2, Math.floor(wanted.length / 3));
  const distances = known.map((name) => editDistance(wanted, plain(name)));
  const best = distances.indexOf(Math.min(...distances));
  return (distances[best] ?? Infinity) <= allowed ? known[best] : undefined;
}

/** How many letters must be inserted, removed or changed. */
function editDistance(a: string, b: string): number {
  let above = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const change = (above[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min(change, (above[j] as number) + 1, (row[j - 1] as number) + 1));
    }
    above = row;
  }
  return above[b.length] as number;
}
