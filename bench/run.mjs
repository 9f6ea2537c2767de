// npm run bench [-- name ...]: compiles the benchmarks and runs all of them, or those named, one after the other,
// each in a process of its own, with the options that begin with --. A benchmark is a module that measures and calls record(). With --readme, the
// recorded figures are written into README.md instead; `gpu [option ...]` runs those of bench/gpu (see --help there).
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";

const names = readdirSync("bench")
  .filter((file) => file.endsWith(".ts") && file !== "timing.ts")
  .map((file) => file.slice(0, -3));
const wanted = process.argv.slice(2).filter((word) => !word.startsWith("--") || word === "--readme");
/** Options of the benchmarks themselves, such as --quick. */
const options = process.argv.slice(2).filter((word) => word.startsWith("--") && word !== "--readme");
if (wanted[0] === "--readme") {
  await import("./readme.mjs");
  process.exit(0);
}
const gpu = wanted[0] === "gpu";
const unknown = gpu ? [] : wanted.filter((name) => !names.includes(name));
if (unknown.length > 0) {
  console.error(`bench: unknown ${unknown.join(", ")}; there are ${names.join(", ")}`);
  process.exit(1);
}
/** @type {(...args: string[]) => number} */
const run = (...args) => spawnSync(process.execPath, args, { stdio: "inherit" }).status ?? 1;
if (run("node_modules/typescript/bin/tsc", "-p", "bench/tsconfig.json") !== 0) process.exit(1);
if (gpu) process.exit(run("--expose-gc", "build/bench/gpu/main.js", ...process.argv.slice(3)));
for (const name of wanted.length > 0 ? wanted : names) {
  console.log(`\n${name}`);
  if (run("--expose-gc", `build/bench/${name}.js`, ...options) !== 0) process.exit(1);
}
