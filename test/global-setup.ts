// Stops a run that has no addon to test, before every file fails for the same reason. What tests and their processes leave in
// the folder of temporary files goes with the run.
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export default function setup(): () => void {
  const addon =
    process.env["BNB_BINARY"] ?? fileURLToPath(new URL("../build/Release/bitsandbytes.node", import.meta.url));
  if (!existsSync(addon)) throw new Error(`${addon} does not exist: run "npm run build:native" first`);
  const folder = mkdtempSync(join(tmpdir(), "bnb-test-"));
  process.env["TMPDIR"] = folder;
  return () => rmSync(folder, { recursive: true, force: true });
}
