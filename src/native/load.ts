// Finds the addon for this platform: the build of a clone (build/Release) or the prebuilt binary of the package.
// BNB_BINARY names another file, such as a sanitizer build.
import { join, resolve } from "node:path";
import nodeGypBuild from "node-gyp-build";
import type { ErrorCode } from "./errors.js";
import { BnbError } from "./errors.js";

/** Loads the .node file. Throws ERR_BNB_NO_BINARY with advice when there is none for this platform. */
export function loadAddon(): unknown {
  const chosen = process.env["BNB_BINARY"];
  try {
    if (chosen) return require(resolve(chosen));
    return nodeGypBuild(join(__dirname, "..", ".."));
  } catch (cause) {
    // What the addon itself says when it cannot start.
    const { code, message } = cause as { code?: unknown; message: string };
    if (typeof code === "string" && code.startsWith("ERR_BNB_"))
      throw new BnbError(code as ErrorCode, message, { cause });
    throw new BnbError(
      "ERR_BNB_NO_BINARY",
      `bitsandbytes-node: no native binary for ${process.platform}-${process.arch} could be loaded. ` +
        `In a clone, run "npm run build" (needs CMake and a C++20 compiler). ` +
        `With the published package, this platform has no prebuilt binary: build it from source.`,
      { cause },
    );
  }
}
