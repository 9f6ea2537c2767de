// The code tables of 8-bit states: the built-in dynamic maps, and whether a table that came with a state is one.
import { addon } from "../tensor/addon.js";
import type { Device } from "../tensor/device.js";
import { deviceAt } from "../tensor/device.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** The dynamic map [256] of signed (state1) or unsigned (state2) values; the caller's to dispose. */
export function dynamicMap(signed: boolean, device: Device): Tensor {
  // The numbers of ops/codebooks.cc.
  return run(addon.codebook, signed ? 4 : 5, device.index)[0];
}

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
