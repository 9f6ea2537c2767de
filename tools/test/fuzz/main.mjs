// npm run fuzz -- --seed N --calls N: calls everything public with arguments that fit, nearly fit and do not fit at all, and
// fails on a signal, a hang or an error that is no BnbError (what is the user's own error: `fault` in child.mjs).
//
// Calls run in child processes, in batches; each depends on the seed and its index only, so a failure prints a line that
// repeats it: --seed S --from I --calls 1, or from the start of its batch where it needs what ran before. `--verbose`
// shows each call. Memory is limited (ulimit -v), so that sizes beyond reason fail instead of filling the machine.
import { spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const { values: options } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    calls: { type: "string", default: "20000" },
    from: { type: "string", default: "0" },
    batch: { type: "string", default: "500" },
    limit: { type: "string", default: "30" },
    jobs: { type: "string", default: String(Math.min(4, availableParallelism())) },
    verbose: { type: "boolean", default: false },
  },
});
const seed = Number(options.seed);
const begin = Number(options.from);
const end = begin + Number(options.calls);
const limit = 1000 * Number(options.limit);
const memory = 6 * 1024 * 1024; // KiB of address space
const child = join(dirname(fileURLToPath(import.meta.url)), "child.mjs");

/** @typedef {{ index: number, what: string, trace: string[], batch: number }} Failure */

/**
 * Runs [from, to) in one process and returns its failures, and where to go on when it died.
 * @param {number} from @param {number} to @returns {Promise<{ failures: Failure[], next: number }>}
 */
function runBatch(from, to) {
  return new Promise((resolve) => {
    const command = `ulimit -v ${memory}; exec "$0" --expose-gc --max-old-space-size=1024 "$@"`;
    const args = [child, String(seed), String(from), String(to - from), ...(options.verbose ? ["verbose"] : [])];
    const output = options.verbose ? "inherit" : "ignore";
    const env = { ...process.env, BNB_THREADS: process.env.BNB_THREADS ?? "2" };
    const node = spawn("sh", ["-c", command, process.execPath, ...args], {
      env,
      stdio: ["ignore", output, output, "pipe"],
    });
    /** @type {Failure[]} */
    const failures = [];
    let [at, hung] = [from, false];
    const kill = () => {
      hung = true;
      node.kill("SIGKILL");
    };
    let timer = setTimeout(kill, limit + 30_000); // loading included
    createInterface({ input: /** @type {import("node:stream").Readable} */ (node.stdio[3]) }).on("line", (line) => {
      if (line.startsWith("{")) {
        failures.push({ ...JSON.parse(line), batch: from });
        return;
      }
      at = Number(line);
      clearTimeout(timer);
      timer = setTimeout(kill, limit);
    });
    node.on("close", (status, signal) => {
      clearTimeout(timer);
      if (status === 0) return resolve({ failures, next: to });
      const what = hung ? `took longer than ${limit / 1000} s` : `the process ended: ${signal ?? `status ${status}`}`;
      failures.push({ index: at, what, trace: [], batch: from });
      resolve({ failures, next: at + 1 });
    });
  });
}

/** @type {Failure[]} */
const failures = [];
let next = begin;
async function worker() {
  while (next < end) {
    let from = next;
    next = Math.min(end, from + Number(options.batch));
    const to = next;
    while (from < to) {
      const result = await runBatch(from, to);
      failures.push(...result.failures);
      from = result.next;
    }
  }
}

const start = performance.now();
await Promise.all(Array.from({ length: Number(options.jobs) }, worker));

// One of each kind: the same message from the same function, whatever its numbers. Each death stands for itself.
const kinds = new Map();
for (const failure of failures) {
  const [message, ...stack] = failure.what.split("\n");
  const place = stack
    .find((line) => line.includes("/dist/"))
    ?.trim()
    .split(" ")[1];
  const key = stack.length ? `${message?.replace(/\d+/g, "n")} ${place}` : `${message} ${failure.index}`;
  const same = kinds.get(key);
  if (same) same.count++;
  else kinds.set(key, { failure, count: 1 });
}
for (const { failure, count } of [...kinds.values()].sort((a, b) => b.count - a.count)) {
  const { index, batch, what, trace } = failure;
  const alone = options.verbose || (await runBatch(index, index + 1)).failures.length > 0;
  const [from, calls] = alone ? [index, 1] : [batch, index - batch + 1];
  console.log(`\n${count} x ${what}`);
  for (const line of trace) console.log(`  ${line}`);
  console.log(`  repeat: npm run fuzz -- --seed ${seed} --from ${from} --calls ${calls} --batch ${calls} --verbose`);
}
const seconds = ((performance.now() - start) / 1000).toFixed(1);
console.log(`${end - begin} calls of seed ${seed} in ${seconds} s: ${failures.length} failed, ${kinds.size} kinds`);
process.exitCode = failures.length ? 1 : 0;
