// Makes a clone ready to run: installs the locked packages and builds what is older than its sources. Plain Node,
// because it runs before anything is installed; silent and instant when there is nothing to do.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");

/**
 * Latest change under a path. Folders count too: deleting a file changes only its folder.
 * @param {string} path
 * @returns {number}
 */
function changed(path) {
  const full = join(root, path);
  const stat = statSync(full, { throwIfNoEntry: false });
  if (!stat) return 0;
  if (!stat.isDirectory()) return stat.mtimeMs;
  return readdirSync(full).reduce((latest, name) => Math.max(latest, changed(join(path, name))), stat.mtimeMs);
}

/** @type {(output: string, sources: string[]) => boolean} */
const isStale = (output, sources) =>
  !existsSync(join(root, output)) || changed(output) < Math.max(...sources.map((source) => changed(source)));

/** @type {(why: string, command: string, args: string[]) => void} */
function step(why, command, args) {
  console.log(`${why}: ${command} ${args.join(" ")}`);
  const start = performance.now();
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: "inherit" });
  if (error) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
  console.log(`done in ${((performance.now() - start) / 1000).toFixed(1)} s`);
}

if (isStale("node_modules/.package-lock.json", ["package-lock.json"])) {
  step("Installing the packages of package-lock.json", "npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
}
if (isStale("build/Release/bitsandbytes.node", ["csrc", "CMakeLists.txt", "binding.gyp"])) {
  step("Building the native addon", "npm", ["run", "--silent", "build:native"]);
}
if (isStale("dist/package.json", ["src", "tsconfig.json", "tsconfig.build.json"])) {
  step("Compiling TypeScript", "npm", ["run", "--silent", "build:ts"]);
}
