// Finds the addon for this platform: a build from source (build/Release) or the prebuilt binary of the package.
// BNB_BINARY names another file: that of a bundle, or a sanitizer build.
import { closeSync, existsSync, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import type { ErrorCode } from "./errors.js";
import { BnbError } from "./errors.js";

/** The folder of this package. Files in `src/native` and in `dist/core` lie equally deep. */
export const packageRoot = join(__dirname, "..", "..");

/**
 * Loads the .node file of the package in `root`. Throws ERR_BNB_NO_BINARY, which says whether the file is not there, why
 * the loader refuses it, or that there is none for this platform, and what to do.
 */
export function loadAddon(root: string = packageRoot): unknown {
  const path = findAddon(root);
  // Not `require`, which a bundler would replace by its own.
  const target = { exports: {} as unknown };
  try {
    process.dlopen(target, path);
  } catch (cause) {
    // What the addon itself says when it cannot start.
    const { code, message } = cause as { code?: unknown; message: string };
    if (typeof code === "string" && code.startsWith("ERR_BNB_")) {
      throw new BnbError(code as ErrorCode, message, { cause });
    }
    fail(`${path} cannot be loaded: ${code === "ERR_DLOPEN_DISABLED" ? switchedOff : (flaw(path) ?? message)}`, cause);
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
    const nodeGypBuild = createRequire(__filename)("node-gyp-build") as { path(folder: string): string };
    return nodeGypBuild.path(root);
  } catch (cause) {
    // It looks at more of the machine than the permission model may allow.
    if ((cause as NodeJS.ErrnoException).code === "ERR_ACCESS_DENIED") {
      const usual = join(root, "prebuilds", `${process.platform}-${process.arch}`, "bitsandbytes.node");
      if (mayRead(usual)) return usual;
    }
    const platform = `${process.platform}-${process.arch}`;
    const manifest = manifestIn(root);
    if (manifest === "denied") {
      fail(
        `the permission model keeps ${root} from this process: start Node.js with --allow-fs-read=${join(root, "*")}`,
        cause,
      );
    }
    if (manifest !== "bitsandbytes-node") {
      fail(
        `the native binary must lie in the package's folder, but this code runs in ${root}, which is not that folder: a ` +
          `bundler has moved it. Leave bitsandbytes-node out of the bundle (esbuild: --external:bitsandbytes-node; ` +
          `webpack: externals), or set BNB_BINARY to the path of the .node file`,
        cause,
      );
    }
    if (existsSync(join(root, "package-lock.json"))) {
      fail(
        `there is no native binary in this clone yet: run "npm run build" (needs CMake and a C++20 compiler)`,
        cause,
      );
    }
    const prebuilt = foldersIn(join(root, "prebuilds"));
    if (prebuilt.length === 0) fail(`there are no native binaries in ${root}: install the package again`, cause);
    const has = `the package has native binaries for ${prebuilt.join(", ")}`;
    const instead = `"npx bnb build" makes one from source (needs CMake and a C++20 compiler)`;
    if (prebuilt.includes(platform)) fail(`${has}, but none that this Node.js can use: ${instead}`, cause);
    fail(`${has}, but none for ${platform}: ${instead}`, cause);
  }
}

const switchedOff =
  "addons are switched off. Start Node.js without --no-addons, or with --allow-addons beside --permission";

/** What is wrong with a file that the system refuses, where its first bytes tell; else the system's own words are best. */
function flaw(path: string): string | undefined {
  const head = new Uint8Array(20);
  try {
    const file = openSync(path, "r");
    readSync(file, head, 0, head.length, 0);
    closeSync(file);
  } catch {
    return undefined;
  }
  const kind =
    kinds[Buffer.from(head.subarray(0, 4)).toString("hex")] ?? kinds[Buffer.from(head.subarray(0, 2)).toString("hex")];
  if (kind === undefined) return "it is damaged, its first bytes are those of no library: install the package again";
  const arch = kind === "linux" ? machines[head[18] ?? 0] : process.arch;
  if (kind === process.platform && arch === process.arch) return undefined;
  return `it is a library for ${arch === undefined || kind !== "linux" ? kind : `${kind}-${arch}`}, and this is ${process.platform}-${process.arch}`;
}

/** How the libraries of a platform begin, in hexadecimal. */
const kinds: Record<string, string> = { "7f454c46": "linux", cffaedfe: "darwin", cafebabe: "darwin", "4d5a": "win32" };
/** Byte 18 of an ELF file. */
const machines: Record<number, string> = { 3: "ia32", 40: "arm", 62: "x64", 183: "arm64", 243: "riscv64" };

function mayRead(path: string): boolean {
  try {
    return existsSync(path);
  } catch {
    return false;
  }
}

function fail(message: string, cause?: unknown): never {
  throw new BnbError("ERR_BNB_NO_BINARY", `bitsandbytes-node: ${message}`, { cause });
}

/** The name in a folder's package.json; "" without one, "denied" where it may not be read. */
function manifestIn(folder: string): string {
  try {
    return (JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { name: string }).name;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ERR_ACCESS_DENIED" ? "denied" : "";
  }
}

/** The folders in a folder: prebuilds has a README.md beside them. */
function foldersIn(path: string): string[] {
  try {
    const entries = readdirSync(path, { withFileTypes: true });
    return entries
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name)
      .sort();
  } catch {
    return [];
  }
}
