// The bundle's test command: node tests.mjs [option ...] [part of a path ...]. Files whose path contains the first part
// come first, then those of the second; without parts, all, and those of ops before the rest.
//   --grep TEXT       only tests with it in their name     --wrap COMMAND  runs each file under a command (a sanitizer)
//   --timeout SECONDS for one file (default 600)           --budget SECONDS for all: what has not begun then is not run
//   --jobs N          files at a time                      --report FILE   JSON, written again after each file
// Each test file runs in a process of its own, so that a crash or a hang costs one file. The last line is
// "N passed, N failed, N skipped". Ends with 1 if something failed, else with 3 if something was not run.
import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

/**
 * @typedef {{ passed: number, failed: number, skipped: number, failures: { name: string, message: string }[] }} Counts
 * @typedef {Counts & { file: string, seconds: number }} Result
 */

const { values: options, positionals } = parseArgs({
  options: {
    grep: { type: "string" },
    wrap: { type: "string" },
    report: { type: "string" },
    jobs: { type: "string" },
    timeout: { type: "string", default: "600" },
    budget: { type: "string", default: "Infinity" },
    one: { type: "string" },
  },
  allowPositionals: true,
});
const [timeout, budget] = [Number(options.timeout), Number(options.budget)];
if (!(timeout > 0) || Number.isNaN(budget)) throw new Error("--timeout and --budget must be seconds");
// Where a file that is stopped was when it was stopped.
const nowOf = (/** @type {string} */ output) => `${output}.now`;

if (options.one !== undefined) {
  const output = options.one;
  // A promise that nothing will ever keep does not keep Node alive, and neither does the timer that would say so.
  setInterval(() => {}, 1000);
  // The stand-in for vitest; its types are vitest's own.
  const { runFile } = /** @type {any} */ (await import("vitest"));
  const result = await runFile(resolve(positionals[0]), {
    setupFiles: [resolve("test/setup.js")],
    testNamePattern: options.grep === undefined ? undefined : new RegExp(options.grep),
    // A test that only waits fails by itself, and the others of its file still count.
    testTimeout: timeout * 500,
    onTest: (/** @type {string} */ name) => writeFileSync(nowOf(output), name),
  });
  rmSync(nowOf(output), { force: true });
  writeFileSync(output, JSON.stringify(result));
  process.exit(result.failed > 0 ? 1 : 0);
}

const parts = positionals.length > 0 ? positionals : ["ops/", ""];
const rank = (/** @type {string} */ path) => parts.findIndex((part) => path.includes(part));
const files = readdirSync("test", { recursive: true, encoding: "utf8" })
  .filter((path) => path.endsWith(".test.js") && rank(path) >= 0)
  .sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
const results = mkdtempSync(join(tmpdir(), "bnb-tests-"));
const wrap = options.wrap?.split(" ").filter(Boolean) ?? [];
const began = performance.now();
const elapsed = (since = began) => (performance.now() - since) / 1000;

/** @type {(path: string) => string | null} */
function read(path) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}

/** @type {Set<() => void>} */
const running = new Set();
for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, () => {
    for (const stop of running) stop();
    process.exit(1);
  });
}

/** @type {(file: string) => Promise<Result | null>} null where all time was up before it ended */
function run(file) {
  const output = join(results, `${file.replaceAll("/", "-")}.json`);
  const script = fileURLToPath(import.meta.url);
  const seconds = Math.min(timeout, budget - elapsed());
  const args = ["--expose-gc", script, "--one", output, "--timeout", String(seconds)];
  if (options.grep !== undefined) args.push("--grep", options.grep);
  const [command, ...rest] = [...wrap, process.execPath, ...args, join("test", file)];
  const start = performance.now();
  return new Promise((done) => {
    // A group of its own: a sanitizer that is killed leaves what it runs.
    const child = spawn(command, rest, { stdio: ["ignore", "pipe", "pipe"], detached: true });
    let text = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (text += chunk));
    let stopped = false;
    const stop = () => {
      stopped = true;
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
    };
    const timer = setTimeout(stop, seconds * 1000);
    running.add(stop);
    const finish = (/** @type {string} */ why) => {
      clearTimeout(timer);
      running.delete(stop);
      if (stopped && seconds < timeout) return done(null);
      /** @type {Counts} */
      const result = JSON.parse(read(output) ?? '{ "passed": 0, "failed": 0, "skipped": 0, "failures": [] }');
      // A sanitizer's finding, a crash, or a file that was stopped: no test of its own failed.
      if (why !== "" && result.failed === 0) {
        const test = read(nowOf(output));
        result.failed = 1;
        result.failures.push({ name: test === null ? why : `${why} in "${test}"`, message: text.slice(-6000) });
      }
      done({ file, ...result, seconds: Number(elapsed(start).toFixed(1)) });
    };
    child.on("error", (error) => finish(error.message));
    child.on("close", (status, signal) => {
      const why = stopped ? `stopped after ${seconds} s` : `ended with ${signal ?? status}`;
      finish(status === 0 ? "" : why);
    });
  });
}

/** @type {Result[]} */
const done = [];
const queue = [...files];
const sum = (/** @type {"passed" | "failed" | "skipped"} */ key) => done.reduce((n, result) => n + result[key], 0);

const notRun = () => files.filter((file) => !done.some((result) => result.file === file));

// As it stands: whoever is stopped in the middle leaves what was done.
function report() {
  if (!options.report) return;
  const counts = { passed: sum("passed"), failed: sum("failed"), skipped: sum("skipped") };
  const content = { schema: 2, ...counts, seconds: Number(elapsed().toFixed(1)), notRun: notRun(), files: done };
  writeFileSync(`${options.report}.part`, `${JSON.stringify(content, null, 2)}\n`);
  renameSync(`${options.report}.part`, options.report);
}

async function worker() {
  for (let file = queue.shift(); file; file = queue.shift()) {
    // A file of a second or two would be stopped, and look like a failure.
    if (budget - elapsed() < Math.min(5, budget / 10)) return;
    const result = await run(file);
    if (result === null) continue;
    done.push(result);
    report();
    const { passed, failed, skipped } = result;
    const note = skipped > 0 ? `, ${skipped} not run` : "";
    console.log(
      `${failed > 0 ? "FAILED" : "ok    "} ${file} (${passed} passed, ${failed} failed${note}, ${result.seconds} s)`,
    );
    const shown = result.failures.slice(0, 10);
    for (const { name, message } of shown) console.log(`  ${name}\n${message.trimEnd().replace(/^/gm, "    ")}`);
    const more = result.failures.length - shown.length;
    if (more > 0) console.log(`  and ${more} more`);
  }
}
// GPU memory and the CPU's thread pool are shared by all of them.
const jobs = Number(options.jobs ?? Math.max(1, Math.min(8, Math.floor(availableParallelism() / 2))));
report();
await Promise.all(Array.from({ length: jobs }, worker));
rmSync(results, { recursive: true, force: true });

const failed = done.filter((result) => result.failed > 0).map(({ file }) => file);
if (failed.length > 0) console.log(`failed: ${failed.join(", ")}`);
if (notRun().length > 0) console.log(`NOT RUN TO THE END, the time was up: ${notRun().join(", ")}`);
if (files.length === 0) console.log("no test file has such a name");
const count = notRun().length > 0 ? `${done.length} of ${files.length}` : files.length;
console.log(
  `${sum("passed")} passed, ${sum("failed")} failed, ${sum("skipped")} skipped, ${count} files, ${elapsed().toFixed(1)} s`,
);
process.exitCode = failed.length > 0 || files.length === 0 ? 1 : notRun().length > 0 ? 3 : 0;
