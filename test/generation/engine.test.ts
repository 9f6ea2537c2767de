// Many texts in one engine: each is what it is alone, whatever the others are, where their pages lie and who had to go.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import type { EngineOptions, Next, TextOptions } from "../../src/generation/index.js";
import { Engine, generate } from "../../src/generation/index.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM, LlamaForCausalLM } from "../../src/models/index.js";
import { Generator, sampleToken, slice } from "../../src/ops/index.js";
import { tensor } from "../../src/tensor/create.js";
import { toDevice } from "../../src/tensor/device.js";
import { memory, tidy } from "../../src/tensor/scope.js";
import { testDevices } from "../helpers/devices.js";
import { integers } from "../helpers/random.js";

const vocabSize = 61;
const positions = 80;

describe.each(testDevices())("on %s", (name) => {
  const device = toDevice(name);
  let model: LlamaForCausalLM;
  beforeAll(() => {
    model = new LlamaForCausalLM(
      {
        vocabSize,
        hiddenSize: 32,
        intermediateSize: 48,
        numHiddenLayers: 2,
        numAttentionHeads: 4,
        numKeyValueHeads: 2,
        maxPositionEmbeddings: positions,
        initializerRange: 0.4,
      },
      { device, generator: new Generator(5) },
    ).eval();
  });
  afterAll(() => model.dispose());

  // Wide logits: no two are so near that the rounding of another batch decides between them.
  const prompts = [3, 17, 33, 1, 40, 16].map((length, i) => [...integers(length, vocabSize, 100 + i)]);
  const new_ = 12;

  async function take(tokens: AsyncIterable<number>): Promise<number[]> {
    const made: number[] = [];
    for await (const token of tokens) made.push(token);
    return made;
  }
  const alone = (prompt: readonly number[], options: TextOptions) => take(generate(model, prompt, options));

  async function together(texts: readonly [number[], TextOptions][], options: EngineOptions): Promise<number[][]> {
    using engine = new Engine(model, options);
    const made = await Promise.all(texts.map(([prompt, text]) => take(engine.submit(prompt, text))));
    expect(engine.size).toBe(0);
    expect(engine.freePages).toBe(Math.ceil((options.kvTokens ?? positions) / 16));
    return made;
  }

  it("numbers the draws of a text by the positions of its tokens", async () => {
    for (const prompt of prompts.slice(0, 3)) {
      for (const seed of [1, 2, 3]) {
        const want = tidy(() => {
          const logits = noGrad(() => model.forward(tensor([prompt], { dtype: "int32", device })));
          const last = slice(logits, 1, prompt.length - 1).reshape([1, vocabSize]);
          return [...sampleToken(last, { temperature: 3, seed, step: prompt.length }).floatsSync()];
        });
        expect(await alone(prompt, { doSample: true, temperature: 3, topK: 0, seed, maxNewTokens: 1 })).toEqual(want);
      }
    }
  });

  const ways: [string, EngineOptions][] = [
    ["with room for all", { kvTokens: 1000 }],
    ["as graphs", { kvTokens: 1000, graph: true }],
    ["two at a time", { kvTokens: 1000, maxSequences: 2 }],
    ["without sharing", { kvTokens: 1000, sharePrefixes: false }],
    ["where some must go", { kvTokens: 144 }],
    ["where some must go, as graphs", { kvTokens: 112, graph: true, maxSequences: 3 }],
  ];
  // On the emulated GPU each token takes its time.
  const texts = device.type === "cpu" ? prompts : prompts.slice(0, 3);
  const maxNewTokens = device.type === "cpu" ? new_ : 5;

  describe("texts of any lengths", () => {
    it.each(ways)("are what each is alone: %s", async (_, options) => {
      const list = texts.map((prompt) => [prompt, { maxNewTokens }] as [number[], TextOptions]);
      const expected = await Promise.all(list.map(([prompt, text]) => alone(prompt, text)));
      expect(await together(list, options)).toEqual(expected);
    });

    it("draw, each in its own way, what they draw alone", async () => {
      const each: TextOptions[] = [
        { doSample: true, temperature: 1, seed: 1 },
        { doSample: true, temperature: 0.7, topK: 9, seed: 2 ** 33 + 1, noRepeatNgramSize: 2, logitBias: { 3: 2 } },
        { doSample: true, temperature: 1.3, topP: 0.8, seed: 2, repetitionPenalty: 1.4 },
        { doSample: true, temperature: 2, minP: 0.05, seed: 3 },
        { frequencyPenalty: 0.5, presencePenalty: 0.3 },
        { doSample: true, temperature: 1, typicalP: 0.8, seed: 4 },
      ];
      const list = texts.map((prompt, i) => [prompt, { maxNewTokens, ...each[i] }] as [number[], TextOptions]);
      const expected = await Promise.all(list.map(([prompt, text]) => alone(prompt, text)));
      for (const graph of [false, true]) expect(await together(list, { kvTokens: 600, graph })).toEqual(expected);
    });

    it("may come and go at any time", async () => {
      using engine = new Engine(model, { kvTokens: 400 });
      const expected = await Promise.all(texts.map((prompt) => alone(prompt, { maxNewTokens })));
      const made = await Promise.all(
        texts.map(async (prompt, i) => {
          await new Promise((resolve) => setTimeout(resolve, 3 * i));
          const tokens: number[] = [];
          for await (const token of engine.submit(prompt, { maxNewTokens })) {
            tokens.push(token);
            if (i === 1 && tokens.length === 3) break;
          }
          return tokens;
        }),
      );
      expected[1] = expected[1]?.slice(0, 3) as number[];
      expect(made).toEqual(expected);
      expect(engine.size).toBe(0);
      expect(engine.freePages).toBe(25);
    });
  });

  describe("texts that begin alike", () => {
    it("compute their prompt once: n samples of one prompt", async () => {
      const prompt = [...integers(37, vocabSize, 7)];
      const list = [1, 2, 3, 4].map(
        (seed) => [prompt, { doSample: true, temperature: 1.2, seed, maxNewTokens }] as [number[], TextOptions],
      );
      const expected = await Promise.all(list.map(([, text]) => alone(prompt, text)));
      expect(new Set(expected.map(String)).size).toBe(4);
      // Two pages shared, and for each the page or two that are its own.
      expect(await together(list, { kvTokens: 16 * (2 + 4 * 2) })).toEqual(expected);
    });

    it("find what another left behind", async () => {
      using engine = new Engine(model, { kvTokens: 160 });
      const prompt = [...integers(50, vocabSize, 8)];
      const steps: number[] = [];
      const { step } = model;
      model.step = function (plan, kv) {
        steps.push(plan.ids.size);
        return step.call(this, plan, kv);
      };
      try {
        const first = await take(engine.submit(prompt, { maxNewTokens: 1 }));
        const second = await take(engine.submit([...prompt, ...first, 9], { maxNewTokens: 1 }));
        expect(steps).toEqual([50, 4]);
        expect(second).toEqual(await alone([...prompt, ...first, 9], { maxNewTokens: 1 }));
      } finally {
        Reflect.deleteProperty(model, "step");
      }
    });
  });

  describe("branches", () => {
    const logprobs = { logprobs: true, best: 3 };

    it("fork, go different ways, and take tokens back", async () => {
      using engine = new Engine(model, { kvTokens: 200 });
      using trunk = engine.open(prompts[1] as number[], { telling: logprobs });
      const [next] = (await trunk.next()) as [Next];
      using other = trunk.fork();
      trunk.push(next.bestIds[0] as number);
      other.push(next.bestIds[1] as number);
      const [[a], [b]] = (await Promise.all([trunk.next(), other.next()])) as [[Next], [Next]];
      using fresh = engine.open([...(prompts[1] as number[]), next.bestIds[1] as number], {
        telling: logprobs,
        salt: "x",
      });
      const [c] = (await fresh.next()) as [Next];
      expect([...b.bestIds]).toEqual([...c.bestIds]);
      expect([...a.bestIds]).not.toEqual([...b.bestIds]);
      other.truncate(prompts[1]?.length as number);
      const [again] = (await other.next()) as [Next];
      expect([...again.bestIds]).toEqual([...next.bestIds]);
    });

    it("answer for several tokens at once what they answer one by one", async () => {
      using engine = new Engine(model, { kvTokens: 200 });
      const text = prompts[2] as number[];
      using whole = engine.open(text, { telling: logprobs });
      const all = await whole.next(4);
      for (let i = 0; i < 4; i++) {
        using part = engine.open(text.slice(0, text.length - 3 + i), { telling: logprobs, salt: String(i) });
        const [one] = (await part.next()) as [Next];
        expect([...(all[i] as Next).bestIds]).toEqual([...one.bestIds]);
        expect((all[i] as Next).logprob).toBeCloseTo(one.logprob, 4);
      }
    });

    it("refuse what cannot be", async () => {
      using engine = new Engine(model, { kvTokens: 32 });
      expect(() => engine.open([])).toThrow("generate: the prompt must have between 1 and 32 tokens, got 0");
      expect(() => engine.open(new Array<number>(33).fill(1))).toThrow(
        "generate: the prompt must have between 1 and 32 tokens, got 33",
      );
      const branch = engine.open([1, 2], { maxLength: 3 });
      expect(() => branch.push(1, 2)).toThrow("push: at most 3 tokens have room, got 2 and 2 more");
      const waiting = branch.next();
      await expect(branch.next()).rejects.toThrow("next: its last answer must have come before the next");
      await waiting;
      using penal = engine.open([1], { repetitionPenalty: 2 });
      expect(() => penal.fork()).toThrow(expect.objectContaining({ code: "ERR_BNB_UNSUPPORTED" }));
      branch.dispose();
      await expect(branch.next()).rejects.toThrow(expect.objectContaining({ code: "ERR_BNB_DISPOSED" }));
    });
  });

  describe("pages of other dtypes", () => {
    it.each(["float16", "bfloat16", "int8"] as const)(
      "%s: the logits of float32, but for its rounding",
      async (kvDtype) => {
        const telling = { logprobs: true, best: 20 };
        const logprobsOf = async (options: EngineOptions) => {
          using engine = new Engine(model, { kvTokens: 64, ...options });
          using branch = engine.open(prompts[2] as number[], { telling });
          const [next] = (await branch.next()) as [Next];
          return new Map(Array.from(next.bestIds, (id, i) => [id, next.bestLogprobs[i] as number]));
        };
        const exact = await logprobsOf({});
        const rounded = await logprobsOf({ kvDtype });
        const common = [...exact].filter(([id]) => rounded.has(id));
        expect(common.length).toBeGreaterThan(15);
        const worst = Math.max(...common.map(([id, x]) => Math.abs(x - (rounded.get(id) as number))));
        expect(worst).toBeLessThan(kvDtype === "float16" ? 0.01 : 0.15);
        expect(worst).toBeGreaterThan(0);
      },
    );
  });

  describe("a deterministic engine", () => {
    it("gives the same numbers to the bit, whoever else is there and whoever had to go", async () => {
      const telling = { logprobs: true, best: 4 };
      const options = { deterministic: true, maxLength: 64 };
      const run = async (engine: Engine, prompt: readonly number[]) => {
        using branch = engine.open(prompt, { telling, temperature: 1, seed: 9 });
        const bits: number[][] = [];
        for (let i = 0; i < maxNewTokens; i++) {
          const [next] = (await branch.next()) as [Next];
          bits.push([next.id, next.logprob, ...next.bestIds, ...next.bestLogprobs]);
          branch.push(next.id);
        }
        return bits;
      };
      const expected: number[][][] = [];
      for (const prompt of texts) {
        using engine = new Engine(model, { ...options, kvTokens: 512 });
        expected.push(await run(engine, prompt));
      }
      for (const kvTokens of [512, 96]) {
        using engine = new Engine(model, { ...options, kvTokens });
        const made = await Promise.all(texts.map((prompt) => run(engine, prompt)));
        expect(made).toEqual(expected);
        // Once more: now prefixes are found.
        expect(await run(engine, texts[2] as number[])).toEqual(expected[2]);
      }
    });

    it("answers for one token at a time", async () => {
      using engine = new Engine(model, { deterministic: true });
      using branch = engine.open([1, 2, 3]);
      await expect(branch.next(2)).rejects.toThrow(
        expect.objectContaining({
          code: "ERR_BNB_UNSUPPORTED",
          message: "next: a deterministic engine answers for one token at a time, got 2",
        }),
      );
      const options = { maxNewTokens: 6, promptLookup: true };
      expect(await take(engine.submit([1, 2, 1, 2, 1], options))).toEqual(await alone([1, 2, 1, 2, 1], options));
    });
  });

  describe("guesses from the text", () => {
    it.each([{}, { doSample: true, temperature: 0.8, seed: 5 }])("give the same text: %o", async (draw) => {
      const loop = [5, 6, 7, 8, 9];
      const prompt = [...loop, ...loop, ...loop, 5];
      const options = { ...draw, maxNewTokens: device.type === "cpu" ? 60 : 8 };
      const expected = await alone(prompt, options);
      expect(await alone(prompt, { ...options, promptLookup: true })).toEqual(expected);
      expect(await together([[prompt, { ...options, promptLookup: true }]], {})).toEqual([expected]);
    });
  });

  describe("ends", () => {
    it("leave no memory behind, whoever disposes first", async () => {
      await alone([1], { maxNewTokens: 2 });
      const before = memory();
      const engine = new Engine(model, { kvTokens: 320, graph: true });
      const running = engine.submit([1, 2, 3], { maxNewTokens: 20, repetitionPenalty: 1.5 });
      for (let i = 0; i < 4; i++) await running.next();
      const other = engine.open([4, 5]);
      const pending = other.next();
      engine.dispose();
      await expect(pending).rejects.toThrow(expect.objectContaining({ code: "ERR_BNB_DISPOSED" }));
      await expect(running.next()).rejects.toThrow(expect.objectContaining({ code: "ERR_BNB_DISPOSED" }));
      await expect(engine.submit([1]).next()).rejects.toThrow("generate: the engine was disposed");
      expect(memory().tensors).toBe(before.tensors);
      expect(memory().liveBytes).toBe(before.liveBytes);
    });

    it("come at once to a text that is aborted while others have their turn", async () => {
      using engine = new Engine(model, { kvTokens: 320, maxSequences: 1 });
      const first = take(engine.submit(prompts[0] as number[], { maxNewTokens }));
      const control = new AbortController();
      const second = engine.submit(prompts[1] as number[], { signal: control.signal }).next();
      while (engine.size < 2) await new Promise((resolve) => setImmediate(resolve));
      control.abort("changed my mind");
      await expect(second).rejects.toThrow(
        expect.objectContaining({ code: "ERR_BNB_ABORTED", cause: "changed my mind" }),
      );
      expect(engine.size).toBe(1);
      expect(await first).toHaveLength(maxNewTokens);
    });

    it("come before the next step to a text that is aborted, amid its prompt, too", async () => {
      using engine = new Engine(model, { kvTokens: 320, stepTokens: 64 });
      const { step } = model;
      const sizes: number[] = [];
      const control = new AbortController();
      const prompt = [...integers(70, vocabSize, 77)];
      // It comes while the other has its second step, however fast steps are.
      const second = new Promise<number[]>((resolve, reject) => {
        model.step = function (plan, kv) {
          sizes.push(plan.ids.size);
          if (sizes.length === 2)
            take(engine.submit(prompt, { maxNewTokens: 4, signal: control.signal })).then(resolve, reject);
          // While the first 64 tokens of its prompt are computed.
          if (plan.ids.size > 1) control.abort();
          return step.call(this, plan, kv);
        };
      });
      try {
        const first = take(engine.submit([1], { maxNewTokens: 12, eosTokenId: [] }));
        await expect(second).rejects.toThrow(expect.objectContaining({ code: "ERR_BNB_ABORTED" }));
        expect(engine.size).toBe(1);
        expect(await first).toHaveLength(12);
        // The rest of the prompt was in none.
        expect(sizes.filter((size) => size > 1)).toHaveLength(1);
        expect(engine.freePages).toBe(20);
      } finally {
        Reflect.deleteProperty(model, "step");
      }
    });

    it("a failure is that of the texts in the step; the engine goes on", async () => {
      using engine = new Engine(model, { kvTokens: 320 });
      const { step } = model;
      const expected = await alone(prompts[0] as number[], { maxNewTokens: 4 });
      const failing = take(engine.submit(prompts[0] as number[], { maxNewTokens: 4 }));
      model.step = () => {
        throw new Error("no luck");
      };
      await expect(failing).rejects.toThrow("no luck");
      model.step = step;
      Reflect.deleteProperty(model, "step");
      expect(engine.size).toBe(0);
      expect(await take(engine.submit(prompts[0] as number[], { maxNewTokens: 4 }))).toEqual(expected);
    });
  });
});

describe("a model whose positions turn otherwise in long texts", () => {
  const [half, vocab, original] = [8, 96, 32];
  const prompts = [0, 1, 2].map((k) => [...integers(20 + k, vocab, 300 + k)]);
  const shared = {
    ...{ vocab_size: vocab, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2 },
    ...{ num_key_value_heads: 2, rms_norm_eps: 1e-5, initializer_range: 0.3, dtype: "float32", pad_token_id: null },
  };
  const configs = {
    longrope: {
      ...{ ...shared, model_type: "phi3", sliding_window: null },
      ...{ max_position_embeddings: 128, original_max_position_embeddings: original },
      rope_scaling: {
        type: "longrope",
        short_factor: Array(half).fill(1),
        long_factor: Array.from({ length: half }, (_, i) => 1 + 2 * i),
      },
    },
    dynamic: {
      ...{ ...shared, model_type: "llama", max_position_embeddings: original },
      rope_scaling: { rope_type: "dynamic", factor: 8 },
    },
  };
  const kinds = ["longrope", "dynamic"] as const;
  let models: Record<keyof typeof configs, CausalLM>;
  beforeAll(() => {
    const make = (kind: keyof typeof configs): CausalLM =>
      AutoModelForCausalLM.fromConfig(configs[kind], { generator: new Generator(3), device: "cpu" });
    models = { longrope: make("longrope"), dynamic: make("dynamic") };
  });
  afterAll(() => {
    for (const kind of kinds) models[kind].dispose();
  });

  const options: TextOptions = { maxNewTokens: 40, eosTokenId: null };
  const roomy = { kvTokens: 1024, maxLength: 128 };
  async function run(engine: Engine, prompt: readonly number[], more: TextOptions = {}): Promise<number[]> {
    const made: number[] = [];
    for await (const id of engine.submit(prompt, { ...options, ...more })) made.push(id);
    return made;
  }

  it.each(kinds)("goes on in a fork as in the text itself: %s", async (kind) => {
    using engine = new Engine(models[kind], roomy);
    const want = await run(engine, prompts[0]!);
    for (const before of [5, 11, 12, 13, 20]) {
      using branch = engine.open(prompts[0]!);
      for (let i = 0; i < before; i++) branch.push((await branch.next())[0]!.id);
      using other = branch.fork();
      for (const one of [branch, other])
        for (let i = before; i < 30; i++) {
          const id = (await one.next())[0]!.id;
          expect(id).toBe(want[i]);
          one.push(id);
        }
    }
  });

  it.each(kinds.flatMap((kind) => [false, true].map((deterministic) => [kind, deterministic] as const)))(
    "gives the same where others take its pages: %s, deterministic: %s",
    async (kind, deterministic) => {
      using one = new Engine(models[kind], { ...roomy, deterministic });
      const want = await Promise.all(prompts.map((prompt) => run(one, prompt)));
      using tight = new Engine(models[kind], { deterministic, kvTokens: 112, maxLength: 112 });
      expect(await Promise.all(prompts.map((prompt) => run(tight, prompt)))).toEqual(want);
      expect([one.stats.preemptions, tight.stats.preemptions > 0]).toEqual([0, true]);
    },
  );

  it.each(kinds)("guesses no tokens beyond which they turn otherwise: %s", async (kind) => {
    using engine = new Engine(models[kind], roomy);
    for (const period of [1, 2, 3]) {
      const prompt = Array.from({ length: 24 }, (_, i) => 5 + (i % period));
      const more = { logitBias: { 5: 2, 6: 2, 7: 2 } };
      expect(await run(engine, prompt, { ...more, promptLookup: true })).toEqual(await run(engine, prompt, more));
    }
  });
});

it("a text that cannot begin takes no row of the counts of penalties", async () => {
  const config = { vocabSize, hiddenSize: 16, intermediateSize: 16, numHiddenLayers: 1, numAttentionHeads: 2 };
  const model = new LlamaForCausalLM({ ...config, maxPositionEmbeddings: 32 }, { device: "cpu" });
  using engine = new Engine(model, { kvTokens: 32 });
  engine.open([1], { repetitionPenalty: 2 }).dispose();
  const before = memory().liveBytes;
  for (let i = 0; i < 4; i++) {
    expect(() => engine.open([1], { repetitionPenalty: 2, adapter: "a" })).toThrow("must have been given adapters");
  }
  engine.open([1], { repetitionPenalty: 2 }).dispose();
  expect(memory().liveBytes).toBe(before);
  model.dispose();
});
