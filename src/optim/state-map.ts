// Whether a code table that came with an 8-bit state is the built-in dynamic map.
import { dynamicMap } from "../ops/codebooks.js";
import { deviceAt } from "../tensor/device.js";
import type { Tensor } from "../tensor/tensor.js";

const builtIn = new Map<boolean, Float32Array>();

function mapValues(signed: boolean): Float32Array {
  const known = builtIn.get(signed);
  if (known) return known;
  const map = dynamicMap(signed, deviceAt(0));
  const values = map.floatsSync();
  map.dispose();
  builtIn.set(signed, values);
  return values;
}

// Float32 bit patterns as integers in the order of the values they stand for.
function ordered(values: Float32Array): Int32Array {
  return new Int32Array(values.buffer, values.byteOffset, values.length).map((u) => (u < 0 ? -(u & 0x7fffffff) : u));
}

/** What is wrong with `map` (float32 [256]), or null when every entry is within 4 ulp of the built-in one. */
export function checkMap(map: Tensor, signed: boolean): string | null {
  const given = map.floatsSync();
  const want = mapValues(signed);
  const [a, b] = [ordered(given), ordered(want)];
  const wrong = a.findIndex((value, i) => !(Math.abs(value - (b[i] as number)) <= 4));
  if (wrong < 0) return null;
  return `must be the ${signed ? "signed" : "unsigned"} dynamic map, got ${given[wrong]} for ${want[wrong]} at ${wrong}`;
}
