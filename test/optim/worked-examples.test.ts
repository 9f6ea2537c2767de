// One element through three steps, against values worked out in float64 and written down.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { tensor } from "../../src/index.js";
import { Adagrad, AdamW, AdEMAMix, LAMB, LARS, Lion, RMSprop, SGD } from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";

const weightDecay = 0.1;
const cases: [name: string, make: (p: Tensor[]) => { step(): void; dispose(): void }, expected: number[]][] = [
  ["AdamW", (p) => new AdamW(p, { weightDecay }), [0.99890000002, 0.9985337729870765, 0.9982280403125741]],
  ["LAMB", (p) => new LAMB(p, { weightDecay }), [0.99890000002, 0.9985337729870765, 0.9982280403125741]],
  [
    "LAMB, maxUnorm 0.02",
    (p) => new LAMB(p, { weightDecay, maxUnorm: 0.02 }),
    [0.99988, 0.9997600144, 0.999640043198272],
  ],
  ["AdEMAMix", (p) => new AdEMAMix(p, { weightDecay }), [0.99889950002001, 0.998532956825115, 0.9982268368950574]],
  ["Lion", (p) => new Lion(p, { weightDecay }), [0.99989, 0.9999800011, 0.9998700012999892]],
  ["SGD", (p) => new SGD(p, { weightDecay, lr: 0.01, momentum: 0.9 }), [0.994, 0.990106, 0.985611294]],
  ["LARS", (p) => new LARS(p, { weightDecay, lr: 0.01, momentum: 0.9 }), [0.9998, 0.99960004, 0.9994001199920001]],
  ["RMSprop", (p) => new RMSprop(p, { weightDecay }), [0.900000016666664, 0.9258874042942171, 0.9109992300316541]],
  ["Adagrad", (p) => new Adagrad(p, { weightDecay }), [0.9900000000016667, 0.9924405652074687, 0.9908567609912418]],
];

describe.each(testDevices())("worked examples on %s", (device) => {
  it.each(cases)("%s", (_, make, expected) => {
    const p = tensor([1], { device, requiresGrad: true });
    const optimizer = make([p]);
    [0.5, -0.25, 0].forEach((g, i) => {
      p.grad = tensor([g], { device });
      optimizer.step();
      expect(Math.abs(p.itemSync() - expected[i]!)).toBeLessThanOrEqual(2.5e-7);
      p.grad.dispose();
    });
    optimizer.dispose();
    p.dispose();
  });
});
