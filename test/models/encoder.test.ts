// Encoders and classifiers against transformers: packed texts give what padded rows with masks give there.
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import type { Encoder, Tensor } from "../../src/index.js";
import {
  AutoModel,
  AutoModelForSequenceClassification,
  BitsAndBytesConfig,
  hub,
  memory,
  savePretrained,
  tensor,
  tidy,
} from "../../src/index.js";
import { pool } from "../../src/models/pooling.js";
import { writeBertTokenizer } from "../helpers/bert-tokenizer.js";
import { expectClose } from "../helpers/expect-close.js";
import { fixturePath, readSafetensors, toNumbers } from "../helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-encoders-"));
afterAll(() => rmSync(root, { recursive: true }));

/** A fixture's rows without their padding. */
function rowsOf(name: string) {
  const expected = readSafetensors(`families/${name}/expected.safetensors`);
  const table = (key: string): number[][] => {
    const found = expected.get(key)!;
    const [rows, length] = found.shape as [number, number];
    const flat = [...toNumbers(found)];
    return Array.from({ length: rows }, (_, i) => flat.slice(i * length, (i + 1) * length));
  };
  const lengths = table("attention_mask").map((row) => row.reduce((sum, bit) => sum + bit, 0));
  const cut = (key: string): number[][] => table(key).map((row, i) => row.slice(0, lengths[i]));
  return {
    expected,
    lengths,
    ids: cut("input_ids"),
    types: expected.has("token_type_ids") ? cut("token_type_ids") : null,
  };
}

const bounds = (lengths: readonly number[]): number[] => {
  let end = 0;
  return [0, ...lengths.map((length) => (end += length))];
};

const row = (values: readonly number[][]): Tensor =>
  tensor(Int32Array.from(values.flat()), { shape: [1, values.flat().length] });

function hiddenStates(model: Encoder, texts: number[][], types: number[][] | null): Float32Array {
  return tidy(() => {
    const starts = tensor(Int32Array.from(bounds(texts.map((text) => text.length))));
    const typed = types && { tokenTypeIds: row(types) };
    return noGrad(() => model.forward(row(texts), { starts, ...typed })).floatsSync();
  });
}

/** The folder of a fixture, and one whose config is as checkpoints on the hub have it. */
function folders(name: string): [title: string, folder: string][] {
  const folder = fixturePath(`families/${name}/fp32`);
  const older = join(root, `${name}-older`);
  cpSync(folder, older, { recursive: true });
  cpSync(fixturePath(`families/${name}/config_transformers4.json`), join(older, "config.json"));
  return [
    ["as transformers 5 describes it", folder],
    ["as checkpoints on the hub do", older],
  ];
}

describe.each(["bert", "xlm-roberta", "distilbert", "nomic-bert"])("%s", (name) => {
  const { expected, lengths, ids, types } = rowsOf(name);
  const withTypes = ["bert", "nomic-bert"].includes(name) ? types : null;
  const want = expected.get("last_hidden_state")!;
  const width = want.shape[2]!;
  const states = (key = "last_hidden_state"): number[] => {
    const flat = toNumbers(expected.get(key)!);
    return lengths.flatMap((length, i) => [...flat.slice(i * 23 * width, (i * 23 + length) * width)]);
  };

  it.each(folders(name))("%s, has the hidden states of transformers", async (_, folder) => {
    const before = memory().tensors;
    const model = await AutoModel.fromPretrained(folder);
    expectClose(hiddenStates(model, ids, withTypes), states(), { atol: 1e-5, rtol: 1e-4 });
    if (expected.has("last_hidden_state_without_token_types")) {
      const without = states("last_hidden_state_without_token_types");
      expectClose(hiddenStates(model, ids, null), without, { atol: 1e-5, rtol: 1e-4 });
    }
    model.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("a row alone, not packed", async () => {
    const model = await AutoModel.fromPretrained(fixturePath(`families/${name}/fp32`));
    const options = withTypes ? { tokenTypeIds: row([withTypes[1]!]) } : {};
    const got = noGrad(() => model.forward(row([ids[1]!]), options)).floatsSync();
    expectClose(got, toNumbers(want).slice(23 * width, 46 * width), { atol: 1e-5, rtol: 1e-4 });
    model.dispose();
  });
});

describe("rows that are padded", () => {
  it.each(["bert", "xlm-roberta", "distilbert"])("of %s, on either side, are computed as if alone", async (name) => {
    const { expected, lengths, ids } = rowsOf(name);
    const key = name === "bert" ? "last_hidden_state_without_token_types" : "last_hidden_state";
    const want = toNumbers(expected.get(key)!);
    const width = expected.get(key)!.shape[2]!;
    const model = await AutoModel.fromPretrained(fixturePath(`families/${name}/fp32`));
    for (const isLeft of [false, true]) {
      const before = lengths.map((length) => (isLeft ? 23 - length : 0));
      const rows = new Int32Array(3 * 23).fill(3);
      const mask = new Int32Array(3 * 23);
      for (const [i, text] of ids.entries()) {
        rows.set(text, 23 * i + before[i]!);
        mask.fill(1, 23 * i + before[i]!, 23 * i + before[i]! + text.length);
      }
      const of = (values: Int32Array) => tensor(values, { shape: [3, 23] });
      const got = tidy(() => noGrad(() => model.forward(of(rows), { attentionMask: of(mask) })).floatsSync());
      for (const [i, length] of lengths.entries()) {
        const from = (23 * i + before[i]!) * width;
        const right = want.slice(23 * i * width, (23 * i + length) * width);
        expectClose(got.slice(from, from + length * width), right, { atol: 1e-5, rtol: 1e-4 });
      }
    }
    model.dispose();
  });

  it("have a mask of their shape, and no starts", async () => {
    const model = await AutoModel.fromPretrained(fixturePath("families/bert/fp32"));
    const ids = row([[5, 6, 7]]);
    const starts = tensor(Int32Array.of(0, 3));
    const shape = "BertModel: attentionMask must have the shape of ids, got [1, 3] and [1, 2]";
    expect(() => model.forward(ids, { attentionMask: row([[1, 1]]) })).toThrow(shape);
    const both = "BertModel: attentionMask must come without starts, got both";
    expect(() => model.forward(ids, { attentionMask: row([[1, 1, 1]]), starts })).toThrow(both);
    const floats = tensor([1, 1, 1], { shape: [1, 3] });
    const dtype = "BertModel: attentionMask must be int32, got float32";
    expect(() => model.forward(ids, { attentionMask: floats })).toThrow(dtype);
    model.dispose();
  });
});

it("reads checkpoints of a model with a head, and with the names of older versions", async () => {
  const { ids } = rowsOf("bert");
  const model = await AutoModel.fromPretrained(fixturePath("families/bert/fp32"));
  const folder = join(root, "masked-lm");
  cpSync(fixturePath("families/bert/fp32"), folder, { recursive: true });
  const older = (name: string): string =>
    `bert.${name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")}`;
  const body = [...model.stateDict()].filter(([name]) => !name.startsWith("pooler."));
  const tensors = new Map([
    ...body.map(([name, value]) => [older(name), value] as const),
    ["cls.predictions.bias", tensor([1, 2])] as const,
  ]);
  await hub.saveSafetensors(join(folder, "model.safetensors"), tensors);
  const again = await AutoModel.fromPretrained(folder);
  expect(hiddenStates(again, ids, null)).toEqual(hiddenStates(model, ids, null));
  expect([...again.stateDict().keys()]).toEqual(body.map(([name]) => name));
  model.dispose();
  again.dispose();
});

describe("pool", () => {
  const { expected, lengths, ids, types } = rowsOf("bert");
  it.each([
    ["mean", false, "mean_pooled"],
    ["mean", true, "mean_pooled_normalized"],
    ["first", true, "cls_normalized"],
  ] as const)("%s, normalized %s", async (pooling, normalize, key) => {
    const model = await AutoModel.fromPretrained(fixturePath("families/bert/fp32"));
    const starts = tensor(Int32Array.from(bounds(lengths)));
    const vectors = noGrad(() =>
      tidy(() =>
        pool(
          model.forward(row(ids), { starts, tokenTypeIds: row(types!) }),
          Int32Array.from(bounds(lengths)),
          pooling,
          normalize,
        ),
      ),
    );
    expect(vectors.shape).toEqual([3, 32]);
    expectClose(vectors.floatsSync(), toNumbers(expected.get(key)!), { atol: 1e-5, rtol: 1e-4 });
    model.dispose();
  });

  it("takes the last token of each text", () => {
    const hidden = tensor([1, 2, 3, 4, 5, 6], { shape: [1, 3, 2] });
    expect([...pool(hidden, Int32Array.of(0, 2, 3), "last", false).floatsSync()]).toEqual([3, 4, 5, 6]);
  });
});

describe("classifiers", () => {
  const logitsOf = async (name: string, folder: string, options: { starts: boolean }) => {
    const { expected, lengths, ids, types } = rowsOf(name);
    const model = await AutoModelForSequenceClassification.fromPretrained(folder);
    const more = name.startsWith("bert") ? { tokenTypeIds: row(types!) } : {};
    const starts = options.starts ? { starts: tensor(Int32Array.from(bounds(lengths))) } : {};
    const logits = noGrad(() => model.forward(row(ids), { ...starts, ...more })).floatsSync();
    return { model, logits, want: toNumbers(expected.get("logits")!) };
  };

  it.each(
    ["bert-sequence-classification", "roberta-sequence-classification", "distilbert-sequence-classification"].flatMap(
      (name) => folders(name).map(([title, folder]) => [name, title, folder] as const),
    ),
  )("%s, %s, have the logits of transformers", async (name, _, folder) => {
    const { model, logits, want } = await logitsOf(name, folder, { starts: true });
    expectClose(logits, want, { atol: 1e-5, rtol: 1e-4 });
    const labels = name.startsWith("bert")
      ? ["no", "yes", "maybe"]
      : name.startsWith("dis")
        ? ["NEGATIVE", "POSITIVE"]
        : ["LABEL_0"];
    expect(model.config.labels).toEqual(labels);
    expect(model.config.problem).toBe(name.startsWith("bert") ? "multiple" : "single");
    model.dispose();
  });

  const llama = "llama-sequence-classification";
  it.each(folders(llama))("of a causal model, %s: rows padded on the right, and packed", async (_, folder) => {
    const expected = readSafetensors(`families/${llama}/expected.safetensors`);
    const before = memory().tensors;
    const model = await AutoModelForSequenceClassification.fromPretrained(folder);
    const idsOf = (key: string): Tensor => {
      const { shape } = expected.get(key)!;
      return tensor(Int32Array.from(toNumbers(expected.get(key)!)), { shape });
    };
    const padded = (key: string): Float32Array =>
      tidy(() => noGrad(() => model.forward(idsOf(`${key}.input_ids`))).floatsSync());
    const want = toNumbers(expected.get("right.logits")!);
    expectClose(padded("right"), want, { atol: 1e-5, rtol: 1e-4 });
    expectClose(padded("ends_in_pad"), toNumbers(expected.get("ends_in_pad.logits")!), { atol: 1e-5, rtol: 1e-4 });

    const mask = [...toNumbers(expected.get("right.attention_mask")!)];
    const all = [...toNumbers(expected.get("right.input_ids")!)];
    const texts = [0, 1, 2].map((i) => all.slice(i * 17, (i + 1) * 17).filter((_, at) => mask[i * 17 + at] === 1));
    const packed = tidy(() => {
      const starts = tensor(Int32Array.from(bounds(texts.map((text) => text.length))));
      return noGrad(() => model.forward(row(texts), { starts })).floatsSync();
    });
    expectClose(packed, want, { atol: 1e-5, rtol: 1e-4 });

    for (const side of ["left", "right"]) {
      const masked = tidy(() =>
        noGrad(() => {
          const options = { attentionMask: idsOf(`${side}.attention_mask`) };
          return model.forward(idsOf(`${side}.input_ids`), options);
        }).floatsSync(),
      );
      expectClose(masked, toNumbers(expected.get(`${side}.logits`)!), { atol: 1e-5, rtol: 1e-4 });
    }
    expect([...model.stateDict().keys()].filter((name) => !name.startsWith("model."))).toEqual(["score.weight"]);
    model.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("quantizes all but the head", async () => {
    const quantizationConfig = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" });
    const model = await AutoModelForSequenceClassification.fromPretrained(fixturePath(`families/${llama}/fp32`), {
      quantizationConfig,
    });
    const kinds = new Map(model.namedModules().map(([path, module]) => [path, module.constructor.name]));
    expect([kinds.get("score"), kinds.get("model.layers.0.mlp.up_proj")]).toEqual(["Linear", "Linear4bit"]);
    model.dispose();
  });
});

describe("texts", () => {
  const folder = (name: string, as: string): string => {
    const path = join(root, as);
    cpSync(fixturePath(`families/${name}/fp32`), path, { recursive: true });
    writeBertTokenizer(path);
    return path;
  };
  const cat = [1, 4, 5, 7, 2];
  const dog = [1, 10, 6, 9, 10, 6, 8, 2];

  it("become vectors as the checkpoint's pooling config says, one or many", async () => {
    const path = folder("bert", "sentence");
    mkdirSync(join(path, "1_Pooling"));
    const type = (kind: string) => `sentence_transformers.models.${kind}`;
    const modules = ["Transformer", "Pooling", "Normalize"].map((kind, idx) => ({
      idx,
      path: idx === 0 ? "" : `${idx}_${kind}`,
      type: type(kind),
    }));
    writeFileSync(join(path, "modules.json"), JSON.stringify(modules));
    const pooling = { word_embedding_dimension: 32, pooling_mode_cls_token: true, pooling_mode_mean_tokens: false };
    writeFileSync(join(path, "1_Pooling", "config.json"), JSON.stringify(pooling));
    writeFileSync(join(path, "sentence_bert_config.json"), JSON.stringify({ max_seq_length: 6 }));
    const model = await AutoModel.fromPretrained(path);
    expect(model.embedDefaults).toEqual({ pooling: "first", normalize: true, maxLength: 6 });

    const alone = (ids: number[], how: "first" | "mean", normalize: boolean): Float32Array =>
      tidy(() =>
        pool(
          noGrad(() => model.forward(row([ids]))),
          Int32Array.of(0, ids.length),
          how,
          normalize,
        ).floatsSync(),
      );
    const both = await model.embed(["the cat sits", "a dog is a dog runs"]);
    expect([both.shape, both.dtype]).toEqual([[2, 32], "float32"]);
    // Six tokens: the first five and the end.
    const want = [...alone(cat, "first", true), ...alone([...dog.slice(0, 5), 2], "first", true)];
    expectClose(both.floatsSync(), want, { atol: 1e-6, rtol: 1e-5 });
    const mean = await model.embed("the cat sits", { pooling: "mean", normalize: false });
    expectClose(mean.floatsSync(), alone(cat, "mean", false), { atol: 1e-6, rtol: 1e-5 });
    expect(mean.shape).toEqual([1, 32]);
    await expect(model.embed([5] as never)).rejects.toThrow(
      "embed: texts must be a string or an array of texts, each a string, got [5]",
    );
    await expect(model.embed("x", { pooling: "max" as never })).rejects.toThrow("embed: pooling must be one of");
    model.dispose();
  });

  it("become the same vectors once the model was saved", async () => {
    const model = await AutoModel.fromPretrained(folder("bert", "to-be-saved"));
    const texts = ["the cat sits", "a dog is a dog runs"];
    for (const [i, own] of [
      { pooling: "first", normalize: true, maxLength: 6 } as const,
      { pooling: "last", normalize: false } as const,
      { pooling: "mean", normalize: true } as const,
    ].entries()) {
      model.embedDefaults = own;
      const path = join(root, `saved-${i}`);
      await savePretrained(model, path);
      const again = await AutoModel.fromPretrained(path);
      expect(again.embedDefaults).toEqual(own);
      using vectors = await model.embed(texts);
      using others = await again.embed(texts);
      expect(others.floatsSync()).toEqual(vectors.floatsSync());
      const json = (name: string) => JSON.parse(readFileSync(join(path, name), "utf8")) as unknown;
      // The kind of a module, and where its files are, as sentence-transformers loads it.
      const modules = json("modules.json") as { idx: number; name: string; path: string; type: string }[];
      expect(modules.map(({ type }) => type)).toEqual(
        ["Transformer", "Pooling", "Normalize"]
          .slice(0, own.normalize ? 3 : 2)
          .map((kind) => `sentence_transformers.models.${kind}`),
      );
      expect(modules.map(({ idx, name }) => [idx, name])).toEqual(modules.map((_, k) => [k, String(k)]));
      expect(json(`${modules[1]!.path}/config.json`)).toEqual({
        word_embedding_dimension: 32,
        pooling_mode_cls_token: own.pooling === "first",
        pooling_mode_mean_tokens: own.pooling === "mean",
        pooling_mode_lasttoken: own.pooling === "last",
      });
      again.dispose();
    }
    model.dispose();
  });

  it.each([
    [
      [{ path: "2_Dense", type: "sentence_transformers.models.Dense" }],
      "ERR_BNB_UNSUPPORTED",
      'modules must be of Transformer, Pooling, Normalize, Dropout, got "sentence_transformers.models.Dense"',
    ],
    [[{ path: "1_Pooling" }], "ERR_BNB_FORMAT", "modules.json: a module must have type and path, got"],
    [
      [{ path: "../x", type: "sentence_transformers.models.Pooling" }],
      "ERR_BNB_FORMAT",
      'modules.json: the path of Pooling must be a name of letters and digits, got "../x"',
    ],
  ])("have no vector where modules are not known: %j", async (modules, code, message) => {
    const path = folder("bert", `modules-${code}-${modules[0]!.path.replaceAll(/\W/g, "")}`);
    writeFileSync(join(path, "modules.json"), JSON.stringify(modules));
    const loading = AutoModel.fromPretrained(path);
    await expect(loading).rejects.toThrow(message);
    await expect(loading).rejects.toMatchObject({ code });
  });

  it("many of them go in several batches", async () => {
    const model = await AutoModel.fromPretrained(folder("bert", "batches"));
    const text = Array.from({ length: 60 }, (_, i) => ["the", "cat", "dog", "runs"][i % 4]).join(" ");
    const many = await model.embed(new Array<string>(140).fill(text)); // 62 tokens each: 8192 do not hold them
    const one = await model.embed(text);
    const values = many.floatsSync();
    for (const i of [0, 131, 132, 139]) {
      expectClose(values.slice(i * 32, (i + 1) * 32), one.floatsSync(), { atol: 1e-6, rtol: 1e-5 });
    }
    model.dispose();
  });

  it("and pairs of them get labels and scores", async () => {
    const path = folder("bert-sequence-classification", "classifier");
    const model = await AutoModelForSequenceClassification.fromPretrained(path);
    const pair = { text: "the cat sits", textPair: "a dog is a dog runs" };
    const [single, double] = await model.classify(["the cat sits", pair]);
    const logits = (ids: number[], types: number[]): number[] => [
      ...tidy(() => noGrad(() => model.forward(row([ids]), { tokenTypeIds: row([types]) })).floatsSync()),
    ];
    const sigmoids = (values: number[]): number[] => values.map((x) => 1 / (1 + Math.exp(-x)));
    const zeros = (n: number): number[] => new Array<number>(n).fill(0);
    expectClose(single!.scores, sigmoids(logits(cat, zeros(5))), { atol: 1e-6, rtol: 1e-5 });
    const joined = [...cat, ...dog.slice(1)];
    const types = [...zeros(5), ...new Array<number>(7).fill(1)];
    expectClose(double!.scores, sigmoids(logits(joined, types)), { atol: 1e-6, rtol: 1e-5 });
    const best = double!.scores.indexOf(Math.max(...double!.scores));
    expect([double!.label, double!.score]).toEqual([["no", "yes", "maybe"][best], double!.scores[best]]);
    expect(await model.classify(pair)).toEqual(double);
    await expect(model.classify([pair, 5] as never)).rejects.toThrow(
      "classify: texts must be a text, a pair { text, textPair }, or an array of them, got 5 at 1",
    );
    model.dispose();
  });

  it("RoBERTa has no types for the texts of a pair", async () => {
    const path = folder("roberta-sequence-classification", "pairs of roberta");
    const model = await AutoModelForSequenceClassification.fromPretrained(path);
    const { score } = await model.classify({ text: "the cat sits", textPair: "a dog is a dog runs" });
    const [logit] = tidy(() => noGrad(() => model.forward(row([[...cat, ...dog.slice(1)]]))).floatsSync());
    expectClose([score], [1 / (1 + Math.exp(-logit!))], { atol: 1e-6, rtol: 1e-5 }); // one label, as rerankers have
    model.dispose();
  });

  it("must have a token, and no text has no vector", async () => {
    const bare = (name: string, as: string): string => {
      const path = folder(name, as);
      const file = join(path, "tokenizer.json");
      writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, "utf8")), post_processor: null }));
      return path;
    };
    const model = await AutoModel.fromPretrained(bare("bert", "bare"));
    const classifier = await AutoModelForSequenceClassification.fromPretrained(
      bare("bert-sequence-classification", "bare-classifier"),
    );
    await expect(model.embed([])).rejects.toThrow("embed: texts must be at least one, got []");
    await expect(model.embed(["cat", ""])).rejects.toThrow("embed: texts must have at least one token, got none at 1");
    expect(await classifier.classify([])).toEqual([]);
    await expect(classifier.classify("")).rejects.toThrow(
      "classify: texts must have at least one token, got none at 0",
    );
    model.dispose();
    classifier.dispose();
  });

  it("of which a batch fails leave nothing", async () => {
    const model = await AutoModel.fromPretrained(folder("bert", "failing"));
    const { forward } = model;
    let calls = 0;
    model.forward = function (...args) {
      if (++calls === 2) throw new Error("no memory");
      return forward.apply(this, args);
    };
    const before = memory().tensors;
    const text = Array.from({ length: 60 }, () => "cat").join(" ");
    await expect(model.embed(new Array<string>(140).fill(text))).rejects.toThrow("no memory");
    expect(memory().tensors).toBe(before);
    model.dispose();
  });

  it("of a language model are its own affair", async () => {
    await expect(AutoModel.fromPretrained(fixturePath("families/llama-plain/fp32"))).rejects.toThrow(
      'got "llama": AutoModelForCausalLM opens it, and its embed gives vectors',
    );
  });

  it("need a tokenizer", async () => {
    const model = await AutoModel.fromPretrained(fixturePath("families/bert/fp32"));
    await expect(model.embed("x")).rejects.toThrow(
      "embed: texts and messages need a tokenizer, got a model without one: its folder had no tokenizer.json",
    );
    model.dispose();
  });
});
