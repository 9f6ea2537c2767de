// The training loop: it learns, repeats with a seed, reports, can be aborted, and frees what it makes.
import { describe, expect, it } from "vitest";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { Module } from "../../src/nn/index.js";
import { clone, Generator } from "../../src/ops/index.js";
import { AdamW } from "../../src/optim/index.js";
import { tensor } from "../../src/tensor/create.js";
import { toDevice } from "../../src/tensor/device.js";
import { keep, memory } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import type { StepReport, TrainOptions } from "../../src/train/index.js";
import { evaluate, evenBatches, randomBatches, train } from "../../src/train/index.js";
import { testDevices } from "../helpers/devices.js";

const text = Buffer.from("to be or not to be, that is the question. ".repeat(30)).map((byte) => byte & 127);
const sizes = { batchSize: 4, sequenceLength: 24 };

describe.each(testDevices())("on %s", (name) => {
  const device = toDevice(name);
  const newModel = () =>
    new LlamaForCausalLM(
      {
        vocabSize: 128,
        hiddenSize: 32,
        intermediateSize: 64,
        numHiddenLayers: 1,
        numAttentionHeads: 2,
        tieWordEmbeddings: true,
        maxPositionEmbeddings: 32,
      },
      { device, generator: new Generator(1) },
    );

  async function run(steps: number, options: Partial<TrainOptions> = {}) {
    const model = newModel();
    const parameters = model.parameters();
    const optimizer = new AdamW(parameters, { lr: 0.01 });
    const batches = randomBatches(text, { ...sizes, seed: 1, device });
    const even = () => evenBatches(text, { ...sizes, count: 2, device });
    try {
      const before = await evaluate(model, even());
      const result = await train({ model, optimizer, parameters, batches, steps, ...options });
      return { ...result, before, after: await evaluate(model, even()) };
    } finally {
      optimizer.dispose();
      model.dispose();
    }
  }

  it("lowers the loss from that of a uniform guess", async () => {
    const { losses, before, after, tokensPerSecond } = await run(60);
    expect(losses).toHaveLength(60);
    expect(before).toBeGreaterThan(4.5); // ln 128 = 4.85
    expect(losses[0]).toBeCloseTo(Math.log(128), 0);
    expect(after).toBeLessThan(1.5);
    expect(tokensPerSecond).toBeGreaterThan(0);
  });

  it("repeats its losses to the bit", async () => {
    expect((await run(8)).losses).toEqual((await run(8)).losses);
  });

  it("reports every step and advances the schedule after each", async () => {
    const reports: StepReport[] = [];
    let advanced = 0;
    const scheduler = { step: () => void advanced++ };
    const { losses } = await run(3, { onStep: (report) => reports.push(report), scheduler });
    expect(advanced).toBe(3);
    expect(reports.map(({ step, steps, loss }) => ({ step, steps, loss }))).toEqual(
      losses.map((loss, i) => ({ step: i + 1, steps: 3, loss })),
    );
    expect(reports.at(-1)?.secondsLeft).toBe(0);
  });

  it("returns memory to its start", async () => {
    await run(1);
    const before = memory();
    await run(3);
    expect(memory().liveBytes).toBe(before.liveBytes);
    expect(memory().tensors).toBe(before.tensors);
  });

  it("clips the gradients before the optimizer sees them", async () => {
    const model = newModel();
    const parameters = model.parameters();
    const norms: number[] = [];
    // Not finished when it returns: the norm is read later, of copies.
    const copies: Tensor[][] = [];
    const optimizer = {
      step: () => void copies.push(parameters.flatMap((p) => (p.grad ? [keep(clone(p.grad))] : []))),
      zeroGrad: () => {
        for (const p of parameters) {
          p.grad?.dispose();
          p.grad = null;
        }
      },
    } as unknown as TrainOptions["optimizer"];
    for (const maxGradNorm of [0, 0.01]) {
      const batches = randomBatches(text, { ...sizes, seed: 1, device });
      await train({ model, optimizer, parameters, batches, steps: 2, maxGradNorm });
    }
    for (const gradients of copies) {
      norms.push(Math.hypot(...gradients.flatMap((g) => [...g.floatsSync()])));
      for (const g of gradients) g.dispose();
    }
    expect(norms).toHaveLength(4);
    for (const norm of norms.slice(0, 2)) expect(norm).toBeGreaterThan(0.1);
    for (const norm of norms.slice(2)) expect(norm).toBeCloseTo(0.01, 5);
    model.dispose();
  });

  it("refuses numbers that would train nothing or clip nothing", async () => {
    await expect(run(Number.NaN)).rejects.toThrow("train: steps must be an integer of at least 0, got NaN");
    await expect(run(1, { maxGradNorm: Number.NaN })).rejects.toThrow(
      "train: maxGradNorm must be a finite number of at least 0, got NaN",
    );
  });

  describe("evaluate", () => {
    const vocab = 3;
    // Logits that depend on the mode and on the first id of a row alone, so that batches differ in their loss.
    class Stub extends Module {
      modes: boolean[] = [];
      forward(ids: Tensor): Tensor {
        this.modes.push(this.training);
        const [rows, length] = ids.shape as [number, number];
        const values = [...ids.dataSync()].flatMap((id) => [this.training ? 9 : 0, id, 1]);
        return tensor(values, { shape: [rows, length, vocab], device });
      }
    }
    const batch = (ids: number[][], targets: number[][]) => ({
      ids: tensor(ids, { dtype: "int32", device }),
      targets: tensor(targets, { dtype: "int32", device }),
    });
    // -log softmax, in float64.
    const nats = (id: number, target: number): number => {
      const logits = [0, id, 1];
      return Math.log(logits.reduce((sum, x) => sum + Math.exp(x), 0)) - logits[target]!;
    };

    it("counts every token alike, in evaluation mode, and frees its batches", async () => {
      const model = new Stub();
      model.train();
      const before = memory().tensors;
      const batches = [
        batch(
          [
            [0, 1],
            [2, 0],
            [1, 1],
          ],
          [
            [1, 2],
            [0, 1],
            [2, 2],
          ],
        ),
        batch([[2, 2]], [[0, 0]]),
        batch([[0, 0, 2]], [[-100, 1, -100]]),
        batch([[1]], [[-100]]),
      ];
      const loss = await evaluate(model, batches);
      const tokens: [id: number, target: number][] = [
        [0, 1],
        [1, 2],
        [2, 0],
        [0, 1],
        [1, 2],
        [1, 2],
        [2, 0],
        [2, 0],
        [0, 1],
      ];
      const want = tokens.reduce((sum, [id, target]) => sum + nats(id, target), 0) / tokens.length;
      expect(loss).toBeCloseTo(want, 5);
      expect(model.modes).toEqual([false, false, false, false]);
      expect(memory().tensors).toBe(before);
    });

    it("refuses batches without a target", async () => {
      await expect(evaluate(new Stub(), [])).rejects.toThrow(
        "evaluate: batches must hold a token with a target, got none",
      );
    });
  });

  it("stops with ERR_BNB_ABORTED, keeping its cause", async () => {
    const control = new AbortController();
    const aborted = run(50, {
      signal: control.signal,
      onStep: ({ step }) => void (step === 2 && control.abort("late")),
    });
    await expect(aborted).rejects.toThrow(expect.objectContaining({ code: "ERR_BNB_ABORTED", cause: "late" }));
  });

  it("rejects when the batches run out", async () => {
    const batches = evenBatches(text, { ...sizes, count: 2, device });
    await expect(run(3, { batches })).rejects.toThrow("train: 3 batches are needed, got 2");
  });
});
