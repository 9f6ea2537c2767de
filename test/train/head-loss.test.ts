// Head and loss in chunks against the logits as a whole: values, gradients, and memory.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { noGrad } from "../../src/autograd/no-grad.js";
import type { CausalLM } from "../../src/models/index.js";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { cast, crossEntropy, Generator, mul } from "../../src/ops/index.js";
import { applyLora, getPeftModel, LoraConfig } from "../../src/peft/index.js";
import { tensor } from "../../src/tensor/create.js";
import { toDevice } from "../../src/tensor/device.js";
import type { DType } from "../../src/tensor/dtype.js";
import { emptyCache, memory, tidy } from "../../src/tensor/scope.js";
import { headLoss } from "../../src/train/head-loss.js";
import { testDevices } from "../helpers/devices.js";

const vocab = 48;

describe.each(testDevices())("on %s", (name) => {
  const device = toDevice(name);
  const newModel = (tied: boolean, dtype: DType = "float32"): LlamaForCausalLM =>
    new LlamaForCausalLM(
      {
        ...{ vocabSize: vocab, hiddenSize: 16, intermediateSize: 16, numHiddenLayers: 1, numAttentionHeads: 2 },
        ...{ tieWordEmbeddings: tied, initializerRange: 0.3, maxPositionEmbeddings: 64 },
      },
      { device, dtype, generator: new Generator(3) } as never,
    );
  const ids = Int32Array.from({ length: 60 }, (_, i) => (i * i * 7 + 3) % vocab);
  /** Targets of which about this share counts. */
  const targetsOf = (share: number): Int32Array =>
    ids.map((_, i) => ((i * 37) % 60 < share * 60 ? (i * 11 + 5) % vocab : -100));

  const grads = (model: CausalLM): Map<string, number[]> => {
    const found = new Map<string, number[]>();
    for (const [path, { grad }] of model.namedParameters()) {
      if (grad) found.set(path, [...tidy(() => noGrad(() => cast(grad, "float32")).floatsSync())]);
    }
    model.zeroGrad();
    return found;
  };
  const compare = (a: Map<string, number[]>, b: Map<string, number[]>, bound: number): void => {
    expect([...a.keys()]).toEqual([...b.keys()]);
    expect(a.size).toBeGreaterThan(0);
    for (const [path, values] of a) {
      const other = b.get(path) as number[];
      const largest = Math.max(...other.map(Math.abs));
      const error = Math.max(...values.map((v, i) => Math.abs(v - (other[i] as number))));
      expect(error / (largest || 1), path).toBeLessThan(bound);
    }
  };
  const whole = (model: CausalLM, targets: Int32Array, gradient: number): number =>
    tidy(() => {
      const logits = model.forward(tensor(ids, { shape: [1, 60], device }));
      const loss = crossEntropy(logits, tensor(targets, { shape: [1, 60], device }));
      backward(mul(loss, gradient));
      return loss.itemSync();
    });
  const inChunks = (model: CausalLM, targets: Int32Array, gradient: number, chunk: number, said = gradient): number =>
    tidy(() => {
      const loss = headLoss(model.inHalves(tensor(ids, { shape: [1, 60], device })), targets, said, chunk);
      backward(mul(loss, gradient));
      return loss.itemSync();
    });

  it.each([
    [1, 60],
    [1, 7],
    [0.5, 8],
    [0.2, 5],
    [0.2, 1024],
  ])("a share of %d that counts, %i rows a chunk: loss and gradients of all", (share, chunk) => {
    for (const tied of [false, true]) {
      using model = newModel(tied);
      const targets = targetsOf(share);
      const loss = whole(model, targets, 0.25);
      const wanted = grads(model);
      expect(inChunks(model, targets, 0.25, chunk)).toBeCloseTo(loss, 5);
      compare(grads(model), wanted, 2e-6);
      // Told another number than backward() begins with, it is as right.
      inChunks(model, targets, 0.25, chunk, 3);
      compare(grads(model), wanted, 2e-6);
    }
  });

  it("adds to the gradients that are there, as every op does", () => {
    using model = newModel(false);
    const targets = targetsOf(0.5);
    whole(model, targets, 1);
    whole(model, targets, 1);
    const wanted = grads(model);
    inChunks(model, targets, 1, 8);
    inChunks(model, targets, 1, 8);
    compare(grads(model), wanted, 2e-6);
  });

  it("a head with adapters that drop, over a frozen base", () => {
    const make = () => {
      const model = newModel(false);
      applyLora(model, {
        r: 4,
        targetModules: ["lm_head", "q_proj"],
        initLoraWeights: false,
        generator: new Generator(1),
      });
      return model;
    };
    const [a, b] = [make(), make()];
    const targets = targetsOf(1);
    whole(a, targets, 1);
    inChunks(b, targets, 1, 64);
    compare(grads(b), grads(a), 2e-6);
    a.dispose();
    b.dispose();
  });

  it("rows of a shared table that learn, told another number than backward() begins with", () => {
    using model = newModel(true);
    getPeftModel(model, new LoraConfig({ trainableTokenIndices: [3, 10, 20] }));
    const targets = targetsOf(0.5);
    whole(model, targets, -0.25);
    const wanted = grads(model);
    expect(wanted.size).toBe(1);
    inChunks(model, targets, -0.25, 8, 3);
    compare(grads(model), wanted, 2e-6);
  });

  it("a head whose adapters learn, where no gradients are recorded: the loss alone", () => {
    using model = newModel(false);
    const peft = getPeftModel(model, new LoraConfig({ targetModules: ["lm_head"] }));
    const targets = targetsOf(0.5);
    const loss = whole(model, targets, 1);
    model.zeroGrad();
    const x = tensor(ids, { shape: [1, 60], device });
    const alone = () => noGrad(() => tidy(() => headLoss(model.inHalves(x), targets, 1, 8).itemSync()));
    expect(alone()).toBeCloseTo(loss, 5);
    expect(peft.withoutAdapters(alone)).toBeCloseTo(loss, 5);
    expect(grads(model).size).toBe(0);
    x.dispose();
  });

  it("float16 with a scaled loss: small gradients do not vanish", () => {
    using model = newModel(false, "float16");
    const targets = targetsOf(1);
    whole(model, targets, 2 ** 10);
    const wanted = grads(model);
    inChunks(model, targets, 2 ** 10, 16);
    compare(grads(model), wanted, 0.01);
  });

  it("without gradients it gives the loss alone; of no row it is NaN", () => {
    using model = newModel(false);
    const targets = targetsOf(0.5);
    const loss = whole(model, targets, 1);
    model.zeroGrad();
    const x = tensor(ids, { shape: [1, 60], device });
    const alone = noGrad(() => tidy(() => headLoss(model.inHalves(x), targets, 1, 8).itemSync()));
    expect(alone).toBeCloseTo(loss, 5);
    const none = noGrad(() => tidy(() => headLoss(model.inHalves(x), targetsOf(0), 1, 8).itemSync()));
    expect(none).toBeNaN();
    x.dispose();
  });

  it("the logits of all rows are never in memory", () => {
    const [rows, width, words] = [512, 8, 4096];
    const hidden = tensor(
      Float32Array.from({ length: rows * width }, (_, i) => Math.sin(i)),
      {
        shape: [rows, width],
        device,
      },
    );
    const weight = tensor(
      Float32Array.from({ length: words * width }, (_, i) => Math.cos(i)),
      {
        shape: [words, width],
        device,
      },
    );
    hidden.requiresGrad = true;
    const head = (x: typeof hidden) => x.matmul(weight, { transposeB: true });
    const targets = Int32Array.from({ length: rows }, (_, i) => (i * 5) % words);
    const peakOf = (compute: () => typeof hidden): number => {
      emptyCache();
      const before = memory().liveBytes;
      tidy(() => backward(compute()));
      hidden.grad?.dispose();
      hidden.grad = null;
      return memory().peakBytes - before;
    };
    const logits = rows * words * 4;
    const fused = peakOf(() => headLoss({ hidden, head, learning: [], vocab: words }, targets, 1, 32));
    const apart = peakOf(() => crossEntropy(head(hidden), tensor(targets, { device })));
    expect(apart).toBeGreaterThan(logits);
    expect(fused).toBeLessThan(logits / 3);
    hidden.dispose();
    weight.dispose();
  });
});
