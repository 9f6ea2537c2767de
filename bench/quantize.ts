// Blockwise quantization of 16.8 M elements, in G elements/s. Beside each case, in the same run and alternating with
// it, the copy of as many float32 elements by memcpy on one thread: the ratio says how far from moving memory it is.
import type { DType, Tensor } from "bitsandbytes-node";
import { empty, tensor } from "bitsandbytes-node";
import { dequantize4bit, dequantizeBlockwise, quantize4bit, quantizeBlockwise } from "bitsandbytes-node/functional";
import type { Result } from "./timing.js";
import { compare, record } from "./timing.js";

const n = 4096 * 4096;
// Close enough to normal, and quick to make: the sum of four uniform values.
let state = 1;
const uniform = (): number => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 32;
};
const values = Float32Array.from({ length: n }, () => uniform() + uniform() + uniform() + uniform() - 2);
const copied = new Float32Array(n);
const inputs: Partial<Record<DType, Tensor>> = {
  float32: tensor(values, { shape: [4096, 4096] }),
  bfloat16: tensor(values, { shape: [4096, 4096], dtype: "bfloat16" }),
};

const results: Result[] = [];
async function measure(name: string, work: () => unknown): Promise<void> {
  const { ours, ratio } = await compare(work, () => copied.set(values));
  results.push({
    case: name,
    Gelements: n / ours.median / 1e6,
    best: n / ours.min / 1e6,
    ms: ours.median,
    copyOverOurs: ratio.median,
  });
}

for (const [dtype, x] of Object.entries(inputs)) {
  for (const quantType of ["nf4", "fp4"] as const) {
    await measure(`quantize4bit ${quantType} ${dtype}`, () => quantize4bit(x, { quantType }));
    const [packed, quantState] = quantize4bit(x, { quantType, compressStatistics: true });
    const out = empty([4096, 4096], { dtype: dtype as DType });
    await measure(`dequantize4bit ${quantType} nested ${dtype}`, () => dequantize4bit(packed, { quantState, out }));
    for (const t of [packed, quantState, out]) t.dispose();
  }
  await measure(`quantizeBlockwise 256 ${dtype}`, () => quantizeBlockwise(x, { blocksize: 256 }));
  const [codes, quantState] = quantizeBlockwise(x, { blocksize: 256 });
  const out = empty([4096, 4096], { dtype: dtype as DType });
  await measure(`dequantizeBlockwise 256 ${dtype}`, () => dequantizeBlockwise(codes, { quantState, out }));
  for (const t of [codes, quantState, out]) t.dispose();
}
record("quantize", results, { elements: n, blocksize4bit: 64 });
