// What lives in native memory and therefore can be neither written by JSON.stringify nor sent by structuredClone and
// postMessage: both would go through without an error and lose every element.
import { BnbError } from "./errors.js";

/**
 * Value of a field by which a device, and so whatever holds a tensor, refuses to be cloned: the error shows this text. A
 * field of the device costs nothing for each tensor; a method or a getter would not be looked at.
 */
export const notCloneable: unique symbol = Symbol(
  "a tensor's elements are in native memory: send await x.data() with x.shape and x.dtype, and make a tensor of them there",
);

/** As `notCloneable`, for a generator. */
export const generatorNotCloneable: unique symbol = Symbol(
  "a Generator would arrive empty: send generator.state, and set it there",
);

/** What `toJSON` does. Throws ERR_BNB_UNSUPPORTED. */
export function refuseJson(what: string): never {
  const advice = "write Array.from(await x.data()), x.shape and x.dtype of its tensors";
  throw new BnbError("ERR_BNB_UNSUPPORTED", `JSON.stringify: ${what} has its elements in native memory; ${advice}`);
}
