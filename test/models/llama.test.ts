// The Llama model against transformers: the fixture holds a small random checkpoint, its logits and the text it
// continues greedily.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import { noGrad } from "../../src/autograd/no-grad.js";
import { KvPages } from "../../src/generation/index.js";
import { LlamaConfig, LlamaForCausalLM } from "../../src/models/index.js";
import { crossEntropy, Generator } from "../../src/ops/index.js";
import { fromBytes, tensor } from "../../src/tensor/create.js";
import type { Device } from "../../src/tensor/device.js";
import { toDevice } from "../../src/tensor/device.js";
import { memory, tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";
import { rowsOf, step } from "../helpers/step.js";

const folder = "models/llama";
const json = JSON.parse(readFileSync(fixturePath(`${folder}/fp32/config.json`), "utf8"));
const expected = readSafetensors(`${folder}/expected.safetensors`);
const checkpoint = readSafetensors(`${folder}/fp32/model.safetensors`);

const numbers = (name: string) => Array.from(expected.get(name)?.values as ArrayLike<number | bigint>, Number);

function load(device: Device): LlamaForCausalLM {
  const model = new LlamaForCausalLM(LlamaConfig.fromJSON(json), { device });
  const tensors = new Map(
    [...checkpoint].map(([name, { dtype, shape, bytes }]) => {
      expect(dtype).toBe("float32");
      return [name, fromBytes(bytes, { dtype: "float32", shape, device })] as const;
    }),
  );
  expect(model.loadStateDict(tensors)).toEqual({ missing: [], unexpected: [] });
  for (const value of tensors.values()) value.dispose();
  return model.eval();
}

describe.each(testDevices())("on %s", (name) => {
  const device = toDevice(name);
  describe("values", () => {
    it("has the state-dict keys of Hugging Face", () => {
      const model = load(device);
      expect([...model.stateDict().keys()].sort()).toEqual([...checkpoint.keys()].sort());
      model.dispose();
    });

    it("computes the logits of transformers", () => {
      const model = load(device);
      const logits = tidy(() =>
        noGrad(() => model.forward(tensor(Int32Array.from(numbers("input_ids")), { shape: [2, 24], device }))),
      );
      expect(logits.shape).toEqual([2, 24, 512]);
      const actual = logits.floatsSync();
      const want = numbers("fp32.logits");
      let largest = 0;
      let sum = 0;
      want.forEach((value, i) => {
        const difference = Math.abs(value - (actual[i] as number));
        largest = Math.max(largest, difference);
        sum += difference;
      });
      expect(largest).toBeLessThan(2e-4);
      expect(sum / want.length).toBeLessThan(2e-5);
      logits.dispose();
      model.dispose();
    });

    it("continues greedily as transformers does", async () => {
      const model = load(device);
      const made: number[] = [];
      for await (const token of model.generate(numbers("prompt"), { maxNewTokens: 20 })) made.push(token);
      expect(made).toEqual(numbers("fp32.generated"));
      model.dispose();
    });

    it("gives the same logits over pages, in one piece or token by token, as without", () => {
      const model = load(device);
      const ids = numbers("input_ids");
      const texts = [ids.slice(0, 24), ids.slice(24)] as const;
      const whole = texts.map((text) =>
        tidy(() => noGrad(() => model.forward(tensor([text], { dtype: "int32", device })))).floatsSync(),
      );
      const vocab = 512;
      for (const sizes of [[24], [10, 14], [5, ...new Array<number>(19).fill(1)]]) {
        using kv = new KvPages(model.kvLayout(), { pages: 4, device });
        let position = 0;
        for (const size of sizes) {
          // Two texts in one step, of which the second runs behind.
          const begins = [position, Math.floor(position / 2)] as const;
          const rows = [size, Math.floor((position + size) / 2) - begins[1]] as const;
          const parts = texts.map((text, i) => {
            const from = begins[i] as number;
            return rowsOf(text.slice(from, from + (rows[i] as number)), from, 2 * i);
          });
          const logits = step(model, kv, parts);
          expect(logits.shape).toEqual([rows[0] + rows[1], vocab]);
          const want = texts.flatMap((_, i) => {
            const from = begins[i] as number;
            return [...(whole[i] as Float32Array).subarray(from * vocab, (from + (rows[i] as number)) * vocab)];
          });
          expectClose(logits.floatsSync(), want, { atol: 1e-4, rtol: 0 });
          logits.dispose();
          position += size;
        }
      }
      model.dispose();
    });

    it("gives packed samples the logits and gradients of each alone", () => {
      const model = tiny(device);
      const texts = [[1, 7, 3], [9], [2, 2, 8, 5, 0]];
      const ids = tensor([texts.flat()], { dtype: "int32", device });
      const starts = tensor([0, 3, 4, 9], { dtype: "int32", device });
      const packed = tidy(() => {
        const logits = model.forward(ids, { starts });
        backward(logits.square().sum());
        return logits.floatsSync();
      });
      const gradients = () => [...model.parameters()].map((parameter) => (parameter.grad as Tensor).floatsSync());
      const fromPacked = gradients();
      for (const parameter of model.parameters()) parameter.grad = null;
      const alone = tidy(() =>
        texts.flatMap((text) => {
          const logits = model.forward(tensor([text], { dtype: "int32", device }));
          backward(logits.square().sum());
          return [...logits.floatsSync()];
        }),
      );
      expectClose(packed, alone, { atol: 1e-5, rtol: 1e-5 });
      gradients().forEach((gradient, i) => {
        expectClose(fromPacked[i] as Float32Array, gradient, { atol: 1e-4, rtol: 1e-4 });
      });
      for (const tensor of [ids, starts]) tensor.dispose();
      model.dispose();
    });

    it("shares the embedding as the head when tied", () => {
      const model = tiny(device, { tieWordEmbeddings: true });
      expect(model.lmHead).toBeNull();
      expect(model.stateDict().has("lm_head.weight")).toBe(false);
      const logits = tidy(() => noGrad(() => model.forward(tensor([[1, 2, 3]], { dtype: "int32", device }))));
      expect(logits.shape).toEqual([1, 3, 11]);
      model.dispose();
    });

    it("starts from the seed of its generator", () => {
      const weights = (seed: number) => {
        const model = tiny(device, {}, seed);
        const values = Array.from((model.stateDict().get("model.layers.0.mlp.up_proj.weight") as Tensor).floatsSync());
        model.dispose();
        return values;
      };
      expect(weights(3)).toEqual(weights(3));
      expect(weights(3)).not.toEqual(weights(4));
    });
  });

  describe("gradients", () => {
    it("agree with finite differences for one element of every parameter", () => {
      const model = tiny(device, { tieWordEmbeddings: true });
      const ids = tensor([[1, 7, 3, 3, 9]], { dtype: "int32", device });
      const targets = tensor([[7, 3, 3, 9, 0]], { dtype: "int32", device });
      const loss = () => crossEntropy(model.forward(ids), targets);
      tidy(() => backward(loss()));

      for (const [name, parameter] of model.namedParameters()) {
        const gradient = (parameter.grad as Tensor).floatsSync();
        // The element with the largest gradient: the others drown in float32 rounding.
        const at = gradient.reduce((best, g, i) => (Math.abs(g) > Math.abs(gradient[best] as number) ? i : best), 0);
        const values = parameter.floatsSync();
        const original = values[at] as number;
        const step = 5e-3;
        const lossAt = (value: number) => {
          values[at] = value;
          const dict = model.stateDict();
          const changed = tensor(values, { shape: parameter.shape, device });
          dict.set(name, changed);
          model.loadStateDict(dict);
          changed.dispose();
          return tidy(() => noGrad(loss)).itemSync();
        };
        const difference = (lossAt(original + step) - lossAt(original - step)) / (2 * step);
        lossAt(original);
        expect(Math.abs(difference - (gradient[at] as number)), name).toBeLessThan(
          2e-3 + 0.02 * Math.abs(gradient[at] as number),
        );
      }
      model.dispose();
    });
  });

  describe("memory", () => {
    it("returns to its start after training and generating", async () => {
      // What other tests forgot goes first.
      for (let i = 0; i < 3; i++) {
        globalThis.gc?.();
        await new Promise((resolve) => setImmediate(resolve));
      }
      const ids = tensor([[1, 2, 3, 4]], { dtype: "int32", device });
      const before = memory();
      const model = tiny(device);
      tidy(() => backward(crossEntropy(model.forward(ids), ids)));
      for await (const _ of model.generate([1, 2], { maxNewTokens: 4 }));
      model.dispose();
      expect(memory().tensors).toBe(before.tensors);
      expect(memory().liveBytes).toBe(before.liveBytes);
      ids.dispose();
    });
  });
});

describe("errors", () => {
  const sizes = { vocabSize: 11, hiddenSize: 16, intermediateSize: 24, numHiddenLayers: 1, numAttentionHeads: 4 };
  it.each([
    [{ ...sizes, vocabSize: 0 }, "llamaConfig: vocabSize must be a positive integer, got 0"],
    [{ ...sizes, numHiddenLayers: 2 ** 40 }, "llamaConfig: numHiddenLayers must be at most 10000, got 1099511627776"],
    [{ ...sizes, hiddenSize: 18 }, "llamaConfig: headDim must be a positive integer, got 4.5"],
    [{ ...sizes, numKeyValueHeads: 3 }, "llamaConfig: numKeyValueHeads must divide numAttentionHeads (4), got 3"],
    [{ ...sizes, headDim: 3 }, "llamaConfig: headDim must be even, got 3"],
  ])("rejects %o", (options, message) => {
    expect(() => new LlamaConfig(options)).toThrow(expect.objectContaining({ code: "ERR_BNB_OPTION", message }));
  });

  it("takes Hugging Face's defaults, and rope_theta where newer files keep it", () => {
    const { rms_norm_eps: _eps, rope_theta: _theta, rope_parameters: _rope, ...bare } = json as Record<string, unknown>;
    expect(LlamaConfig.fromJSON(bare)).toMatchObject({ rmsNormEps: 1e-6, ropeTheta: 10000 });
    expect(new LlamaConfig(sizes)).toMatchObject({ rmsNormEps: 1e-6, ropeTheta: 10000, maxPositionEmbeddings: 2048 });
    const newer = { ...bare, rope_parameters: { rope_type: "default", rope_theta: 5e5 } };
    expect(LlamaConfig.fromJSON(newer).ropeTheta).toBe(5e5);
    expect(LlamaConfig.fromJSON({ ...newer, rope_theta: 3 }).ropeTheta).toBe(5e5);
    expect(LlamaConfig.fromJSON({ ...bare, rope_theta: 1e6, rms_norm_eps: 1e-5 })).toMatchObject({
      ropeTheta: 1e6,
      rmsNormEps: 1e-5,
    });
  });

  it.each([
    [{ model_type: "gpt2" }, 'config.json: model_type must be "llama", got "gpt2"'],
    [
      { rope_parameters: { rope_type: "ntk" } },
      'config.json: rope_type must be one of default, linear, dynamic, llama3, yarn, longrope, got "ntk"',
    ],
  ])("says which part of a config.json it does not support: %o", (change, message) => {
    expect(() => LlamaConfig.fromJSON({ ...json, ...change })).toThrow(
      expect.objectContaining({ code: "ERR_BNB_UNSUPPORTED", message }),
    );
  });
});

function tiny(device: Device, options: { tieWordEmbeddings?: boolean } = {}, seed = 1): LlamaForCausalLM {
  return new LlamaForCausalLM(
    {
      vocabSize: 11,
      hiddenSize: 16,
      intermediateSize: 24,
      numHiddenLayers: 2,
      numAttentionHeads: 4,
      numKeyValueHeads: 2,
      maxPositionEmbeddings: 16,
      initializerRange: 0.3,
      ...options,
    },
    { device, generator: new Generator(seed) },
  );
}

it("without gradients holds the intermediate results of one layer at a time", () => {
  const model = new LlamaForCausalLM(
    { vocabSize: 8, hiddenSize: 32, intermediateSize: 64, numHiddenLayers: 12, numAttentionHeads: 2 },
    { device: "cpu" },
  ).eval();
  const last = model.model.layers.at(-1);
  const forward = last.forward.bind(last);
  let live = 0;
  last.forward = (...args) => {
    live = memory().liveBytes;
    return forward(...args);
  };
  const ids = tensor(new Int32Array(256), { shape: [1, 256], device: "cpu" });
  const run = (): number => {
    const before = memory().liveBytes;
    tidy(() => model.forward(ids));
    return live - before;
  };
  const states = 4 * 256 * 32; // the hidden states of all tokens
  noGrad(run); // makes the rotary tables
  expect(noGrad(run)).toBeLessThan(4 * states);
  expect(run()).toBeGreaterThan(11 * 4 * states);
  model.dispose();
});
