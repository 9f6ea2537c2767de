// Checks of single values: what must hold, in words and as a test. Options and arguments share them.
import { describe, isPlainObject } from "./describe.js";
import { Device } from "./device.js";
import { dtypes } from "./dtype.js";
import type { ErrorCode } from "./errors.js";
import { BnbError } from "./errors.js";
import { NativeObject } from "./native-object.js";
import { Tensor } from "./tensor.js";

/** What a value must be. `rule` completes "must be ...". */
export interface Check {
  readonly rule: string;
  readonly holds: (value: unknown) => boolean;
  /** Of the error; default ERR_BNB_OPTION for an option and ERR_BNB_ARGUMENT for an argument. */
  readonly code?: ErrorCode;
  /** Whether an option must be given. */
  readonly required?: boolean;
}

export const aBoolean: Check = { rule: "true or false", holds: (v) => typeof v === "boolean" };
export const aString: Check = { rule: "a string", holds: (v) => typeof v === "string" };
export const aFunction: Check = { rule: "a function", holds: (v) => typeof v === "function" };
export const aTensor: Check = { rule: "a Tensor", holds: isTensor };
export const aFiniteNumber: Check = { rule: "a finite number", holds: (v) => Number.isFinite(v) };
/** Any number, also infinite or NaN. */
export const aNumber: Check = { rule: "a number", holds: (v) => typeof v === "number" };
export const anObject: Check = { rule: "an object", holds: (v) => typeof v === "object" && v !== null };
export const aPlainObject: Check = { rule: "an object", holds: isPlainObject };
export const aShape: Check = {
  rule: "an array of integers of at least 0",
  holds: (v) => isDense(v) && v.every((n) => Number.isSafeInteger(n) && (n as number) >= 0),
  code: "ERR_BNB_SHAPE",
};
export const aDType: Check = {
  rule: `one of ${dtypes.join(", ")}`,
  holds: (v) => (dtypes as readonly unknown[]).includes(v),
  code: "ERR_BNB_DTYPE",
};
/** A dtype that ops compute with. */
export const aFloatDType: Check = {
  rule: "float32, float16 or bfloat16",
  holds: (v) => v === "float32" || v === "float16" || v === "bfloat16",
  code: "ERR_BNB_DTYPE",
};
/** A name or a Device; `toDevice` says whether it exists. */
export const aDevice: Check = {
  rule: `a Device or the name of one, such as "cpu"`,
  holds: (v) => typeof v === "string" || v instanceof Device,
  code: "ERR_BNB_DEVICE",
};
export const anAbortSignal: Check = {
  rule: "an AbortSignal",
  holds: (v) => typeof v === "object" && v !== null && typeof (v as AbortSignal).aborted === "boolean",
};

/** An integer from `min` to `max`, both included. */
export function anInteger(min: number, max = Number.MAX_SAFE_INTEGER): Check {
  const rule = max < Number.MAX_SAFE_INTEGER ? `an integer from ${min} to ${max}` : `an integer of at least ${min}`;
  return { rule, holds: (v) => Number.isSafeInteger(v) && (v as number) >= min && (v as number) <= max };
}

/** A finite number from `min` to `max`, both included. */
export function aNumberIn(min: number, max = Infinity): Check {
  const rule = max < Infinity ? `a number from ${min} to ${max}` : `a finite number of at least ${min}`;
  return { rule, holds: (v) => Number.isFinite(v) && (v as number) >= min && (v as number) <= max };
}

/** A finite number above `min`. */
export function aNumberAbove(min: number): Check {
  return { rule: `a finite number above ${min}`, holds: (v) => Number.isFinite(v) && (v as number) > min };
}

/** One of the values. */
export function oneOf(values: readonly unknown[]): Check {
  return { rule: `one of ${values.map(String).join(", ")}`, holds: (v) => values.includes(v) };
}

/** An array (without holes) whose items all pass. */
export function arrayOf(item: Check, what = "an array"): Check {
  return { rule: `${what}, each ${item.rule}`, holds: (v) => isDense(v) && v.every(item.holds) };
}

/** An object of the class. Read when it is used: the class may be defined later. */
export function anInstance(of: () => abstract new (...args: never[]) => unknown, name: string): Check {
  return { rule: name, holds: (v) => v instanceof of() };
}

/** An object with these methods. */
export function anObjectWith(what: string, ...methods: readonly string[]): Check {
  const isMethod = (v: unknown, key: string) => typeof (v as Record<string, unknown>)[key] === "function";
  return {
    rule: `${what} with ${methods.map((key) => `${key}()`).join(" and ")}`,
    holds: (v) => typeof v === "object" && v !== null && methods.every((key) => isMethod(v, key)),
  };
}

export function orNull(check: Check): Check {
  return { ...check, rule: `${check.rule} or null`, holds: (v) => v === null || check.holds(v) };
}

export function either(a: Check, b: Check): Check {
  return { ...a, rule: `${a.rule} or ${b.rule}`, holds: (v) => a.holds(v) || b.holds(v) };
}

/** An option that must be given. */
export function required(check: Check): Check {
  return { ...check, required: true };
}

/** Throws unless an argument passes; `op` and `name` say in the message which one it is. */
export function checkArgument(op: string, name: string, value: unknown, check: Check): void {
  if (!check.holds(value)) failCheck(op, name, value, check, "ERR_BNB_ARGUMENT");
}

/** Throws ERR_BNB_ARGUMENT unless `x` is a Tensor: for functions that read its fields before an op does. */
export function checkTensor(op: string, name: string, x: unknown): asserts x is Tensor {
  if (!isTensor(x)) failCheck(op, name, x, aTensor, "ERR_BNB_ARGUMENT");
}

function isTensor(x: unknown): x is Tensor {
  return NativeObject.is(x) && x instanceof Tensor;
}

/** Throws ERR_BNB_ARGUMENT unless it is a function. */
export function checkFunction(op: string, name: string, value: unknown): void {
  checkArgument(op, name, value, aFunction);
}

/** @internal The error of a check. */
export function failCheck(op: string, name: string, value: unknown, check: Check, code: ErrorCode): never {
  throw new BnbError(check.code ?? code, `${op}: ${name} must be ${check.rule}, got ${describe(value)}`);
}

// every() and includes() skip holes.
function isDense(value: unknown): value is unknown[] {
  if (!Array.isArray(value)) return false;
  for (let i = 0; i < value.length; i++) if (!(i in value)) return false;
  return true;
}
