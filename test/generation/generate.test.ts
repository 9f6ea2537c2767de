// generate(): seeds, stops, limits, abort, memory, and an event loop that keeps turning.
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { GenerateOptions } from "../../src/generation/index.js";
import "../../src/generation/index.js";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { Generator } from "../../src/ops/index.js";
import { toDevice } from "../../src/tensor/device.js";
import { memory } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";

describe.each(testDevices())("on %s", (name) => {
  const device = toDevice(name);
  let model: LlamaForCausalLM;
  beforeAll(() => {
    model = new LlamaForCausalLM(
      {
        vocabSize: 29,
        hiddenSize: 32,
        intermediateSize: 48,
        numHiddenLayers: 2,
        numAttentionHeads: 4,
        numKeyValueHeads: 1,
        maxPositionEmbeddings: 24,
        initializerRange: 0.4,
      },
      { device, generator: new Generator(5) },
    ).eval();
  });
  afterAll(() => model.dispose());

  async function text(options: GenerateOptions, prompt = [3, 1, 4]): Promise<number[]> {
    const made: number[] = [];
    for await (const token of model.generate(prompt, options)) made.push(token);
    return made;
  }

  describe("values", () => {
    it("repeats with a seed and differs with another", async () => {
      const options = { doSample: true, temperature: 1.5, maxNewTokens: 12 };
      const first = await text({ ...options, seed: 1 });
      expect(first).toHaveLength(12);
      expect(await text({ ...options, seed: 1 })).toEqual(first);
      expect(await text({ ...options, seed: 2 })).not.toEqual(first);
    });

    it("gives the same tokens with a recorded graph as without, up to the last position", async () => {
      const options = { doSample: true, temperature: 1.5, maxNewTokens: 40, seed: 3 };
      const eager = await text({ ...options, graph: false });
      expect(eager).toHaveLength(22);
      expect(await text({ ...options, graph: true })).toEqual(eager);
    });

    it("is greedy by default, which topK 1 is too", async () => {
      const greedy = await text({ maxNewTokens: 8 });
      expect(await text({ maxNewTokens: 8, doSample: true, temperature: 2, topK: 1, seed: 9 })).toEqual(greedy);
    });

    it("accepts bytes and Int32Array as prompt", async () => {
      const wanted = await text({ maxNewTokens: 3 });
      for (const prompt of [Uint8Array.of(3, 1, 4), Int32Array.of(3, 1, 4)]) {
        const made: number[] = [];
        for await (const token of model.generate(prompt, { maxNewTokens: 3 })) made.push(token);
        expect(made).toEqual(wanted);
      }
    });

    it("stops after the token of the end, which it still yields", async () => {
      const greedy = await text({ maxNewTokens: 8 });
      const end = greedy.indexOf(greedy[4] as number);
      expect(await text({ maxNewTokens: 8, eosTokenId: greedy[4] as number })).toEqual(greedy.slice(0, end + 1));
    });

    it("ends where the positions of the model end", async () => {
      expect(await text({ maxNewTokens: 100 })).toHaveLength(24 - 3 + 1);
      expect(await text({ maxNewTokens: 0 })).toEqual([]);
    });
  });

  describe("abort", () => {
    const aborted = expect.objectContaining({ code: "ERR_BNB_ABORTED", message: "generate: aborted by its signal" });

    it("rejects before the first token when the signal was aborted", async () => {
      await expect(text({ signal: AbortSignal.abort() })).rejects.toThrow(aborted);
    });

    it("rejects between tokens, with the reason as its cause, and frees what it held", async () => {
      const before = memory();
      const control = new AbortController();
      const made: number[] = [];
      const run = async () => {
        for await (const token of model.generate([1, 2], { maxNewTokens: 20, signal: control.signal })) {
          made.push(token);
          if (made.length === 3) control.abort("enough");
        }
      };
      await expect(run()).rejects.toThrow(expect.objectContaining({ code: "ERR_BNB_ABORTED", cause: "enough" }));
      expect(made).toHaveLength(3);
      expect(memory().liveBytes).toBe(before.liveBytes);
    });

    it("is noticed while a token is made, and before the next one is begun", async () => {
      const control = new AbortController();
      const tokens = model.generate([1, 2], { maxNewTokens: 20, signal: control.signal });
      await tokens.next();
      const underway = tokens.next();
      control.abort();
      await expect(underway).rejects.toThrow(aborted);

      const second = new AbortController();
      const forward = vi.spyOn(model, "forward");
      const more = model.generate([1, 2], { maxNewTokens: 20, signal: second.signal, graph: false });
      await more.next();
      second.abort();
      const begun = forward.mock.calls.length;
      await expect(more.next()).rejects.toThrow(aborted);
      expect(forward.mock.calls.length).toBe(begun);
      forward.mockRestore();
    });
  });

  describe("memory", () => {
    it("returns to its start at the end, also when the loop is left early", async () => {
      await text({ maxNewTokens: 1 });
      const before = memory();
      await text({ maxNewTokens: 10, doSample: true });
      for await (const _ of model.generate([1], { maxNewTokens: 10 })) break;
      expect(memory().liveBytes).toBe(before.liveBytes);
      expect(memory().tensors).toBe(before.tensors);
    });
  });

  describe("event loop", () => {
    it("turns between any two tokens", async () => {
      let turns = 0;
      let isRunning = true;
      const spin = () => {
        turns++;
        if (isRunning) setImmediate(spin);
      };
      setImmediate(spin);
      const made = await text({ maxNewTokens: 20 });
      isRunning = false;
      expect(turns).toBeGreaterThanOrEqual(made.length);
    });
  });

  describe("a model that is no more", () => {
    const options = { vocabSize: 29, hiddenSize: 32, intermediateSize: 48, numHiddenLayers: 1, numAttentionHeads: 2 };
    const disposals: [string, (model: LlamaForCausalLM) => void][] = [
      ["whole", (model) => model.dispose()],
      ["in part", (model) => model.model.layers.at(0)?.mlp.dispose()],
    ];
    it.each(disposals.flatMap((disposal) => [[...disposal, false] as const, [...disposal, true] as const]))(
      "ends a generation when disposed %s, with ERR_BNB_DISPOSED, and leaves nothing",
      async (_, dispose, graph) => {
        await expect(async () => {
          const small = new LlamaForCausalLM(
            { ...options, numKeyValueHeads: 1, maxPositionEmbeddings: 24 },
            { device },
          );
          const tokens = small.eval().generate([1, 2], { graph });
          for (let i = 0; i < 4; i++) await tokens.next();
          dispose(small);
          await expect(tokens.next()).rejects.toThrow(
            expect.objectContaining({
              code: "ERR_BNB_DISPOSED",
              message: expect.stringMatching(/was disposed/) as string,
            }),
          );
          small.dispose();
        }).toLeakNothing();
      },
    );
  });

  describe("a model that does more than call ops", () => {
    // Reads a value, which no recording can do.
    let steps = 0;
    class Curious extends LlamaForCausalLM {
      override step(...args: Parameters<LlamaForCausalLM["step"]>): Tensor {
        const logits = super.step(...args);
        steps++;
        logits.floatsSync();
        return logits;
      }
    }
    it("is not recorded, and gives the same tokens", async () => {
      const curious = new Curious(model.config, { device, generator: new Generator(5) }).eval();
      const options = { maxNewTokens: 30, doSample: true, temperature: 1.5, seed: 7 };
      const made: number[] = [];
      for await (const token of curious.generate([3, 1, 4], { ...options, graph: true })) made.push(token);
      expect(made).toEqual(await text({ ...options, graph: false }));
      expect(made).toHaveLength(22);
      // One of them was tried as a recording, and none after it.
      expect(steps).toBe(22 + 1);
      curious.dispose();
    });
  });

  describe("errors", () => {
    it.each([
      [{ maxNewTokens: -1 }, "generate: maxNewTokens must be an integer of at least 0, got -1"],
      [{ temperature: -2 }, "generate: temperature must be a finite number of at least 0, got -2"],
    ])("rejects %o", async (options, message) => {
      await expect(text(options)).rejects.toThrow(expect.objectContaining({ code: "ERR_BNB_OPTION", message }));
    });

    it.each([
      [[], "generate: the prompt must have between 1 and 24 tokens, got 0"],
      [new Array<number>(25).fill(1), "generate: the prompt must have between 1 and 24 tokens, got 25"],
      [[29], "generate: a token id must lie in 0..28, got 29"],
      [[-1], "generate: a token id must lie in 0..28, got -1"],
    ])("rejects the prompt %o", async (prompt, message) => {
      await expect(text({}, prompt)).rejects.toThrow(expect.objectContaining({ code: "ERR_BNB_ARGUMENT", message }));
    });
  });
});
