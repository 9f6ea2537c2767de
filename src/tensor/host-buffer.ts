// Memory for copies in JavaScript: an error where there is none, as an op gives one, instead of a RangeError or the end
// of the process.
import { runtime } from "../native/runtime.js";
import { BnbError } from "./errors.js";

/** Up to here nothing is asked: the system lends so much to anyone. */
const SMALL = 64 * 2 ** 20;

/** @internal A buffer of zeros. Throws ERR_BNB_OOM when the machine lacks the memory beside what tensors hold of it. */
export function hostBuffer(op: string, nbytes: number): ArrayBuffer {
  // The system promises memory that it does not have, and ends the process that touches it.
  if (nbytes > SMALL) {
    const { liveBytes, cachedBytes } = runtime.memory(0);
    const { memory } = runtime.cpu();
    if (nbytes > memory - liveBytes - cachedBytes) {
      const has = `live ${liveBytes}, cached ${cachedBytes}, the machine has ${memory}`;
      throw new BnbError("ERR_BNB_OOM", `${op}: out of memory: wanted ${nbytes} bytes, ${has}`);
    }
  }
  try {
    return new ArrayBuffer(nbytes);
  } catch (cause) {
    throw new BnbError("ERR_BNB_OOM", `${op}: out of memory: wanted ${nbytes} bytes`, { cause });
  }
}
