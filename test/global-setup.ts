// Stops a run that has no addon to test, before every file fails for the same reason.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

export default function setup(): void {
  const addon =
    process.env["BNB_BINARY"] ?? fileURLToPath(new URL("../build/Release/bitsandbytes.node", import.meta.url));
  if (!existsSync(addon)) throw new Error(`${addon} does not exist: run "npm run build:native" first`);
}
