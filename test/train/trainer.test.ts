// The training loop: it learns, repeats with a seed, reports, can be aborted, and frees what it makes.
import { describe, expect, it } from "vitest";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { Generator } from "../../src/ops/index.js";
import { AdamW } from "../../src/optim/index.js";
import { toDevice } from "../../src/tensor/device.js";
import { memory } from "../../src/tensor/scope.js";
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
