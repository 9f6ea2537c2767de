// Finds the addon for this platform: the build of a clone (build/Release) or the prebuilt binary of the package.
// BNB_BINARY names another file, such as a sanitizer build.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import nodeGypBuild from "node-gyp-build";
import { BnbError } from "./errors.js";

/**
 * Loads the .node file of the package in `root`. Throws ERR_BNB_NO_BINARY, which says whether the file is not there, why
 * the loader refuses it, or that there is none for this platform, and what to do.
 */
export function loadAddon(root: string = join(__dirname, "..", "..")): unknown {
  const path = findAddon(root);
  // Not `require`, which a bundler would replace by its own.
  const target = { exports: {} as unknown };
  try {
    process.dlopen(target, path);
  } catch (cause) {
    fail(`${path} cannot be loaded: ${(cause as Error).message}`, cause);
  }
  return target.exports;
}

function findAddon(root: string): string {
  const chosen = process.env["BNB_BINARY"];
  if (chosen) {
    const path = resolve(chosen);
    if (!existsSync(path)) fail(`BNB_BINARY must name a file, got ${path}, which is not there`);
    return path;
  }
  try {
    return nodeGypBuild.path(root);
  } catch (cause) {
    const platform = `${process.platform}-${process.arch}`;
    if (nameIn(root) !== "bitsandbytes-node") {
      fail(
        `the native binary must lie in the package's folder, but this code runs in ${root}, which is not that folder: a ` +
          `bundler has moved it. Leave bitsandbytes-node out of the bundle (esbuild: --external:bitsandbytes-node; ` +
          `webpack: externals), or set BNB_BINARY to the path of the .node file`,
        cause,
      );
    }
    if (existsSync(join(root, "csrc"))) {
      fail(
        `there is no native binary in this clone yet: run "npm run build" (needs CMake and a C++20 compiler)`,
        cause,
      );
    }
    const prebuilt = foldersIn(join(root, "prebuilds"));
    if (prebuilt.length === 0) fail(`there are no native binaries in ${root}: install the package again`, cause);
    const has = `the package has native binaries for ${prebuilt.join(", ")}`;
    if (prebuilt.includes(platform)) fail(`${has}, but none that this Node.js can use`, cause);
    fail(`${has}, but none for ${platform}: build one from source, in a clone`, cause);
  }
}

function fail(message: string, cause?: unknown): never {
  throw new BnbError("ERR_BNB_NO_BINARY", `bitsandbytes-node: ${message}`, { cause });
}

/** The name in a folder's package.json; "" without one. */
function nameIn(folder: string): string {
  try {
    return (JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { name: string }).name;
  } catch {
    return "";
  }
}

function foldersIn(path: string): string[] {
  try {
    return readdirSync(path).sort();
  } catch {
    return [];
  }
}
