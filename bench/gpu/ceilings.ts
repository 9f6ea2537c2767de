// What the card can do at most, measured at the start and at the end of a run: a large copy and a large bfloat16
// product, by torch where it is installed (as a second opinion on our own), else by this build alone.
import { spawnSync } from "node:child_process";
import type { Device } from "bitsandbytes-node";
import { copyInto, linear, randn, zeros } from "bitsandbytes-node";
import type { Extent } from "./context.js";
import type { Ceilings } from "./report.js";
import type { Effort } from "./stream.js";
import { time } from "./stream.js";

/** Runs a Python program beside this file; null where what it times is missing, with the reason on the console. */
export function python<T>(script: string, args: string[], extent: Extent): T | null {
  // Relative to the folder that benchmarks start in.
  const all = [`bench/gpu/${script}`, ...args, ...(extent === "full" ? [] : [`--${extent}`])];
  const { status, stdout, stderr, error } = spawnSync("python3", all, { encoding: "utf8", maxBuffer: 1 << 28 });
  const last = stdout?.trim().split("\n").at(-1) ?? "";
  try {
    if (status !== 0) throw new Error(error?.message ?? stderr.slice(-2000));
    const result = JSON.parse(last) as T & { missing?: string };
    if (result.missing) throw new Error(`${result.missing} is not installed`);
    return result;
  } catch (cause) {
    console.log(`no figures of ${[script, ...args].join(" ")}: ${(cause as Error).message}`);
    return null;
  }
}

export interface Measured extends Ceilings {
  ours: Ceilings;
  torch: (Ceilings & { versions: Record<string, string> }) | null;
}

export async function ceilings(device: Device, effort: Effort, extent: Extent, withTorch: boolean): Promise<Measured> {
  const tiny = extent === "tiny";
  const nbytes = tiny ? 4096 : 2 ** 30;
  const [source, target] = [zeros([nbytes], { dtype: "uint8", device }), zeros([nbytes], { dtype: "uint8", device })];
  const copy = await time(device, () => copyInto(target, source), effort);
  source.dispose();
  target.dispose();
  const n = tiny ? 64 : 8192;
  const [a, b] = [0, 1].map(() => randn([n, n], { dtype: "bfloat16", device }));
  const gemm = await time(device, () => linear(a!, b!, null), effort);
  a!.dispose();
  b!.dispose();
  const ours = {
    copyGBs: (2 * nbytes) / copy.us.median / 1e3,
    gemmBf16TFLOPs: (2 * n ** 3) / gemm.us.median / 1e6,
  };
  const theirs = withTorch ? python<Measured["torch"] & object>("torch_baseline.py", ["ceilings"], extent) : null;
  return {
    copyGBs: Math.max(ours.copyGBs, theirs?.copyGBs ?? 0),
    gemmBf16TFLOPs: Math.max(ours.gemmBf16TFLOPs, theirs?.gemmBf16TFLOPs ?? 0),
    ours,
    torch: theirs,
  };
}
