// Trajectories recorded from bitsandbytes on a CPU (test/fixtures/optim/README.md), parameter by parameter. Its LAMB and
// LARS clip by other norms; what can be compared of them is said at each case.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { tensor } from "../../src/index.js";
import * as optim from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";

interface Case {
  class: string;
  dtype: "fp32" | "bf16";
  recorded: number[];
  hyper: Record<string, unknown>;
}

const read = (name: string) => JSON.parse(readFileSync(fixturePath(`optim/${name}.json`), "utf8")) as unknown;
const { cases } = read("optim") as { cases: Record<string, Case> };
const inputs = readSafetensors("optim/inputs.safetensors");
const camelCase = (name: string) => name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());

type AnyOptimizer = new (params: Tensor[], options: object) => optim.Optimizer8bit;

function makeFromCase({ class: name, hyper }: Pick<Case, "class" | "hyper">, params: Tensor[], more = {}) {
  const options = Object.fromEntries(Object.entries(hyper).map(([key, value]) => [camelCase(key), value]));
  return new (optim as unknown as Record<string, AnyOptimizer>)[name]!(params, { ...options, ...more });
}

function mean(x: ArrayLike<number>, f: (value: number, i: number) => number): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += f(x[i]!, i);
  return sum / x.length;
}

const bfloat16 = (bits: ArrayLike<number>) => new Float32Array(Uint32Array.from(bits, (b) => b << 16).buffer);

/** At least 99 % of the codes equal, the others next to it. */
function expectCodes(actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  const distance = Array.from(expected, (code, i) => Math.abs(code - actual[i]!));
  expect(Math.max(...distance)).toBeLessThanOrEqual(1);
  expect(distance.filter((d) => d > 0).length).toBeLessThanOrEqual(0.01 * expected.length);
}

describe.each(testDevices())("bitsandbytes' trajectories on %s", (device) => {
  it.each(Object.entries(cases))("%s", (name, c) => {
    const want = readSafetensors(`optim/${name}.safetensors`);
    const dtype = c.dtype === "bf16" ? "bfloat16" : "float32";
    const is8bit = c.class.endsWith("8bit");
    const clips = name.startsWith("lamb") || name.startsWith("lars");
    // The 8-bit recordings have no clipping for the large parameter; the small one has 32-bit states and clips.
    const indices = clips && is8bit ? [0] : [0, 1];
    const params = indices.map((i) => {
      const { values, shape } = inputs.get(`p${i}.init`)!;
      return tensor(values as Float32Array, { shape, dtype, device, requiresGrad: true });
    });
    const optimizer = makeFromCase(c, params, clips && is8bit ? { maxUnorm: 0 } : {});
    const lr = c.hyper["lr"] as number;
    for (let step = 1; step <= 10; step++) {
      params.forEach((p, i) => {
        const grads = inputs.get(`p${i}.grads`)!.values as Float32Array;
        p.grad?.dispose();
        p.grad = tensor(grads.subarray((step - 1) * p.size, step * p.size), { shape: p.shape, dtype, device });
      });
      optimizer.step();
      // LAMB's recorded update norm lacks the bias corrections, so its parameters go another way; the states do not.
      if (!c.recorded.includes(step) || name === "lamb-32bit") continue;
      params.forEach((p, i) => {
        const recorded = want.get(`p${i}.step${step}`)!.values as Float32Array | Uint16Array;
        const actual = p.floatsSync();
        const uses8bit = is8bit && i === 0;
        if (dtype === "bfloat16") {
          const expected = bfloat16(recorded);
          if (uses8bit) {
            const error = mean(actual, (x, k) => Math.abs(x - expected[k]!));
            expect(error).toBeLessThan(1e-4 * mean(expected, Math.abs));
          } else {
            expectClose(actual, expected, { atol: 1e-30, rtol: 2 ** -7 }, Math.floor(0.005 * expected.length));
            expectClose(actual, expected, { atol: 1e-30, rtol: 2 ** -6 });
          }
        } else if (uses8bit) {
          expectClose(actual, recorded, { atol: 1e-5, rtol: 0 }, Math.floor(0.005 * recorded.length));
          expectClose(actual, recorded, { atol: 2 * lr, rtol: 0 });
        } else {
          expectClose(actual, recorded, { atol: 1e-6, rtol: 1e-5 });
        }
      });
    }
    params.forEach((p, i) => {
      const state = optimizer.stateOf(p)!;
      const pairs = { state1: state.state1, state2: state.state2, absmax1: state.absmax1, absmax2: state.absmax2 };
      for (const [key, actual] of Object.entries(pairs)) {
        const recorded = want.get(`p${i}.${key}`);
        expect(actual === null, `p${i}.${key}`).toBe(recorded === undefined);
        if (!actual || !recorded || (dtype === "bfloat16" && is8bit && i === 0)) continue;
        if (recorded.dtype === "uint8") expectCodes(actual.dataSync(), recorded.values as Uint8Array);
        else if (key.startsWith("absmax"))
          expectClose(actual.floatsSync(), recorded.values as Float32Array, { atol: 1e-30, rtol: 1e-4 });
        else expectClose(actual.floatsSync(), recorded.values as Float32Array, { atol: 1e-6, rtol: 1e-5 });
      }
    });
    optimizer.dispose();
  });

  it("a larger parameter from a formula", () => {
    const formula = (read("formula") as { cases: Record<string, Case & { shape: number[]; init_first5: number[] }> })
      .cases;
    const c = formula["adamw-8bit"]!;
    const want = readSafetensors("optim/formula-adamw-8bit.safetensors");
    const n = c.shape.reduce((product, dim) => product * dim, 1);
    const uniform = (i: number, t: number) => {
      let x = (Math.imul(i, 2654435761) + Math.imul(t, 2246822507) + 374761393) >>> 0;
      x ^= x >>> 16;
      x = Math.imul(x, 2246822519) >>> 0;
      x ^= x >>> 13;
      return (x >>> 8) / 2 ** 24 - 0.5;
    };
    const values = (scale: number, t: number) => Float32Array.from({ length: n }, (_, i) => scale * uniform(i, t));
    const init = values(0.5, 0);
    expect([...init.subarray(0, 5)]).toEqual(c.init_first5);
    const p = tensor(init, { shape: c.shape, device, requiresGrad: true });
    const optimizer = makeFromCase(c, [p]);
    for (let t = 1; t <= 10; t++) {
      p.grad?.dispose();
      p.grad = tensor(values(0.125, t), { shape: c.shape, device });
      optimizer.step();
    }
    const get = (name: string) => [...want].find(([key]) => key.endsWith(name))![1].values as Float32Array;
    const { state1, state2, absmax1, absmax2 } = optimizer.stateOf(p)!;
    expectClose(p.floatsSync(), get("step10"), { atol: 1e-5, rtol: 0 }, Math.floor(0.005 * n));
    expectClose(p.floatsSync(), get("step10"), { atol: 4e-3, rtol: 0 });
    expectCodes(state1.dataSync(), get("state1"));
    expectCodes(state2!.dataSync(), get("state2"));
    expectClose(absmax1!.floatsSync(), get("absmax1"), { atol: 0, rtol: 1e-4 });
    expectClose(absmax2!.floatsSync(), get("absmax2"), { atol: 0, rtol: 1e-4 });
    optimizer.dispose();
  });
});
