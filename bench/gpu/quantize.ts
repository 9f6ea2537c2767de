// Group 3: quantizing and dequantizing in 4 and 8 bits, against a copy of as many bytes in the same process.
import type { DType, Tensor } from "bitsandbytes-node";
import {
  copyInto,
  dequantize4bit,
  dequantizeBlockwise,
  noGrad,
  quantize4bit,
  quantizeBlockwise,
  slice,
  tidy,
  zeros,
} from "bitsandbytes-node";
import type { Check, Context, Peer } from "./context.js";
import { bytesOf } from "./context.js";

// Elements of the samples at both ends that are compared with the CPU: whole blocks of every size.
const sample = 8192;

/** A copy that moves `nbytes` in all: half of them read, half written. */
export function copyOf(context: Context, nbytes: number): { peer: Peer; dispose: () => void } {
  const half = Math.max(16, Math.round(nbytes / 32) * 16);
  const pairs = Array.from({ length: context.copies(half) }, () =>
    [0, 1].map(() => zeros([half], { dtype: "uint8", device: context.device })),
  );
  return {
    peer: {
      impl: "copy of as many bytes",
      work: (i) => copyInto(pairs[i % pairs.length]![0]!, pairs[i % pairs.length]![1]!),
    },
    dispose: () => {
      for (const t of pairs.flat()) t.dispose();
    },
  };
}

/** 0 if both ends of what the device makes of x equal what the CPU makes of them, else the share that differs. */
function equalAtBothEnds(x: Tensor, make: (x: Tensor) => Tensor[]): Check {
  return {
    limit: 0,
    error: async () => {
      let [different, total] = [0, 0];
      for (const start of new Set([0, Math.max(0, x.size - sample)])) {
        const part = tidy(() => slice(x, 0, start, Math.min(x.size, start + sample)));
        const host = part.to("cpu");
        const [ours, theirs] = noGrad(() => [make(part), make(host)] as const);
        for (const [i, tensor] of ours.entries()) {
          const [a, b] = [await tensor.floats(), await theirs[i]!.floats()];
          total += b.length;
          for (let j = 0; j < b.length; j++) if (!Object.is(a[j], b[j])) different++;
        }
        for (const t of [part, host, ...ours, ...theirs]) t.dispose();
      }
      return different / total;
    },
  };
}

async function fourBit(context: Context, size: number, blocksize: number, dtype: DType): Promise<void> {
  const element = bytesOf[dtype] ?? 4;
  const requiredBytes = size * (element + 0.5 + 4 / blocksize);
  const copies = context.copies(requiredBytes);
  const inputs = Array.from({ length: copies }, () => context.random([size], dtype));
  const outputs = inputs.map((x) => noGrad(() => quantize4bit(x, { quantType: "nf4", blocksize })));
  const copy = copyOf(context, requiredBytes);
  const what = {
    group: 3,
    case: { size, blocksize, quantType: "nf4", dtype },
    cache: "cold",
    requiredBytes,
    flops: 0,
  } as const;
  const take = (x: Tensor): Tensor[] => {
    const [packed, state] = quantize4bit(x, { quantType: "nf4", blocksize });
    const values = dequantize4bit(packed, { quantState: state });
    return [packed, state.absmax, values];
  };
  const check = equalAtBothEnds(inputs[0]!, take);
  await context.measure(
    { ...what, op: "quantize4bit" },
    check,
    (i) => {
      const [packed, state] = quantize4bit(inputs[i % copies]!, { quantType: "nf4", blocksize });
      packed.dispose();
      state.dispose();
    },
    copy.peer,
  );
  await context.measure(
    { ...what, op: "dequantize4bit" },
    check,
    (i) => {
      const [packed, state] = outputs[i % copies]!;
      dequantize4bit(packed, { quantState: state });
    },
    copy.peer,
  );
  copy.dispose();
  for (const x of inputs) x.dispose();
  for (const [packed, state] of outputs) {
    packed.dispose();
    state.dispose();
  }
}

async function eightBit(context: Context, size: number, blocksize: number): Promise<void> {
  const requiredBytes = size * (5 + 4 / blocksize);
  const copies = context.copies(requiredBytes);
  const inputs = Array.from({ length: copies }, () => context.random([size], "float32"));
  const outputs = inputs.map((x) => noGrad(() => quantizeBlockwise(x, { blocksize })));
  const copy = copyOf(context, requiredBytes);
  const what = {
    group: 3,
    case: { size, blocksize, dtype: "float32" },
    cache: "cold",
    requiredBytes,
    flops: 0,
  } as const;
  const take = (x: Tensor): Tensor[] => {
    const [codes, state] = quantizeBlockwise(x, { blocksize });
    return [codes, state.absmax, dequantizeBlockwise(codes, { quantState: state })];
  };
  const check = equalAtBothEnds(inputs[0]!, take);
  await context.measure(
    { ...what, op: "quantizeBlockwise" },
    check,
    (i) => {
      const [codes, state] = quantizeBlockwise(inputs[i % copies]!, { blocksize });
      codes.dispose();
      state.dispose();
    },
    copy.peer,
  );
  await context.measure(
    { ...what, op: "dequantizeBlockwise" },
    check,
    (i) => {
      const [codes, state] = outputs[i % copies]!;
      dequantizeBlockwise(codes, { quantState: state });
    },
    copy.peer,
  );
  copy.dispose();
  for (const x of inputs) x.dispose();
  for (const [codes, state] of outputs) {
    codes.dispose();
    state.dispose();
  }
}

export async function quantize(context: Context): Promise<void> {
  const sizes = context.pick({
    tiny: [16384],
    quick: [2 ** 20, 14336 * 4096],
    full: [2 ** 20, 2 ** 24, 14336 * 4096, 28672 * 8192],
  });
  for (const size of sizes) {
    for (const blocksize of context.pick({ tiny: [64], quick: [64], full: [64, 128, 4096] }))
      await context.attempt("quantize4bit", { size, blocksize }, () => fourBit(context, size, blocksize, "bfloat16"));
  }
  for (const size of context.pick({ tiny: [16384], quick: [2 ** 24], full: [2 ** 20, 2 ** 24, 2 ** 28] })) {
    for (const blocksize of context.pick({ tiny: [256, 4096], quick: [256], full: [256, 4096] }))
      await context.attempt("quantizeBlockwise", { size, blocksize }, () => eightBit(context, size, blocksize));
  }
}
