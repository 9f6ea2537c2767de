// npm run test:mutants: plants the mistakes of mutants.tsv one by one and sees whether the tests of their area notice.
//
// A row is a file, a text that occurs in it exactly once, what takes its place, and the tests to run ("\n" in a cell is a
// line's end). A row whose text is not found once is an error: it went stale. The mistakes are made in a copy under
// build-mutants, so the tree is never changed; those of csrc build the addon there. Results are kept in
// build-mutants/results.json and not repeated.
//
// --only TEXT     rows whose file or search text contains TEXT
// --again STATE   repeats rows with that result: survived, noticed, build error
// --check         only says which rows are stale
// --minutes N     ends after N minutes; the next call goes on
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "..", "..", "..");
const copy = join(root, "build-mutants");
const resultsFile = join(copy, "results.json");
const timeout = 300_000;

const { values: options } = parseArgs({
  options: {
    only: { type: "string", default: "" },
    again: { type: "string" },
    check: { type: "boolean", default: false },
    minutes: { type: "string", default: "600" },
  },
});

/** @typedef {{ key: string, file: string, search: string, replacement: string, tests: string[] }} Mutant */
/** @typedef {"noticed" | "survived" | "build error"} Result */

const text = readFileSync(join(here, "mutants.tsv"), "utf8");
/** @type {Mutant[]} */
const mutants = text
  .trimEnd()
  .split("\n")
  .slice(1)
  .map((line) => {
    const [file = "", search = "", replacement = "", tests = ""] = line
      .split("\t")
      .map((c) => c.replaceAll("\\n", "\n"));
    return { key: `${file}: ${search} -> ${replacement}`, file, search, replacement, tests: tests.split(" ") };
  });

/** What is wrong with a row, or null. @param {Mutant} mutant */
function stale({ file, search, tests }) {
  if (!existsSync(join(root, file))) return "the file does not exist";
  const count = readFileSync(join(root, file), "utf8").split(search).length - 1;
  if (count !== 1) return `the text occurs ${count} times`;
  const missing = tests.find((test) => !existsSync(join(root, test)));
  return missing ? `${missing} does not exist` : null;
}

const staleOnes = mutants.filter((mutant) => {
  const problem = stale(mutant);
  if (problem) console.log(`stale, ${problem}: ${mutant.key}`);
  return problem;
});
console.log(`${mutants.length} mutants, ${staleOnes.length} stale`);
process.exitCode = staleOnes.length > 0 ? 1 : 0;
if (options.check) process.exit();

/** @param {string} command @param {string[]} args @param {Record<string, string>} [env] @param {number} [limit] */
const run = (command, args, env = {}, limit = timeout) =>
  spawnSync(command, args, { cwd: copy, timeout: limit, env: { ...process.env, ...env }, encoding: "utf8" });

/** The tracked sources as they are now. */
function refresh() {
  mkdirSync(copy, { recursive: true });
  for (const folder of ["src", "csrc", "test", "tools", "bench"]) {
    rmSync(join(copy, folder), { recursive: true, force: true });
    // With their times, so that ninja builds only what differs.
    cpSync(join(root, folder), join(copy, folder), { recursive: true, preserveTimestamps: true });
  }
  for (const file of [
    "package.json",
    "CMakeLists.txt",
    "binding.gyp",
    "tsconfig.json",
    "vitest.config.ts",
    "README.md",
  ]) {
    cpSync(join(root, file), join(copy, file), { preserveTimestamps: true });
  }
  if (!existsSync(join(copy, "node_modules"))) symlinkSync(join(root, "node_modules"), join(copy, "node_modules"));
}

const build = (/** @type {number} */ limit = timeout) =>
  run("npm", ["run", "--silent", "build:native"], { BNB_CUDA: "off" }, limit);

/** @param {Mutant} mutant @returns {Result} */
function judge({ file, search, replacement, tests }) {
  const path = join(copy, file);
  const before = readFileSync(path, "utf8");
  writeFileSync(
    path,
    before.replace(search, () => replacement),
  );
  try {
    if (file.startsWith("csrc/") && build().status !== 0) return "build error";
    const { status, stdout, error } = run("node_modules/.bin/vitest", ["run", "--bail", "1", ...tests]);
    if (status === 0) return "survived";
    // A hang counts as noticed; a runner that did not run does not.
    const hasRun = stdout.includes("Test Files") || (error && "code" in error && error.code === "ETIMEDOUT");
    if (!hasRun) throw new Error(`vitest did not run: ${error ?? stdout}`);
    return "noticed";
  } finally {
    writeFileSync(path, before);
  }
}

/** @type {Record<string, Result>} */
const results = existsSync(resultsFile) ? JSON.parse(readFileSync(resultsFile, "utf8")) : {};
const wanted = mutants.filter(
  (mutant) =>
    !staleOnes.includes(mutant) &&
    mutant.key.includes(options.only) &&
    (!(mutant.key in results) || results[mutant.key] === options.again),
);
const until = performance.now() + 60_000 * Number(options.minutes);
if (wanted.length > 0) {
  refresh();
  const first = build(6 * timeout);
  if (first.status !== 0) throw new Error(`the copy does not build: ${first.error ?? first.stdout + first.stderr}`);
}
let isChanged = false; // whether the copy's addon has a mistake in it
for (const mutant of wanted) {
  if (performance.now() > until) break;
  const native = mutant.file.startsWith("csrc/");
  if (isChanged && !native) build();
  isChanged = native;
  const start = performance.now();
  const result = judge(mutant);
  results[mutant.key] = result;
  writeFileSync(resultsFile, JSON.stringify(results, null, 1));
  console.log(`${result.padEnd(11)} ${((performance.now() - start) / 1000).toFixed(0).padStart(4)} s  ${mutant.key}`);
}
if (isChanged) build();

const table = new Map();
for (const { file, key } of mutants) {
  const folder = file.split("/").slice(0, 2).join("/");
  const row = table.get(folder) ?? { noticed: 0, survived: 0, "build error": 0, "not run": 0 };
  row[results[key] ?? "not run"]++;
  table.set(folder, row);
}
console.table(Object.fromEntries(table));
const count = (/** @type {Result} */ state) => mutants.filter(({ key }) => results[key] === state).length;
for (const { key } of mutants) if (results[key] === "survived") console.log(`survived: ${key}`);
const judged = count("noticed") + count("survived");
console.log(`${count("noticed")} of ${judged} noticed (${((100 * count("noticed")) / judged).toFixed(1)} %)`);
