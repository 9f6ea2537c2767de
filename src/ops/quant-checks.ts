// Checks of the options that quantizing functions and layers share.
import type { Check } from "../tensor/checks.js";
import { oneOf } from "../tensor/checks.js";
import { quantTypes } from "./codebooks.js";

/** Elements that share a scale. */
export const aBlocksize: Check = oneOf([32, 64, 128, 256, 512, 1024, 2048, 4096]);

export const aQuantType: Check = oneOf(quantTypes);

/** The dtypes that packed bytes may be declared as. */
export const aQuantStorage: Check = oneOf(["uint8", "int8", "float16", "bfloat16", "float32", "float64"]);
