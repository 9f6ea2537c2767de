// `bnb build`: makes the native binary from the sources that the package brings, for a machine without a prebuilt one.
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { makeFolders } from "../../hub/make-folders.js";
import { BnbError } from "../../native/errors.js";
import { packageRoot } from "../../native/load.js";
import { command } from "../command.js";

/** `bnb build` as it is called. */
export const build = command({
  about: `Builds the native binary of this package from source, into its folder, where it comes before a prebuilt one.
Needs CMake 3.18, a C++20 compiler and npm, which fetches the headers of Node-API. BNB_CUDA=on|off says whether with
kernels for GPUs, BNB_CUDA_ARCHS="80;90" for which; by default for those that are here. BNB_JOBS is how many compilers
run at a time.`,
  options: {},
  async run({ terminal }) {
    const manifest = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as {
      devDependencies: Record<string, string>;
    };
    const headers = join(packageRoot, "build", "headers");
    await makeFolders(headers);
    writeFileSync(join(headers, "package.json"), "{}\n");
    const wanted = ["node-addon-api", "node-api-headers"].map((name) => `${name}@${manifest.devDependencies[name]}`);
    const quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"];
    step("npm", ["install", ...quiet, ...wanted], headers);
    step(process.execPath, [join(packageRoot, "tools", "build", "native.mjs")], packageRoot, {
      NODE_PATH: join(headers, "node_modules"),
    });
    const folder = join(packageRoot, "build", "Release");
    terminal.line(`the binary lies in ${folder}`);
    return { json: { folder } };
  },
});

function step(program: string, args: string[], cwd: string, env: Record<string, string> = {}): void {
  // What the steps print goes to stderr: --json leaves stdout to the result.
  const stdio = ["ignore", 2, 2] as const;
  const { status, error } = spawnSync(program, args, { cwd, env: { ...process.env, ...env }, stdio: [...stdio] });
  if (error || status !== 0) {
    const what = error ? error.message : "see above";
    throw new BnbError("ERR_BNB_NO_BINARY", `build: ${program} must end well, but did not: ${what}`);
  }
}
