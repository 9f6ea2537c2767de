// What reading one value costs: the id of a token is 4 bytes, and the thread that waits for them may spin or sleep.
// BNB_GPU_SPIN is read once, so each setting is measured in a process of its own.
//   node bench/gpu/reads.js [--device cuda:0] [--reads 2000]
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { add, copyInto, synchronize, zeros } from "bitsandbytes-node";

const { values: options } = parseArgs({
  options: {
    device: { type: "string", default: "cuda:0" },
    reads: { type: "string", default: "2000" },
    child: { type: "boolean", default: false },
  },
});
const reads = Number(options.reads);

/** Microseconds of each kernel with a read behind it, sorted. */
async function measure(): Promise<number[]> {
  const counter = zeros([1], { device: options.device });
  const one = add(counter, 1);
  const times: number[] = [];
  for (let i = 0; i < reads + 100; i++) {
    const start = process.hrtime.bigint();
    copyInto(counter, one);
    await counter.data();
    if (i >= 100) times.push(Number(process.hrtime.bigint() - start) / 1000);
  }
  await synchronize();
  return times.sort((a, b) => a - b);
}

if (options.child) {
  const cpu = process.cpuUsage();
  const times = await measure();
  const { user, system } = process.cpuUsage(cpu);
  const at = (share: number): number => times[Math.floor(share * (times.length - 1))] as number;
  console.log(JSON.stringify({ median: at(0.5), p90: at(0.9), p99: at(0.99), cpu: (user + system) / (reads + 100) }));
} else {
  for (const spin of ["0", "20", "50", "200"]) {
    const args = [fileURLToPath(import.meta.url), "--child", "--device", options.device, "--reads", options.reads];
    const text = execFileSync(process.execPath, args, {
      encoding: "utf8",
      env: { ...process.env, BNB_GPU_SPIN: spin },
    });
    const { median, p90, p99, cpu } = JSON.parse(text) as Record<"median" | "p90" | "p99" | "cpu", number>;
    const us = (value: number): string => `${value.toFixed(1)} us`;
    console.log(`spin ${spin} us: median ${us(median)}, p90 ${us(p90)}, p99 ${us(p99)}, CPU time ${us(cpu)} a read`);
  }
}
