// Names of what is answered, and its date.
import { randomBytes } from "node:crypto";

export const newId = (prefix: string): string => `${prefix}-${randomBytes(12).toString("hex")}`;
/** In seconds since 1970. */
export const now = (): number => Math.floor(Date.now() / 1000);
