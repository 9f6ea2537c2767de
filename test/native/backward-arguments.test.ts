// Native backward ops check what they are given, also where autograd never gives it: a gradient of another dtype or shape
// would be read as if it were the right one.
import { describe, expect, it } from "vitest";
import { addon } from "../../src/tensor/addon.js";
import { ones, zeros } from "../../src/tensor/create.js";
import { binaryOps, unaryOps } from "../../src/tensor/enums.js";
import { run } from "../../src/tensor/run.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";

describe.each(testDevices())("backward ops on %s", (device) => {
  const x = () => ones([2, 4], { device });
  const half = () => ones([2, 4], { device, dtype: "float16" });
  const other = () => ones([3, 4], { device });
  const row = () => ones([4], { device });
  const column = () => ones([2], { device });
  const chosen = () => zeros([2, 4], { device, dtype: "int32" });
  const square = () => [ones([4, 4], { device })];
  const weights = () => run(addon.expertWeights, square(), square(), square())[0];
  const silu = unaryOps.indexOf("silu");
  const mul = binaryOps.indexOf("mul");

  const ops: Record<string, (dy: Tensor) => unknown> = {
    unary: (dy) => run(addon.unaryBackward, silu, dy, x(), 0),
    binary: (dy) => run(addon.binaryBackward, mul, dy, x(), x(), 0, [2, 4], [2, 4], true, true),
    softmax: (dy) => run(addon.softmaxBackward, x(), dy, false),
    rmsNorm: (dy) => run(addon.rmsNormBackward, dy, x(), row(), column(), true),
    layerNorm: (dy) => run(addon.layerNormBackward, dy, x(), row(), column(), column(), true, true),
    matmul: (dy) => run(addon.matmulBackward, x(), ones([4, 4], { device }), dy, false, false, true, true),
    linear: (dy) => run(addon.linearBackward, x(), ones([4, 4], { device }), dy, true, true, true),
    chooseExperts: (dy) => run(addon.chooseExpertsBackward, dy, x(), x(), chosen(), true),
    expertsSwiglu: (dy) => run(addon.expertsSwigluBackward, dy, x(), x(), chosen(), weights()),
    swiglu: (dy) => run(addon.swigluBackward, x(), x(), dy),
  };

  it.each(Object.entries(ops))("%s", (_, backward) => {
    expect(() => backward(x())).not.toThrow();
    expect(() => backward(half())).toThrow(/dtype|must be float32/);
    expect(() => backward(other())).toThrow(/shape/);
  });
});
