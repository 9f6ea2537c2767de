// What a program pays before its first line: milliseconds and memory of `require` and of `import`, each in processes of its own
// that take turns, beyond those of a process that loads nothing, and in such processes' own time from start to end. The files lie
// in the page cache; no code of them is compiled.
import { execFileSync } from "node:child_process";
import { loadavg } from "node:os";
import type { Result } from "./timing.js";
import { quantile, record } from "./timing.js";

const processes = 25;
/** For `require` of the whole package. */
const limits = { ms: 60, MB: 12 };

/** Each is the body of an async function. */
const programs: Record<string, string> = {
  nothing: "",
  require: `require("bitsandbytes-node");`,
  "require, and a model of it": `require("bitsandbytes-node").LlamaForCausalLM;`,
  "require /nn": `require("bitsandbytes-node/nn");`,
  import: `await import("bitsandbytes-node");`,
  "import /nn": `await import("bitsandbytes-node/nn");`,
};

interface Cost {
  ms: number;
  MB: number;
  /** Of the whole process, milliseconds. */
  process: number;
}

function costOf(program: string): Cost {
  const text = `(async () => {
    const start = performance.now(), before = process.memoryUsage.rss();
    ${program}
    const ms = performance.now() - start;
    console.log(JSON.stringify({ ms, MB: (process.memoryUsage.rss() - before) / 1e6 }));
  })();`;
  const start = performance.now();
  const cost = JSON.parse(execFileSync(process.execPath, ["-e", text], { encoding: "utf8" })) as Cost;
  return { ...cost, process: performance.now() - start };
}

const costs = new Map(Object.keys(programs).map((name): [string, Cost[]] => [name, []]));
for (let i = 0; i < processes; i++)
  for (const [name, program] of Object.entries(programs)) costs.get(name)?.push(costOf(program));

const at = (name: string, figure: keyof Cost, q: number): number =>
  quantile(
    (costs.get(name) as Cost[]).map((cost) => cost[figure]),
    q,
  );
const results = Object.keys(programs)
  .filter((name) => name !== "nothing")
  .map((name) => ({
    case: name,
    ms: at(name, "ms", 0.5) - at("nothing", "ms", 0.5),
    best: at(name, "ms", 0),
    p90: at(name, "ms", 0.9),
    ofNode: at(name, "ms", 0.5) / at("nothing", "process", 0.5),
    MB: at(name, "MB", 0.5) - at("nothing", "MB", 0.5),
  })) satisfies Result[];
record("load-time", results, { processes, limits, loadAverage: loadavg()[0] });

const { ms, MB } = results[0] as (typeof results)[number];
if (ms > limits.ms || MB > limits.MB) {
  console.error(`require took ${ms} ms and ${MB} MB, the limits are ${limits.ms} ms and ${limits.MB} MB`);
  process.exitCode = 1;
}
