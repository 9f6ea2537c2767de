// npm run check: format, lint, types, public API and architecture, side by side. `--write` formats, and writes the API down,
// instead of checking.
import { spawn, spawnSync } from "node:child_process";
import { availableParallelism } from "node:os";

const write = process.argv.includes("--write");
const tracked = spawnSync("git", ["ls-files", "-co", "--exclude-standard", "*.cc", "*.h", "*.cu", "*.cuh"], {
  encoding: "utf8",
});
const cpp = tracked.stdout.split("\n").filter(Boolean);
/** @typedef {[command: string, args: string[]]} Step */
/** @type {(name: string, ...args: string[]) => Step} */
const bin = (name, ...args) => [`node_modules/.bin/${name}`, args];

/** @type {Record<string, Step | false>} */
const steps = {
  biome: bin("biome", "check", "--error-on-warnings", ...(write ? ["--write"] : []), "."),
  "clang-format": cpp.length > 0 && bin("clang-format", ...(write ? ["-i"] : ["--dry-run", "--Werror"]), ...cpp),
  tsc: !write && bin("tsc", "--noEmit"),
  "tsc, tools": !write && bin("tsc", "-p", "tools"),
  API: ["node", ["tools/api/report.mjs", ...(write ? ["--write"] : [])]],
  architecture: !write && bin("vitest", "run", "test/architecture.test.ts", "test/native/bindings.test.ts"),
};

/**
 * clang-format reports every character that it would move; the files are enough.
 * @param {string} text
 */
function unformatted(text) {
  const paths = [...text.matchAll(/^(\S+?):\d+:\d+: /gm)].map((match) => match[1]);
  return `${[...new Set(paths)].map((path) => `  ${path}`).join("\n")}\n"npm run format" formats them.`;
}

/** @type {(step: [name: string, step: Step]) => Promise<boolean>} */
function start([name, [command, args]]) {
  const began = performance.now();
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    /** @type {Buffer[]} */
    const output = [];
    child.stdout.on("data", (chunk) => output.push(chunk));
    child.stderr.on("data", (chunk) => output.push(chunk));
    child.on("close", (code) => {
      const seconds = ((performance.now() - began) / 1000).toFixed(1);
      console.log(`${code === 0 ? "ok    " : "FAILED"} ${name} (${seconds} s)`);
      const text = Buffer.concat(output).toString();
      if (code !== 0) console.log(name === "clang-format" ? unformatted(text) : text);
      resolve(code === 0);
    });
  });
}

const queue = Object.entries(steps).flatMap(([name, step]) => (step ? [/** @type {const} */ ([name, step])] : []));
/** @type {boolean[]} */
const outcomes = [];
async function worker() {
  for (let step = queue.shift(); step; step = queue.shift()) outcomes.push(await start([...step]));
}
await Promise.all(Array.from({ length: Math.min(4, availableParallelism()) }, worker));
process.exitCode = outcomes.every(Boolean) ? 0 : 1;
