// Every layer: each mix of dtypes and each rank that its forward takes, its backward takes, too, with the gradients of
// the same function in float32 on unquantized weights.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import * as nn from "../../src/nn/index.js";
import {
  add,
  cast,
  clone,
  dequantize4bit,
  embedding,
  exp,
  gelu,
  geluTanh,
  int8VectorwiseDequant,
  layerNorm,
  linear,
  logSoftmax,
  maximum,
  mul,
  neg,
  reciprocal,
  reshape,
  rmsNorm,
  sigmoid,
  sub,
} from "../../src/ops/index.js";
import { LoraLinear } from "../../src/peft/index.js";
import { tensor } from "../../src/tensor/create.js";
import { toDevice } from "../../src/tensor/device.js";
import { BnbError } from "../../src/tensor/errors.js";
import { tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { boundOf, floats, outputGradient, representable } from "../helpers/backward-sweep.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import type { FloatDType } from "../helpers/tolerance.js";

const [k, n] = [64, 6];

interface LayerCase {
  name: string;
  make(dtype: FloatDType, device: string): nn.UnaryModule;
  /** Whether forward takes activations and parameters of these dtypes. Default: alike. */
  takes?: (x: FloatDType, layer: FloatDType) => boolean;
  /** The same function in float32, of x and of the values of the parameters by name. */
  plain(x: Tensor, p: Readonly<Record<string, Tensor>>, layer: nn.Module): Tensor;
  /** For ids instead of activations. */
  ids?: boolean;
}

const any = (): boolean => true;
const line = (x: Tensor, w: Tensor, b: Tensor | undefined): Tensor => linear(x, w, b ?? null);

/** The weight of a quantized layer as float32. */
function floatWeight(layer: nn.Module): Tensor {
  if (layer instanceof nn.Linear4bit) {
    const { weight } = layer.quantize();
    return cast(dequantize4bit(weight, { quantState: weight.quantState as never }), "float32");
  }
  const { weight, SCB } = (layer as nn.Linear8bitLt).quantize();
  return SCB ? int8VectorwiseDequant(weight, SCB) : cast(weight, "float32");
}

const quantizedLinear = (name: string, make: LayerCase["make"]): LayerCase => ({
  name,
  make,
  takes: any,
  plain: (x, p, layer) => line(x, p.weight ?? floatWeight(layer), p.bias),
});

const overBase = (
  name: string,
  makeBase: (dtype: FloatDType, device: string) => nn.Linear,
  takes?: typeof any,
): LayerCase => ({
  name: `LoraLinear over ${name}`,
  make: (dtype, device) => {
    const layer = new LoraLinear(makeBase(dtype, device), { r: 2, loraAlpha: 3, device: toDevice(device) });
    layer.loadStateDict({ "default.lora_B": filled([n, 2], "float32", device, 5) }, { strict: false });
    return layer;
  },
  ...(takes && { takes }),
  plain: (x, p, layer) => {
    const base = (layer as LoraLinear).baseLayer;
    const w = p["base_layer.weight"] ?? floatWeight(base as nn.Linear);
    const low = linear(x, p["default.lora_A"] as Tensor, null);
    return line(x, w, p["base_layer.bias"]).add(linear(low, p["default.lora_B"] as Tensor, null).mul(1.5));
  },
});

const cases: LayerCase[] = [
  {
    name: "Linear",
    make: (dtype, device) => new nn.Linear(k, n, { dtype, device }),
    plain: (x, p) => line(x, p.weight as Tensor, p.bias),
  },
  {
    name: "Sequential",
    make: (dtype, device) => new nn.Sequential(new nn.Linear(k, n, { dtype, device, bias: false })),
    plain: (x, p) => line(x, p["0.weight"] as Tensor, undefined),
  },
  quantizedLinear(
    "Linear4bit",
    (dtype, device) => new nn.Linear4bit(k, n, { dtype, device, compressStatistics: false }),
  ),
  quantizedLinear("LinearNF4", (dtype, device) => new nn.LinearNF4(k, n, { dtype, device })),
  quantizedLinear("LinearFP4", (dtype, device) => new nn.LinearFP4(k, n, { dtype, device, blocksize: 32 })),
  quantizedLinear("Linear8bitLt", (dtype, device) => new nn.Linear8bitLt(k, n, { dtype, device })),
  quantizedLinear("Linear8bitLt", (dtype, device) => new nn.Linear8bitLt(k, n, { dtype, device, threshold: 1.5 })),
  quantizedLinear(
    "Linear8bitLt",
    (dtype, device) => new nn.Linear8bitLt(k, n, { dtype, device, hasFp16Weights: false, threshold: 1.5 }),
  ),
  {
    name: "LayerNorm",
    make: (dtype, device) => new nn.LayerNorm(k, { dtype, device }),
    plain: (x, p) => layerNorm(x, p.weight, p.bias),
  },
  {
    name: "LayerNorm",
    make: (dtype, device) => new nn.LayerNorm(k, { dtype, device, elementwiseAffine: false }),
    takes: any,
    plain: (x) => layerNorm(x),
  },
  {
    name: "RMSNorm",
    make: (dtype, device) => new nn.RMSNorm(k, { dtype, device }),
    plain: (x, p) => rmsNorm(x, p.weight as Tensor),
  },
  { name: "Dropout", make: () => new nn.Dropout(0), takes: any, plain: (x) => clone(x) },
  { name: "ReLU", make: () => new nn.ReLU(), takes: any, plain: (x) => maximum(x, 0) },
  { name: "SiLU", make: () => new nn.SiLU(), takes: any, plain: (x) => mul(x, sigmoid(x)) },
  { name: "Tanh", make: () => new nn.Tanh(), takes: any, plain: (x) => sub(mul(sigmoid(mul(x, 2)), 2), 1) },
  { name: "Sigmoid", make: () => new nn.Sigmoid(), takes: any, plain: (x) => reciprocal(add(exp(neg(x)), 1)) },
  { name: "GELU", make: () => new nn.GELU(), takes: any, plain: (x) => gelu(x) },
  { name: "GELU", make: () => new nn.GELU({ approximate: "tanh" }), takes: any, plain: (x) => geluTanh(x) },
  { name: "Softmax", make: () => new nn.Softmax(), takes: any, plain: (x) => exp(logSoftmax(x)) },
  { name: "Flatten", make: () => new nn.Flatten(0), takes: any, plain: (x) => reshape(x, [x.size]) },
  {
    name: "Embedding",
    make: (dtype, device) => new nn.Embedding(k, n, { dtype, device }),
    ids: true,
    plain: (ids, p) => embedding(ids, p.weight as Tensor),
  },
  {
    name: "StableEmbedding",
    make: (dtype, device) => new nn.StableEmbedding(k, n, { dtype, device }),
    ids: true,
    plain: (ids, p) => layerNorm(embedding(ids, p.weight as Tensor), p["norm.weight"], p["norm.bias"]),
  },
  overBase("Linear", (dtype, device) => new nn.Linear(k, n, { dtype, device })),
  overBase("Linear4bit", (dtype, device) => new nn.LinearNF4(k, n, { dtype, device }), any),
  overBase("Linear8bitLt", (dtype, device) => new nn.Linear8bitLt(k, n, { dtype, device }), any),
  overBase(
    "Linear8bitLt",
    (dtype, device) => new nn.Linear8bitLt(k, n, { dtype, device, hasFp16Weights: false, bias: false }),
    any,
  ),
];

/** Nothing in them learns, or they compute nothing themselves. */
const withoutGradient = new Set(
  "Module ModuleList Embedding4bit EmbeddingNF4 EmbeddingFP4 Embedding8bit OutlierAwareLinear Bnb4bitParametrization".split(
    " ",
  ),
);

const inputShapes = [[k], [3, k], [2, 1, k], [1, 2, 1, k], [0, k]];
const idShapes = [[], [3], [2, 2], [1, 2, 1], [0]];

function filled(shape: readonly number[], dtype: FloatDType, device: string, seed: number): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return tensor(representable(size, seed), { shape, dtype, device });
}

function check(c: LayerCase, shape: readonly number[], xDtype: FloatDType, dtype: FloatDType, device: string): void {
  using layer = c.make(dtype, device);
  const label = `${c.name} in ${dtype} of ${xDtype} [${shape}]`;
  const x = c.ids
    ? tensor(
        Int32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => (i * 5) % 7),
        { shape, device },
      )
    : filled(shape, xDtype, device, 1);
  if (!c.ids) x.requiresGrad = true;
  let y: Tensor;
  try {
    y = layer.forward(x);
  } catch (error) {
    const takes = c.takes?.(xDtype, dtype) ?? xDtype === dtype;
    if (takes || !(error instanceof BnbError)) throw new Error(`${label}: forward failed`, { cause: error });
    expect(error.code, label).toBe("ERR_BNB_DTYPE");
    return;
  }
  expect(c.takes?.(xDtype, dtype) ?? (c.ids || xDtype === dtype), `${label} is taken`).toBe(true);
  const weights = outputGradient(y);
  backward(y, tensor(weights, { shape: y.shape, dtype: y.dtype, device }));

  const leaf = (t: Tensor): Tensor => {
    const copy = clone(cast(t.detach(), "float32"));
    copy.requiresGrad = true;
    return copy;
  };
  const learning = layer.namedParameters().filter(([, p]) => p.requiresGrad);
  const leaves = Object.fromEntries(learning.map(([name, p]) => [name, leaf(p)]));
  const plainX = c.ids ? x : leaf(x);
  const plainY = c.plain(plainX, leaves, layer);
  backward(plainY, tensor(weights, { shape: y.shape, device }));
  const pairs: [string, Tensor, Tensor][] = learning.map(([name, p]) => [name, p, leaves[name] as Tensor]);
  if (!c.ids) pairs.push(["x", x, plainX]);
  for (const [name, t, plain] of pairs) {
    expect([t.grad?.dtype, t.grad?.shape], `${label}: gradient of ${name}`).toEqual([t.dtype, t.shape]);
    expectClose(t.grad?.floatsSync() ?? [], plain.grad?.floatsSync() ?? [], boundOf([xDtype, dtype]));
  }
}

describe.each(testDevices())("on %s", (device) => {
  it.each(cases.map((c, i) => [c.name, i] as const))("%s (%i)", (_, i) => {
    const c = cases[i] as LayerCase;
    for (const dtype of floats) {
      for (const xDtype of c.ids ? [dtype] : floats) {
        for (const shape of c.ids ? idShapes : inputShapes) tidy(() => check(c, shape, xDtype, dtype, device));
      }
    }
  });

  it.each(cases.map((c, i) => [c.name, i] as const))("%s (%i) says that it was disposed", (_, i) => {
    const c = cases[i] as LayerCase;
    tidy(() => {
      const layer = c.make("float32", device);
      const x = c.ids ? tensor(Int32Array.of(1), { device }) : filled([2, k], "float32", device, 1);
      layer.forward(x);
      const holdsNothing = layer.stateDict().size === 0;
      layer.dispose();
      const use = (): unknown => layer.forward(x);
      if (holdsNothing) expect(use).not.toThrow();
      else expect(use).toThrow(expect.objectContaining({ code: "ERR_BNB_DISPOSED" }));
    });
  });

  it("leaves no layer of the library out", () => {
    const layers = Object.entries(nn).filter(
      ([, value]) => value === nn.Module || (value as { prototype?: unknown }).prototype instanceof nn.Module,
    );
    const covered = new Set(cases.map(({ name }) => name));
    expect(layers.map(([name]) => name).filter((name) => !covered.has(name) && !withoutGradient.has(name))).toEqual([]);
  });
});
