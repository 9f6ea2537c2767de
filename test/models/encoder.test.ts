// Encoders and classifiers against transformers: packed texts give what padded rows with masks give there.
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import type { Encoder, Tensor } from "../../src/index.js";
import {
  AutoModel,
  AutoModelForSequenceClassification,
  BitsAndBytesConfig,
  memory,
  tensor,
  tidy,
} from "../../src/index.js";
import { pool } from "../../src/models/pooling.js";
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

const bounds = (lengths: readonly number[]): number[] =>
  lengths.reduce((ends, length) => [...ends, ends.at(-1)! + length], [0]);

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

describe.each(["bert", "xlm-roberta"])("%s", (name) => {
  const { expected, lengths, ids, types } = rowsOf(name);
  const withTypes = name === "bert" ? types : null;
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
    if (withTypes) {
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
    ["bert-sequence-classification", "roberta-sequence-classification"].flatMap((name) =>
      folders(name).map(([title, folder]) => [name, title, folder] as const),
    ),
  )("%s, %s, have the logits of transformers", async (name, _, folder) => {
    const { model, logits, want } = await logitsOf(name, folder, { starts: true });
    expectClose(logits, want, { atol: 1e-5, rtol: 1e-4 });
    expect(model.config.labels).toEqual(name.startsWith("bert") ? ["no", "yes", "maybe"] : ["LABEL_0"]);
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
