// Matrix products and attention against the machine's own ceiling: multiply-adds in registers on all threads, timed
// in the same run and alternating with each case. "ofPeak" is the share of that ceiling that a case reaches.
import type { DType, Tensor } from "bitsandbytes-node";
import { attention, devices, fmaPeak, linear, matmul, tensor } from "bitsandbytes-node";
import type { Result } from "./timing.js";
import { compare, record } from "./timing.js";

const cpu = devices()[0] as NonNullable<ReturnType<typeof devices>[number]>;
const iterations = 1_000_000;
const counted = fmaPeak(iterations, cpu);
const peakFmas = (counted.dataSync() as Float64Array)[0] as number;
counted.dispose();

const make = (shape: readonly number[], dtype: DType = "float32"): Tensor => {
  const size = shape.reduce((a, b) => a * b, 1);
  return tensor(
    Float32Array.from({ length: size }, (_, i) => ((i * 7919) % 1013) / 1013 - 0.5),
    { shape, dtype },
  );
};

const results: Result[] = [];
async function measure(name: string, fmas: number, inputs: readonly Tensor[], work: () => Tensor): Promise<void> {
  const { ours, peer, ratio } = await compare(work, () => fmaPeak(iterations, cpu), 24);
  // peer / ours compares the times of two loops of different length: scale to equal numbers of multiply-adds.
  const scale = fmas / peakFmas;
  results.push({
    case: name,
    GFLOPs: (2 * fmas) / ours.median / 1e6,
    ofPeak: ratio.median * scale,
    ofPeakBest: (peer.min / ours.min) * scale,
    ms: ours.median,
    peakGFLOPs: (2 * peakFmas) / peer.median / 1e6,
  });
  for (const t of inputs) t.dispose();
}

for (const n of [256, 1024]) {
  for (const dtype of ["float32", "bfloat16"] as const) {
    const [a, b] = [make([n, n], dtype), make([n, n], dtype)];
    await measure(`matmul ${n}^3 ${dtype}`, n ** 3, [], () => matmul(a, b));
    await measure(`matmul ${n}^3 ${dtype} a b^T`, n ** 3, [], () => matmul(a, b, { transposeB: true }));
    await measure(`matmul ${n}^3 ${dtype} a^T b`, n ** 3, [a, b], () => matmul(a, b, { transposeA: true }));
  }
}
for (const rows of [1, 4, 16, 128]) {
  const [x, w] = [make([rows, 2048]), make([2048, 2048])];
  await measure(`linear ${rows} x 2048 x 2048`, rows * 2048 ** 2, [x, w], () => linear(x, w, null));
}
{
  const [batch, time, heads, dim] = [4, 512, 8, 64] as const;
  const [q, k, v] = [0, 1, 2].map(() => make([batch, time, heads, dim])) as [Tensor, Tensor, Tensor];
  const fmas = 2 * batch * heads * dim * time * time;
  await measure("attention 4 x 512 x 8 x 64, full", fmas, [], () => attention(q, k, v, { causal: false }));
  await measure("attention 4 x 512 x 8 x 64, causal", fmas / 2, [q, k, v], () => attention(q, k, v));
}
{
  const q = make([1, 1, 8, 64]);
  const [k, v] = [make([1, 2048, 8, 64]), make([1, 2048, 8, 64])];
  await measure("attention 1 query, 2048 keys, 8 x 64", 2 * 2048 * 8 * 64, [q, k, v], () => attention(q, k, v));
}
record("matmul", results, { peakIterations: iterations });
