// The bundle's test command: node tests.mjs [--grep text] [--wrap command] [--report file] [--jobs n] [part of a path ...].
// Each test file runs in a process of its own, under `wrap` if there is one (a sanitizer), so that a crash costs one
// file. The last line is "N passed, N failed, N skipped".
import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const { values: options, positionals } = parseArgs({
  options: {
    grep: { type: "string" },
    wrap: { type: "string" },
    report: { type: "string" },
    jobs: { type: "string" },
    timeout: { type: "string", default: "600" },
    one: { type: "string" },
  },
  allowPositionals: true,
});

if (options.one !== undefined) {
  const { runFile } = await import("vitest");
  const result = await runFile(resolve(positionals[0]), {
    setupFiles: [resolve("test/setup.js")],
    testNamePattern: options.grep === undefined ? undefined : new RegExp(options.grep),
    testTimeout: Number(options.timeout) * 1000,
  });
  writeFileSync(options.one, JSON.stringify(result));
  process.exit(result.failed > 0 ? 1 : 0);
}

const files = readdirSync("test", { recursive: true, encoding: "utf8" })
  .filter((path) => path.endsWith(".test.js"))
  .filter((path) => positionals.length === 0 || positionals.some((part) => path.includes(part)))
  .sort();
const results = mkdtempSync(join(tmpdir(), "bnb-tests-"));
const wrap = options.wrap?.split(" ").filter(Boolean) ?? [];
const seconds = (since) => ((performance.now() - since) / 1000).toFixed(1);

function run(file) {
  const output = join(results, `${file.replaceAll("/", "-")}.json`);
  const script = fileURLToPath(import.meta.url);
  const args = ["--expose-gc", script, "--one", output, "--timeout", options.timeout];
  if (options.grep !== undefined) args.push("--grep", options.grep);
  const [command, ...rest] = [...wrap, process.execPath, ...args, join("test", file)];
  const began = performance.now();
  return new Promise((done) => {
    const child = spawn(command, rest, { stdio: ["ignore", "pipe", "pipe"] });
    let text = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (text += chunk));
    const timer = setTimeout(() => child.kill("SIGKILL"), Number(options.timeout) * 1000);
    const finish = (why) => {
      clearTimeout(timer);
      const result = read(output) ?? { passed: 0, failed: 0, skipped: 0, failures: [] };
      // A sanitizer's finding, a crash, or a file that was stopped: no test of its own failed.
      if (why !== "" && result.failed === 0) {
        result.failed = 1;
        result.failures.push({ name: why, message: text.slice(-6000) });
      }
      done({ file, ...result, seconds: Number(seconds(began)) });
    };
    child.on("error", (error) => finish(error.message));
    child.on("close", (status, signal) => finish(status === 0 ? "" : `ended with ${signal ?? status}`));
  });
}

function read(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch {
    return null;
  }
}

const began = performance.now();
const queue = [...files];
const done = [];
async function worker() {
  for (let file = queue.shift(); file; file = queue.shift()) {
    const result = await run(file);
    done.push(result);
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
const jobs = Number(options.jobs ?? Math.max(1, Math.min(4, Math.floor(availableParallelism() / 2))));
await Promise.all(Array.from({ length: jobs }, worker));
rmSync(results, { recursive: true, force: true });

const sum = (key) => done.reduce((total, result) => total + result[key], 0);
if (options.report) {
  const report = {
    passed: sum("passed"),
    failed: sum("failed"),
    skipped: sum("skipped"),
    seconds: Number(seconds(began)),
  };
  writeFileSync(options.report, `${JSON.stringify({ schema: 1, ...report, files: done }, null, 2)}\n`);
}
const failed = done.filter((result) => result.failed > 0).map(({ file }) => file);
if (failed.length > 0) console.log(`failed: ${failed.join(", ")}`);
console.log(
  `${sum("passed")} passed, ${sum("failed")} failed, ${sum("skipped")} skipped, ${files.length} files, ${seconds(began)} s`,
);
if (files.length === 0) console.log("no test file has such a name");
process.exitCode = failed.length > 0 || files.length === 0 ? 1 : 0;
