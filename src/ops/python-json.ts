// JSON as Python's json.dumps writes it, so that files made here equal files made there byte for byte.
import { BnbError } from "../tensor/errors.js";

/** A number that Python holds as a float: it is written with a point or an exponent, even when integral. */
export class PythonFloat {
  readonly value: number;
  constructor(value: number) {
    this.value = value;
  }
}

export type PythonValue = string | number | boolean | null | PythonFloat | readonly PythonValue[] | PythonObject;
export interface PythonObject {
  readonly [key: string]: PythonValue;
}

/** Python's repr of a finite float: the shortest digits, in exponent form below 1e-4 and from 1e16 on. */
export function pythonFloat(value: number): string {
  const [mantissa, exponent] = value.toExponential().split("e") as [string, string];
  const power = Number(exponent);
  if (power < -4 || power >= 16) {
    const digits = String(Math.abs(power)).padStart(2, "0");
    return `${mantissa}e${power < 0 ? "-" : "+"}${digits}`;
  }
  const sign = Object.is(value, -0) || value < 0 ? "-" : "";
  const digits = mantissa.replace(/[-.]/g, "");
  if (power < 0) return `${sign}0.${"0".repeat(-power - 1)}${digits}`;
  const whole = digits.slice(0, power + 1).padEnd(power + 1, "0");
  return `${sign}${whole}.${digits.slice(power + 1) || "0"}`;
}

/**
 * As `json.dumps(value)`: ", " and ": " between items, everything beyond ASCII escaped, keys in given order; with
 * `indent`, an item a line, `depth` levels deep. NaN and infinity, which JSON does not have, throw ERR_BNB_NONFINITE.
 */
export function pythonJson(value: PythonValue, indent?: number, depth = 0): string {
  if (value instanceof PythonFloat) return pythonFloat(value.value);
  if (typeof value === "string") return pythonString(value);
  if (typeof value === "number") return pythonNumber(value);
  const inner = (item: PythonValue): string => pythonJson(item, indent, depth + 1);
  const line = (levels: number): string => (indent === undefined ? "" : `\n${" ".repeat(levels * indent)}`);
  const group = (open: string, items: string[], close: string): string => {
    if (items.length === 0) return open + close;
    const comma = indent === undefined ? ", " : ",";
    return `${open}${line(depth + 1)}${items.join(comma + line(depth + 1))}${line(depth)}${close}`;
  };
  if (Array.isArray(value)) return group("[", value.map(inner), "]");
  if (typeof value === "object" && value !== null) {
    const items = Object.entries(value as PythonObject).map(([key, item]) => `${pythonString(key)}: ${inner(item)}`);
    return group("{", items, "}");
  }
  return String(value);
}

function pythonNumber(value: number): string {
  if (Number.isFinite(value)) return Number.isInteger(value) ? String(value) : pythonFloat(value);
  throw new BnbError("ERR_BNB_NONFINITE", `json: numbers must be finite, got ${value}`);
}

function pythonString(text: string): string {
  const escaped = (unit: string): string => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(text).replace(/[\u007f-\uffff]/g, escaped);
}
