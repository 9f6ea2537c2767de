// What a call costs on the JavaScript thread: crossing into C++ and back, and queueing a small kernel. Each figure is
// microseconds per call, over bursts whose work runs and whose tensors are freed outside the clock.
import type { Tensor } from "bitsandbytes-node";
import { add, empty, noGrad, reshape, silu, synchronize, tidy, zeros } from "bitsandbytes-node";
import type { Result } from "./timing.js";
import { quantile, record } from "./timing.js";

const burst = 250;
const repetitions = 400;
const limit = 1;

async function perCall(call: () => Tensor | undefined): Promise<{ us: number; best: number; p90: number }> {
  const times: number[] = [];
  for (let r = 0; r < repetitions; r++) {
    const made = new Array<Tensor | undefined>(burst);
    const start = performance.now();
    for (let i = 0; i < burst; i++) made[i] = call();
    times.push(((performance.now() - start) * 1000) / burst);
    await synchronize();
    for (const tensor of made) tensor?.dispose();
  }
  const warm = times.slice(40);
  return { us: quantile(warm, 0.5), best: quantile(warm, 0), p90: quantile(warm, 0.9) };
}

// As perCall, with the tensors owned by a scope, as in a training step.
async function perCallInTidy(call: () => Tensor): Promise<{ us: number; best: number; p90: number }> {
  const times: number[] = [];
  for (let r = 0; r < repetitions; r++) {
    tidy(() => {
      const start = performance.now();
      for (let i = 0; i < burst; i++) call();
      times.push(((performance.now() - start) * 1000) / burst);
    });
    await synchronize();
  }
  const warm = times.slice(40);
  return { us: quantile(warm, 0.5), best: quantile(warm, 0), p90: quantile(warm, 0.9) };
}

const x = zeros([16]);
const y = zeros([16]);
const weight = zeros([16], { requiresGrad: true });
const results: Result[] = [];
const measure = async (name: string, figures: Promise<{ us: number; best: number; p90: number }>): Promise<void> => {
  results.push({ case: name, ...(await figures) });
};

await measure(
  "crossing alone: a view",
  perCallInTidy(() => reshape(x, [4, 4])),
);
await measure(
  "empty [16]",
  perCallInTidy(() => empty([16])),
);
await measure(
  "add [16] in tidy",
  perCallInTidy(() => add(x, y)),
);
await measure(
  "add [16] with a number in tidy",
  perCallInTidy(() => add(x, 1)),
);
await measure(
  "silu [16] in tidy",
  perCallInTidy(() => silu(x)),
);
await measure(
  "add [16] outside tidy",
  perCall(() => add(x, y)),
);
await measure(
  "add [16] recorded for backward, in tidy",
  perCallInTidy(() => add(weight, y)),
);
await measure(
  "add [16] and dispose",
  perCall(() => {
    noGrad(() => add(x, y)).dispose();
    return undefined;
  }),
);
record("crossing", results, { burst, unit: "us per call" });

for (const name of ["add [16] in tidy", "silu [16] in tidy"]) {
  const { us } = results.find((result) => result.case === name) as Result & { us: number };
  if (!(us < limit)) {
    console.error(`${name} took ${us} us in the median, the limit is ${limit} us`);
    process.exitCode = 1;
  }
}
