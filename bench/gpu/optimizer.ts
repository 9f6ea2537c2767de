// Group 5: one step of the optimizers, on single tensors and on sets of many, against a copy of as many bytes.
import type { DType, Tensor } from "bitsandbytes-node";
import type { Optimizer8bit } from "bitsandbytes-node/optim";
import { AdamW8bit, AdEMAMix8bit, Lion8bit, RMSprop8bit, SGD8bit } from "bitsandbytes-node/optim";
import type { Check, Context } from "./context.js";
import { bytesOf } from "./context.js";
import { copyOf } from "./quantize.js";
import { relativeError } from "./report.js";

interface Rule {
  name: string;
  make: (params: Tensor[]) => Optimizer8bit;
  /** States of one byte and their scales. */
  states: number;
}
const rules: Rule[] = [
  { name: "AdamW8bit", make: (p) => new AdamW8bit(p, { lr: 1e-3 }), states: 2 },
  { name: "Lion8bit", make: (p) => new Lion8bit(p, { lr: 1e-4 }), states: 1 },
  { name: "SGD8bit", make: (p) => new SGD8bit(p, { lr: 1e-3, momentum: 0.9 }), states: 1 },
  { name: "RMSprop8bit", make: (p) => new RMSprop8bit(p, { lr: 1e-3 }), states: 1 },
  { name: "AdEMAMix8bit", make: (p) => new AdEMAMix8bit(p, { lr: 1e-3 }), states: 3 },
];

// LoRA with r = 16 on an 8-billion Llama: A and B of seven products in 32 layers. And the shapes of ResNet-50.
function loraSizes(): number[] {
  const products = [
    [4096, 4096],
    [4096, 1024],
    [4096, 1024],
    [4096, 4096],
    [4096, 14336],
    [4096, 14336],
    [14336, 4096],
  ];
  return Array.from({ length: 32 }, () => products.flatMap(([k, n]) => [16 * k!, 16 * n!])).flat();
}
function resnetSizes(): number[] {
  const sizes = [9408, 64, 64];
  let inputs = 64;
  for (const [blocks, width] of [
    [3, 64],
    [4, 128],
    [6, 256],
    [3, 512],
  ] as const) {
    for (let block = 0; block < blocks; block++) {
      sizes.push(
        inputs * width,
        width,
        width,
        9 * width * width,
        width,
        width,
        4 * width * width,
        4 * width,
        4 * width,
      );
      if (block === 0) sizes.push(4 * inputs * width, 4 * width, 4 * width);
      inputs = 4 * width;
    }
  }
  return [...sizes, 2048 * 1000, 1000];
}

/** Two steps of the first elements of the first tensor on the CPU, from the same numbers. */
function checkSteps(context: Context, rule: Rule, dtype: DType): Check {
  return {
    limit: dtype === "float32" ? 1e-5 : 1e-2,
    error: async () => {
      // 4096 elements are the fewest that get 8-bit states.
      const p = context.random([8192], dtype, 0.1);
      const g = context.random([8192], dtype, 0.01);
      const [hostP, hostG] = [p.to("cpu"), g.to("cpu")];
      const started = await hostP.floats();
      for (const [param, grad] of [
        [p, g],
        [hostP, hostG],
      ] as const) {
        param.requiresGrad = true;
        param.grad = grad;
        const optimizer = rule.make([param]);
        for (let i = 0; i < 2; i++) optimizer.step();
        optimizer.dispose();
      }
      const [ours, theirs] = [await p.floats(), await hostP.floats()];
      for (const t of [p, g, hostP, hostG]) t.dispose();
      if (relativeError(theirs, started) === 0) return Number.POSITIVE_INFINITY;
      return relativeError(ours, theirs);
    },
  };
}

function step(context: Context, rule: Rule, set: string, sizes: number[], dtype: DType): Promise<void> {
  return context.attempt(rule.name, { set, dtype }, () => timeStep(context, rule, set, sizes, dtype));
}

async function timeStep(context: Context, rule: Rule, set: string, sizes: number[], dtype: DType): Promise<void> {
  const element = bytesOf[dtype] ?? 4;
  const parameters = sizes.reduce((a, b) => a + b, 0);
  const params = sizes.map((size) => context.random([size], dtype, 0.1));
  const grads = sizes.map((size) => context.random([size], dtype, 0.01));
  for (const [i, p] of params.entries()) {
    p.requiresGrad = true;
    p.grad = grads[i]!;
  }
  const optimizer = rule.make(params);
  // p and g in, p out, each state in and out; small tensors have float32 states.
  const stateBytes = sizes.reduce((sum, size) => sum + size * 2 * rule.states * (size < 4096 ? 4 : 1 + 4 / 256), 0);
  const requiredBytes = 3 * element * parameters + stateBytes;
  const copy = copyOf(context, requiredBytes);
  await context.measure(
    {
      group: 5,
      op: rule.name,
      case: { set, tensors: sizes.length, parameters, dtype },
      // What fits the cache stays there from one step to the next, as in training it would not.
      cache: requiredBytes > 200e6 ? "cold" : "warm",
      requiredBytes,
      flops: 0,
    },
    checkSteps(context, rule, dtype),
    () => optimizer.step(),
    copy.peer,
  );
  optimizer.dispose();
  copy.dispose();
  for (const t of [...params, ...grads]) t.dispose();
}

export async function optimizers(context: Context): Promise<void> {
  const dtypes = ["bfloat16", "float32"] as const;
  if (context.tiny) {
    for (const rule of rules) await step(context, rule, "single", [8192], "bfloat16");
    await step(context, rules[0]!, "many", [4096, 300, 5000], "float32");
    return;
  }
  if (context.pick({ tiny: false, quick: true, full: false })) {
    for (const dtype of dtypes) await step(context, rules[0]!, "single", [14336 * 4096], dtype);
    await step(context, rules[0]!, "single", [2 ** 20], "bfloat16");
    await step(context, rules[0]!, "LoRA r=16, 8B", loraSizes(), "bfloat16");
    for (const rule of rules.slice(1, 3)) await step(context, rule, "single", [14336 * 4096], "bfloat16");
    return;
  }
  for (const dtype of dtypes) {
    for (const size of [2 ** 20, 2 ** 24, 14336 * 4096, 128256 * 4096, 1_235_814_400]) {
      await step(context, rules[0]!, "single", [size], dtype);
    }
    await step(context, rules[0]!, "LoRA r=16, 8B", loraSizes(), dtype);
    await step(context, rules[0]!, "ResNet-50", resnetSizes(), dtype);
  }
  for (const rule of rules.slice(1)) await step(context, rule, "single", [14336 * 4096 * 4], "bfloat16");
}
