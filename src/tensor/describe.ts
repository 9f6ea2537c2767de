// What came from a caller: how error messages show it, and what kind of thing it is.
import { inspect, types } from "node:util";

/** A value in a few words, on one line: `"nf4"`, `[1, 2]`, `Tensor(float32 [2, 3], cpu)`, `[Linear]`. */
export function describe(value: unknown): string {
  if (typeof value === "string") return shortened(JSON.stringify(value));
  try {
    // Of objects of a class only its name: their fields may be large.
    const depth = Array.isArray(value) || isPlainObject(value) ? 0 : -1;
    const text = inspect(value, {
      depth,
      compact: true,
      breakLength: Infinity,
      maxArrayLength: 6,
      maxStringLength: 40,
    });
    return shortened(text.replaceAll("[ ", "[").replaceAll(" ]", "]"));
  } catch {
    return `a ${typeof value} that cannot be shown`;
  }
}

/** As `describe`, but a text as it is: for names, which stand in messages without quotes. */
export function shown(value: unknown): string {
  return typeof value === "string" ? shortened(value) : describe(value);
}

/** Whether it is an object literal or its like, also from another realm, and no instance of a class. */
export function isPlainObject(value: unknown): value is object {
  if (typeof value !== "object" || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype === Object.prototype || prototype === null) return true;
  return Object.getPrototypeOf(prototype) === null && Object.hasOwn(prototype as object, "isPrototypeOf");
}

function shortened(text: string): string {
  return text.length <= 80 ? text : `${text.slice(0, 77)}...`;
}

/** What an iterable of objects gives; null for what is none. TypedArrays hold numbers, and one may have lost its memory. */
export function itemsOf<T>(value: Iterable<T> | undefined | null): T[] | null {
  if (typeof value !== "object" || value === null || types.isTypedArray(value)) return null;
  return typeof value[Symbol.iterator] === "function" ? [...value] : null;
}
