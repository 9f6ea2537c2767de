// The GPU benchmarks: ceilings, every group, torch's figures, ceilings again; one JSON file and a table. Both grow case
// by case, so that a run that is cut short leaves what it has.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { devices, emptyCache, gpuStatus, setDefaultDevice } from "bitsandbytes-node";
import { ceilings, python } from "./ceilings.js";
import type { Extent } from "./context.js";
import { Context } from "./context.js";
import { decode } from "./decode.js";
import { int8 } from "./int8.js";
import { prefill, smallM } from "./linear.js";
import { optimizers } from "./optimizer.js";
import { quantize } from "./quantize.js";
import type { Baseline } from "./report.js";
import { baselineRow, heading, rounded } from "./report.js";
import { hasty, quick, thorough } from "./stream.js";

const groups: Record<string, { name: string; run: (context: Context) => Promise<void> }> = {
  "1": { name: "4-bit linear, small M", run: smallM },
  "2": { name: "4-bit linear, prefill and training", run: prefill },
  "3": { name: "quantize and dequantize", run: quantize },
  "4": { name: "LLM.int8()", run: int8 },
  "5": { name: "optimizers", run: optimizers },
  "6": { name: "whole tokens of language models", run: decode },
};

const { values: options } = parseArgs({
  options: {
    device: { type: "string", default: "cuda:0" },
    group: { type: "string", default: Object.keys(groups).join(",") },
    out: { type: "string", default: "bench/results/gpu.json" },
    manifest: { type: "string" },
    tiny: { type: "boolean", default: false },
    quick: { type: "boolean", default: false },
    budget: { type: "string", default: "Infinity" },
    "no-torch": { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
if (options.help) {
  console.log(
    "--device cuda:0   --group 1,2,3,4,5,6   --out FILE   --no-torch   --quick (about 40 cases in under 4 minutes)\n" +
      "--budget SECONDS (no case begins after them)   --tiny (small shapes, no real timing)",
  );
  for (const [number, { name }] of Object.entries(groups)) console.log(`  group ${number}  ${name}`);
  process.exit(0);
}
const budget = Number(options.budget);
if (!(budget > 0)) throw new Error(`--budget must be seconds, got ${options.budget}`);
const wanted = options.group.split(",");
const unknown = wanted.filter((group) => !groups[group]);
if (unknown.length > 0) throw new Error(`--group: there is no group ${unknown.join(", ")}`);
const device = devices().find((d) => String(d) === options.device);
// On the CPU only to try the program and its oracles.
if (!device || (device.type !== "cuda" && !options.tiny)) {
  console.error(`bench: no device ${options.device}: ${gpuStatus() || devices().map(String).join(", ")}`);
  process.exit(1);
}
setDefaultDevice(device);

const { tiny } = options;
const extent: Extent = tiny ? "tiny" : options.quick ? "quick" : "full";
const effort = { tiny: hasty, quick, full: thorough }[extent];
const withTorch = !options["no-torch"];
const run = (command: string, ...args: string[]): string | null => {
  try {
    return execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  } catch {
    return null;
  }
};
const manifest = options.manifest
  ? (JSON.parse(readFileSync(options.manifest, "utf8")) as Record<string, unknown>)
  : {};
const cpu = devices()[0];

const began = performance.now();
const before = await ceilings(device, effort, extent, withTorch);
console.log(`copy ${before.copyGBs.toFixed(0)} GB/s, bf16 product ${before.gemmBf16TFLOPs.toFixed(0)} TFLOP/s`);
// What stands at the end, torch's figures and the ceilings again, takes its time, too.
const closing = Math.min(30, budget / 8);
const context = new Context({
  device,
  effort,
  extent,
  ceilings: before,
  deadline: began + 1000 * (budget - closing),
  save: () => file({ complete: false, ceilings: { before } }),
});

const file = (extra: Record<string, unknown>): void => {
  const content = {
    schema: 1,
    commit: manifest["commit"] ?? run("git", "rev-parse", "--short", "HEAD") ?? "unknown",
    date: new Date().toISOString().slice(0, 10),
    host: { cpu: cpu?.name, isa: cpu?.isa, threads: cpu?.processors, node: process.version },
    gpu: {
      name: device.name,
      cc: device.computeCapability.toFixed(1),
      sms: device.processors,
      driver: run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")?.split("\n")[0] ?? "unknown",
    },
    extent,
    method:
      "timing stream: many launches queued from JavaScript, one synchronize, an empty loop subtracted; graph: many " +
      "launches recorded once and replayed; events: CUDA events around many launches. ofCeiling: the floor's time (required bytes at copy speed, or operations " +
      "at the speed of the dense bf16 product) over ours. versus: bursts alternate A B B A.",
    ...extra,
    results: context.results,
    failures: context.failures,
    notRun: context.notRun,
  };
  writeFileSync(options.out, `${JSON.stringify(content, rounded, 2)}\n`);
};

console.log(heading());
for (const group of wanted) {
  const { name, run: measure } = groups[group]!;
  console.log(`group ${group}: ${name} (${((performance.now() - began) / 1000).toFixed(0)} s)`);
  try {
    await measure(context);
  } catch (error) {
    context.fail(name, { group }, error);
  }
}
emptyCache();
const theirs = (withTorch ? ["torch", "bitsandbytes"] : []).flatMap(
  (name) =>
    python<{ results: Baseline[] }>(`${name}_baseline.py`, name === "torch" ? ["all"] : [], extent)?.results ?? [],
);
for (const found of theirs) console.log(baselineRow(found));
// Starting torch takes seconds.
const after = await ceilings(device, effort, extent, withTorch && !options.quick);
// What was measured the same way at both ends.
const start = options.quick ? before.ours : before;
const drift = Math.max(
  Math.abs(after.copyGBs / start.copyGBs - 1),
  Math.abs(after.gemmBf16TFLOPs / start.gemmBf16TFLOPs - 1),
);
file({
  complete: true,
  valid: drift <= 0.1,
  drift,
  ceilings: {
    copyGBs: [before.copyGBs, after.copyGBs],
    gemmBf16TFLOPs: [before.gemmBf16TFLOPs, after.gemmBf16TFLOPs],
    before,
    after,
  },
  baselines: theirs,
});

const { results, failures, notRun } = context;
if (notRun.length > 0) console.log(`NOT RUN, the time was up: ${[...new Set(notRun.map(({ op }) => op))].join(", ")}`);
console.log(`${results.length} cases timed, ${failures.length} failed, ${notRun.length} not run, ${options.out}`);
if (drift > 0.1 && !tiny) console.log(`the ceilings drifted by ${(100 * drift).toFixed(0)} %: this run is void`);
process.exit(failures.length > 0 || (drift > 0.1 && !tiny) ? 1 : notRun.length > 0 ? 3 : 0);
