// The NF4 product, blocks of 64, float32, exact and with activations in int8, against onnxruntime-node on the same bytes: MatMulBnb4, and the
// evenly spaced codes of MatMulNBits. Up to 16 rows both walk through several weights, 113 MB together, so that they come
// from memory as those of a model do.
import { backward, devices, linear4bit, noGrad, quantize4bit, randn, synchronize, tensor } from "bitsandbytes-node";
import * as ort from "onnxruntime-node";
import { matMulBnb4, matMulNBits } from "./peers/onnx-4bit.js";
import type { Result } from "./timing.js";
import { compare, fmaGigaflops, readGigabytes, record, time } from "./timing.js";

const blocksize = 64;
const bytesPerWeight = 0.5 + 4 / blocksize;
/** Weights of a shape that the products with few rows walk through. */
const copies = 12;
const shapes = [[4096, 4096]] as const;
const rowCounts = [1, 4, 16, 64, 256];
const threads = devices()[0]!.processors;

async function session(bytes: Uint8Array): Promise<ort.InferenceSession> {
  return ort.InferenceSession.create(bytes, {
    executionProviders: ["cpu"],
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    executionMode: "sequential",
  });
}

/** ||a - b|| / ||b||. */
function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (a[i]! - b[i]!) ** 2;
    norm += b[i]! ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** Some outputs of the product with evenly spaced codes, in float64, to see that the peer computes what we think. */
function checkNBits(y: Float32Array, x: Float32Array, packed: Uint8Array, scales: Float32Array, k: number): number {
  const expected = Array.from({ length: 16 }, (_, column) => {
    let sum = 0;
    for (let i = 0; i < k; i++) {
      const at = column * k + i;
      const code = (packed[at >> 1]! >> (at % 2 ? 4 : 0)) & 15;
      sum += x[i]! * (code - 8) * scales[Math.floor(at / blocksize)]!;
    }
    return sum;
  });
  return relativeError(y.subarray(0, 16), expected);
}

const results: Result[] = [];
const [peakBefore, readBefore] = [await fmaGigaflops(), await readGigabytes()];
for (const [n, k] of shapes) {
  const weights = Array.from({ length: copies }, () =>
    noGrad(() => quantize4bit(randn([n, k]), { quantType: "nf4", blocksize })),
  );
  const [packed, state] = weights[0]!;
  const handles = {
    none: weights.map(([codes, its]) => its.quantized(codes)),
    int8: weights.map(([codes, its]) => its.quantized(codes, "int8")),
  };
  const weight = handles.none[0]!;
  const bytes = (await packed.data()) as Uint8Array;
  const absmax = (await state.absmax.data()) as Float32Array;
  const sessions = async (
    make: (codes: Uint8Array, scales: Float32Array) => Uint8Array,
  ): Promise<ort.InferenceSession[]> => {
    const all: ort.InferenceSession[] = [];
    for (const [codes, its] of weights)
      all.push(await session(make((await codes.data()) as Uint8Array, (await its.absmax.data()) as Float32Array)));
    return all;
  };
  const peers = {
    MatMulBnb4: (codes: Uint8Array, scales: Float32Array) => matMulBnb4(n, k, codes, scales, blocksize, "nf4"),
    "MatMulNBits fp32": (codes: Uint8Array, scales: Float32Array) => matMulNBits(n, k, codes, scales, blocksize, 1),
    "MatMulNBits int8": (codes: Uint8Array, scales: Float32Array) => matMulNBits(n, k, codes, scales, blocksize, 4),
  };
  for (const [impl, make] of Object.entries(peers)) {
    const peer = await sessions(make);
    for (const m of rowCounts) {
      const x = randn([m, k]);
      const values = (await x.data()) as Float32Array;
      const y = (await linear4bit(x, weight).data()) as Float32Array;
      const feeds = { A: new ort.Tensor("float32", values, [m, k]) };
      const output = (await peer[0]!.run(feeds))["Y"]!.data as Float32Array;
      const error = impl === "MatMulBnb4" ? relativeError(output, y) : checkNBits(output, values, bytes, absmax, k);
      if (!(error < (impl === "MatMulNBits int8" ? 3e-2 : 1e-5))) throw new Error(`${impl} is off by ${error}`);
      const pairs = m >= 64 ? 10 : 30;
      const walk = m > 16 ? 1 : copies;
      // The peer that rounds activations to 8 bits meets ours that may, too.
      for (const mode of impl === "MatMulNBits int8" ? (["none", "int8"] as const) : (["none"] as const)) {
        let [mineAt, theirsAt] = [0, 0];
        const ours = (): unknown => linear4bit(x, handles[mode][mineAt++ % walk]!);
        const theirs = (): unknown => peer[theirsAt++ % walk]!.run(feeds);
        const { ours: mine, peer: other, ratio, disturbed } = await compare(ours, theirs, pairs);
        const gflops = (2e-6 * m * n * k) / mine.median;
        results.push({
          case: `M=${m} ${n}x${k}${mode === "none" ? "" : `, activations in ${mode}`} vs ${impl}`,
          ms: mine,
          peerMs: other,
          timesFaster: ratio,
          disturbed,
          GFLOPs: gflops,
          ofPeak: gflops / peakBefore,
          requiredBytes: n * k * bytesPerWeight + 4 * m * (n + k),
          weightGBs: (n * k * bytesPerWeight) / mine.median / 1e6,
          relErr: error,
        });
      }
      x.dispose();
    }
    for (const one of peer) await one.release();
  }
  // The gradient for x has no peer.
  for (const m of [64, 256]) {
    const dy = tensor(
      new Float32Array(m * n).map((_, i) => Math.sin(i)),
      { shape: [m, n] },
    );
    const x = randn([m, k]);
    x.requiresGrad = true;
    const timing = await time(() => {
      const y = linear4bit(x, weight);
      backward(y, dy);
      x.grad?.dispose();
      x.grad = null;
    }, 10);
    results.push({
      case: `M=${m} ${n}x${k} forward + gradient of x`,
      ms: timing,
      GFLOPs: (4e-6 * m * n * k) / timing.median,
      ofPeak: (4e-6 * m * n * k) / timing.median / peakBefore,
    });
  }
}
await synchronize();
record("linear-4bit", results, {
  versions: { "onnxruntime-node": ort.env.versions.node, threads },
  ceilings: { fmaGFLOPs: [peakBefore, await fmaGigaflops()], readGBs: [readBefore, await readGigabytes()] },
});
