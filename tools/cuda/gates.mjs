// npm run gates [-- --write] [-- --all] [-- --arch 80,90] [-- <part of a path> ...]: compiles the CUDA kernels for every
// architecture and compares registers, spills, shared memory, code and main loops with tools/cuda/budget.tsv. Fails when one
// does not compile without warnings, spills, or grows by more than 5 %; --write puts the new figures into the table.
// A file is not compiled again when nothing that the compiler reads has changed since its rows were written
// (tools/cuda/inputs.tsv; --all compiles it nevertheless), or since the last run here (build-gates). Skipped where nvcc is
// missing.
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { basename, dirname, join } from "node:path";
import { parseArgs } from "node:util";
// The PTX of the newest is what later GPUs compile; its cubin is made from it, so it is checked too.
import { allArchs } from "../build/targets.mjs";
import { buildCommands } from "./build-commands.mjs";
import { compare, figures, formatTable, instructionsPerElement, measure, parseTable, shortNames } from "./cubin.mjs";

const table = "tools/cuda/budget.tsv";
const inputsTable = "tools/cuda/inputs.tsv";
const cache = "build-gates";

const { values: options, positionals: filters } = parseArgs({
  options: {
    write: { type: "boolean" },
    all: { type: "boolean" },
    arch: { type: "string" },
    report: { type: "string" },
  },
  allowPositionals: true,
});
const archs = options.arch?.split(",") ?? allArchs;
// For this one all of a file is compiled: the compiler for the host refuses what that for the GPU takes.
const hostArch = archs.includes("90") ? "90" : archs[0];
const sources = readdirSync("csrc/cuda", { recursive: true, encoding: "utf8" })
  .filter((path) => path.endsWith(".cu") && !path.startsWith("emulation"))
  .filter((path) => filters.length === 0 || filters.some((part) => path.includes(part)))
  .sort();

/**
 * Ends with the counts of a vitest report, for .ci/summary.mjs: a source file is one test.
 * @type {(failed: number, skipped: number) => never}
 */
function finish(failed, skipped) {
  const report = { numPassedTests: sources.length - failed - skipped, numFailedTests: failed };
  if (options.report) {
    writeFileSync(
      options.report,
      JSON.stringify({ ...report, numPendingTests: skipped, numTodoTests: 0, testResults: [] }),
    );
  }
  process.exit(failed > 0 ? 1 : 0);
}

// The compiler and the flags are those of the build itself, which CMake writes down.
const configured = "build-gates/config";
const ninja = spawnSync("ninja", ["--version"]).status === 0 ? ["-G", "Ninja"] : [];
const cmake = spawnSync("cmake", ["-S", ".", "-B", configured, ...ninja, "-DBNB_CUDA=on", "-DBNB_CUDA_ARCHS=90"], {
  encoding: "utf8",
});
if (cmake.status !== 0) {
  const output = cmake.error?.message ?? `${cmake.stdout}${cmake.stderr}`;
  const absent = cmake.error !== undefined || output.includes("nvcc was not found");
  if (!absent) throw new Error(`the build cannot be configured with CUDA:\n${output}`);
  console.log(`gates: SKIPPED, ${cmake.error ? "cmake" : "nvcc"} was not found; no kernel was compiled for a GPU`);
  finish(0, sources.length);
}
const commands = buildCommands(readFileSync(`${configured}/compile_commands.json`, "utf8"), process.cwd());
const [nvcc = ""] = [...commands.values()].map((command) => command.compiler);
const compiler = `nvcc ${/V(\d+\.\d+\.\d+)/.exec(spawnSync(nvcc, ["--version"], { encoding: "utf8" }).stdout)?.[1]}`;
/** @type {(source: string) => string[]} */
const flagsOf = (source) => [...(commands.get(`csrc/cuda/${source}`)?.flags ?? []), "-Xptxas=-v"];

const reader = ["tools/cuda/cubin.mjs", "tools/cuda/sass.mjs"].map((path) => readFileSync(path, "utf8")).join("");

/**
 * A hash of everything that a compilation reads from this repository, and of what compiles and measures it.
 * @type {(source: string, arch: string) => string}
 */
function fingerprint(source, arch) {
  const seen = new Map();
  /** @type {(path: string) => void} */
  const visit = (path) => {
    if (seen.has(path)) return;
    const text = readFileSync(path, "utf8");
    seen.set(path, text);
    for (const [, name = ""] of text.matchAll(/^\s*#\s*include\s+"([^"]+)"/gm)) {
      const found = [join(dirname(path), name), join("csrc", name)].find((candidate) => existsSync(candidate));
      if (found) visit(found);
    }
  };
  visit(join("csrc/cuda", source));
  const hash = createHash("sha256").update([compiler, arch, ...flagsOf(source), reader].join("\n"));
  for (const [path, text] of [...seen].sort()) hash.update(`${path}\n${text}`);
  return hash.digest("hex");
}

/** @type {(command: string, args: string[]) => Promise<{ status: number | null, text: string }>} */
const execute = (command, args) =>
  new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    let text = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (text += chunk));
    child.on("close", (status) => resolve({ status, text }));
    child.on("error", (error) => resolve({ status: 1, text: String(error) }));
  });

/** @type {(names: string[]) => string[]} */
function demangle(names) {
  if (names.length === 0) return [];
  const { status, stdout } = spawnSync("c++filt", { input: names.join("\n"), encoding: "utf8" });
  if (status !== 0) throw new Error("c++filt, part of binutils, was not found");
  return stdout.trimEnd().split("\n");
}

/**
 * @typedef {import("./cubin.mjs").Figures} Figures
 * @typedef {[name: string, figures: Figures][]} Kernels
 */
/** @type {(kernels: Kernels) => Kernels} */
function withShortNames(kernels) {
  const names = shortNames(kernels.map(([name]) => name));
  return kernels.map(([, found], i) => [names[i], found]);
}

/**
 * One source for one architecture: its kernels, or why there are none.
 * @type {(task: { source: string, arch: string }) => Promise<{ kernels?: Kernels, error?: string, seconds: number }>}
 */
async function compile({ source, arch }) {
  const stem = join(cache, arch, source.replaceAll("/", "-"));
  const inputs = fingerprint(source, arch);
  const stored = existsSync(`${stem}.json`) ? JSON.parse(readFileSync(`${stem}.json`, "utf8")) : null;
  if (stored?.inputs === inputs) return { kernels: withShortNames(stored.kernels), seconds: 0 };
  const began = performance.now();
  const kept = `${stem}.parts`;
  mkdirSync(kept, { recursive: true });
  const cubin = arch === hostArch ? join(kept, `${basename(source, ".cu")}.sm_${arch}.cubin`) : join(kept, "cubin");
  const output =
    arch === hostArch ? ["-c", "--keep", `--keep-dir=${kept}`, "-o", join(kept, "object")] : ["-cubin", "-o", cubin];
  const { status, text } = await execute(nvcc, [
    ...flagsOf(source),
    `-arch=sm_${arch}`,
    ...output,
    `csrc/cuda/${source}`,
  ]);
  const seconds = (performance.now() - began) / 1000;
  // A file whose kernels all exist for other architectures makes no cubin with code in it.
  const found = status === 0 ? measure(text, readFileSync(cubin)) : null;
  rmSync(kept, { recursive: true });
  if (!found) return { error: text, seconds };
  const names = demangle([...found.keys()]);
  /** @type {Kernels} */
  const kernels = [...found.values()].map((value, i) => [names[i], value]);
  writeFileSync(`${stem}.json`, JSON.stringify({ inputs, kernels }));
  return { kernels: withShortNames(kernels), seconds };
}

const committed = existsSync(table) ? parseTable(readFileSync(table, "utf8")) : parseTable("");
/** @typedef {Map<string, Map<string, Figures>>} Rows */
/** @type {(source: string, rows: Rows) => Rows} */
const rowsOf = (source, rows) => new Map([...rows].filter(([key]) => key.split("\t")[0] === source));

/**
 * What the rows of a source were made from, and the rows themselves: both must be as they were when they were written.
 * @type {(source: string, rows: Rows) => string}
 */
function seal(source, rows) {
  const hash = createHash("sha256").update(allArchs.map((arch) => fingerprint(source, arch)).join("\n"));
  for (const [key, cells] of [...rowsOf(source, rows)].sort()) hash.update(JSON.stringify([key, [...cells].sort()]));
  return hash.digest("hex");
}
const sealed = new Map(
  (existsSync(inputsTable) ? readFileSync(inputsTable, "utf8") : "")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => /** @type {[string, string]} */ (line.split("\t"))),
);
/** @type {(source: string) => boolean} */
const isUnchanged = (source) => sealed.get(source) === seal(source, committed.rows);
const unchanged = options.all || filters.length > 0 ? [] : sources.filter(isUnchanged);

for (const arch of archs) mkdirSync(join(cache, arch), { recursive: true });
/** @type {(source: string) => number} */
const size = (source) => statSync(join("csrc/cuda", source)).size;
// The long ones first, so that none is waited for at the end.
const changed = sources.filter((source) => !unchanged.includes(source));
const tasks = archs.flatMap((arch) => changed.map((source) => ({ source, arch })));
tasks.sort((a, b) => size(b.source) - size(a.source));
/** @type {import("./cubin.mjs").Table} */
const measured = { compiler, archs, rows: new Map() };
for (const source of unchanged)
  for (const [key, cells] of rowsOf(source, committed.rows)) measured.rows.set(key, cells);
/** @type {import("./cubin.mjs").Finding[]} */
const problems = [];
const times = new Map();
const began = performance.now();
let compiled = 0;

async function worker() {
  for (let task = tasks.shift(); task; task = tasks.shift()) {
    const { source, arch } = task;
    const { kernels, error, seconds } = await compile(task);
    if (seconds > 0) compiled++;
    times.set(source, (times.get(source) ?? 0) + seconds);
    if (error !== undefined) problems.push({ file: source, message: `does not compile for sm_${arch}\n${error}` });
    for (const [name, found] of kernels ?? []) {
      const key = `${source}\t${name}`;
      const cells = measured.rows.get(key) ?? new Map();
      measured.rows.set(key, cells.set(arch, found));
    }
  }
}
const jobs = Number(process.env.BNB_JOBS ?? availableParallelism());
await Promise.all(Array.from({ length: jobs }, worker));

const total = sources.length * archs.length;
const seconds = ((performance.now() - began) / 1000).toFixed(0);
console.log(
  `gates: ${measured.rows.size} kernels in ${sources.length} files for sm_${archs.join(" ")}, ${compiler}; ` +
    `${compiled} of ${total} compiled, ${seconds} s; ${unchanged.length} files are as when their rows were written`,
);
const slow = [...times].sort((a, b) => b[1] - a[1]).filter(([, time]) => time > 20);
if (slow.length > 0) console.log(slow.map(([source, time]) => `  ${time.toFixed(0)} s in ${source}`).join("\n"));

const perElement = instructionsPerElement(readFileSync("tools/cuda/loops.tsv", "utf8"), measured, archs);
if (perElement.length > 0) console.log("  instructions per element of main loops, beside what the design allows");
for (const line of perElement) console.log(`    ${line}`);

if (options.write && problems.length === 0) {
  if (archs.length === allArchs.length) {
    // Files that were not looked at keep their rows, as long as they exist.
    for (const [key, cells] of committed.rows) {
      const file = key.split("\t")[0];
      if (!sources.includes(file) && existsSync(join("csrc/cuda", file))) measured.rows.set(key, cells);
    }
    if (filters.length > 0 && committed.rows.size > 0 && committed.compiler !== compiler) {
      throw new Error(`the table was made with ${committed.compiler}: write all of it, not a part`);
    }
    const text = formatTable(measured);
    writeFileSync(table, text);
    for (const source of changed) sealed.set(source, seal(source, parseTable(text).rows));
    const lines = [...sealed].filter(([source]) => existsSync(join("csrc/cuda", source))).sort();
    writeFileSync(inputsTable, `${lines.map((line) => line.join("\t")).join("\n")}\n`);
    console.log(`gates: wrote ${table} and ${inputsTable}`);
  } else {
    throw new Error("--write needs all architectures");
  }
  const spills = [...measured.rows].filter(([, cells]) => [...cells.values()].some((cell) => cell.spill > 0));
  for (const [key] of spills) console.log(`  spills: ${key.replace("\t", " ")}`);
  finish(0, 0);
}

// A named part is being worked on: show its figures.
if (filters.length > 0) {
  console.log(`  per architecture: ${figures.join(" ")}`);
  for (const [key, cells] of measured.rows) {
    console.log(`  ${key.split("\t")[1]}`);
    for (const [arch, found] of cells) console.log(`    sm_${arch}\t${figures.map((name) => found[name]).join("\t")}`);
  }
}
const { wrong, shrunk, sameCompiler } = compare(committed, measured, sources, archs);
if (!sameCompiler) {
  console.log(`gates: ${table} was made with ${committed.compiler}, this is ${compiler}: only spills are compared`);
}
problems.push(...wrong);
// What does not compile and what spills before what the table merely lacks.
problems.sort((a, b) => Number(a.message.includes("in the table")) - Number(b.message.includes("in the table")));
for (const { file, message } of problems.slice(0, 30)) console.log(`FAILED ${file}: ${message}`);
for (const { file, message } of shrunk)
  console.log(`  smaller, "npm run gates -- --write" keeps it so: ${file}: ${message}`);
if (problems.length > 0) console.log(`gates: ${problems.length} problems; if they are meant, npm run gates -- --write`);
finish(new Set(problems.map(({ file }) => file)).size, 0);
