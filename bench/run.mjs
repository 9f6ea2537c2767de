// npm run bench [-- name ...] [--json FILE] [--compare FILE] [--html FILE]: compiles the benchmarks and runs all of them, or those
// named, one after the other, each in a process of its own, with the other options that begin with --. A benchmark is a module
// that measures and calls record(), which writes bench/results/<name>.json. --json puts those of all into one file, --compare says
// how many times as fast they are as those of such a file, --html writes a page with a roofline plot. With --readme, the recorded
// figures are written into README.md instead; `gpu [option ...]` runs those of bench/gpu (see --help there).
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { compareReports, readReports, reportPage } from "./report.mjs";

const names = readdirSync("bench")
  .filter((file) => file.endsWith(".ts") && file !== "timing.ts")
  .map((file) => file.slice(0, -3));
const args = process.argv.slice(2);
const gpu = args[0] === "gpu";
const { values, positionals, tokens } = parseArgs({
  args: gpu ? [] : args,
  options: {
    json: { type: "string" },
    compare: { type: "string" },
    html: { type: "string" },
    readme: { type: "boolean" },
  },
  strict: false,
  tokens: true,
});
if (values["readme"]) {
  await import("./readme.mjs");
  process.exit(0);
}
const own = ["json", "compare", "html"];
for (const name of own) {
  if (values[name] === undefined || typeof values[name] === "string") continue;
  console.error(`bench: --${name} needs a file`);
  process.exit(1);
}
/** @type {(name: string) => string | undefined} */
const file = (name) => /** @type {string | undefined} */ (values[name]);
/** Options of the benchmarks themselves, such as --quick. */
const options = tokens.flatMap((token) =>
  token.kind === "option" && !own.includes(token.name) ? [token.rawName] : [],
);
const unknown = positionals.filter((name) => !names.includes(name));
if (unknown.length > 0) {
  console.error(`bench: unknown ${unknown.join(", ")}; there are ${names.join(", ")}`);
  process.exit(1);
}
// Before anything is measured: a mistake in the name is known at once.
const compare = file("compare");
if (compare !== undefined && !existsSync(compare)) {
  console.error(`bench: --compare ${compare} does not exist`);
  process.exit(1);
}
const before = compare === undefined ? null : readReports(compare);
/** @type {(...args: string[]) => number} */
const run = (...words) => spawnSync(process.execPath, words, { stdio: "inherit" }).status ?? 1;
if (run("node_modules/typescript/bin/tsc", "-p", "bench/tsconfig.json") !== 0) process.exit(1);
if (gpu) process.exit(run("--expose-gc", "build/bench/gpu/main.js", ...args.slice(1)));
const wanted = positionals.length > 0 ? positionals : names;
for (const name of wanted) {
  console.log(`\n${name}`);
  if (run("--expose-gc", `build/bench/${name}.js`, ...options) !== 0) process.exit(1);
}
const reports = wanted.flatMap((name) => readReports(`bench/results/${name}.json`));
const [json, html] = [file("json"), file("html")];
if (json !== undefined) writeFileSync(json, `${JSON.stringify({ schema: 1, benchmarks: reports }, null, 2)}\n`);
if (html !== undefined) writeFileSync(html, reportPage(reports));
if (before) console.table(compareReports(before, reports));
