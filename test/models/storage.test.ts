// 4-bit weights in every storage that Python declares them as, cut into shards anywhere; the way back to floats; and
// damaged configs and indexes.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { BitsAndBytesConfig } from "../../src/hub/bits-and-bytes-config.js";
import { shardsOfIndex } from "../../src/hub/checkpoint.js";
import type { JsonObject } from "../../src/hub/config-text.js";
import { parseConfig, withKeys } from "../../src/hub/config-text.js";
import { AutoModelForCausalLM, dequantizeModel, savePretrained, tensor, tidy } from "../../src/index.js";
import type { LlamaForCausalLM } from "../../src/models/index.js";
import { LlamaConfig } from "../../src/models/index.js";
import type { Linear8bitLt } from "../../src/nn/index.js";
import { Linear, Linear4bit } from "../../src/nn/index.js";
import { dequantize4bit, int8VectorwiseDequant } from "../../src/ops/index.js";
import { uniforms } from "../helpers/random.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-storage-"));
afterAll(() => rmSync(root, { recursive: true }));
let count = 0;
const newFolder = () => join(root, String(count++));
const plain = fixturePath("families/llama-plain/fp32");
const load = AutoModelForCausalLM.fromPretrained;
const logitsOf = (model: LlamaForCausalLM) => {
  const ids = tensor([[1, 2, 3, 4, 5]], { dtype: "int32" });
  return tidy(() => noGrad(() => model.forward(ids).floatsSync()));
};

describe.each(["uint8", "int8", "float16", "bfloat16", "float32", "float64"] as const)(
  "codes stored as %s",
  (storage) => {
    it.each([true, false])(
      "load as they are, also with every part in a shard of its own; nested: %s",
      async (nested) => {
        const quantizationConfig = new BitsAndBytesConfig({
          loadIn4bit: true,
          bnb4bitQuantType: "nf4",
          bnb4bitQuantStorage: storage,
          bnb4bitUseDoubleQuant: nested,
        });
        const model = await load(plain, { quantizationConfig });
        const [want, folder, shards] = [logitsOf(model), newFolder(), newFolder()];
        await savePretrained(model, folder);
        await savePretrained(model, shards, { maxShardSize: 1 });
        model.dispose();
        const saved = readSafetensors(join(folder, "model.safetensors"));
        const codes = saved.get("model.layers.0.mlp.up_proj.weight")!;
        const size = { uint8: 1, int8: 1, float16: 2, bfloat16: 2, float32: 4, float64: 8 }[storage];
        expect([codes.dtype, codes.shape]).toEqual([storage, [(64 * 32) / 2 / size, 1]]);
        expect(saved.has("model.layers.0.mlp.up_proj.weight.nested_absmax")).toBe(nested);
        for (const path of [folder, shards]) {
          // Another dtype for the model's floats leaves the codes alone, though theirs may have its name.
          for (const dtype of ["auto", "bfloat16"] as const) {
            const again = await load(path, { dtype });
            const layer = again.model.layers.at(0).mlp.upProj as Linear4bit;
            expect(layer).toBeInstanceOf(Linear4bit);
            expect(Buffer.from(layer.weight.dataSync().buffer).equals(codes.bytes)).toBe(true);
            if (dtype === "auto") expect(logitsOf(again)).toEqual(want);
            again.dispose();
          }
        }
      },
    );
  },
);

describe("dequantizeModel", () => {
  it.each(["nf4", "int8"] as const)(
    "gives the values that %s layers compute with, and a float model",
    async (variant) => {
      const folder = newFolder();
      const model = await load(fixturePath(`models/llama/${variant}`));
      const layer = model.model.layers.at(1).mlp.downProj;
      const want = tidy(() =>
        layer instanceof Linear4bit
          ? dequantize4bit(layer.weight, { quantState: layer.weight.quantState! }).floatsSync()
          : int8VectorwiseDequant((layer as Linear8bitLt).weight, (layer as Linear8bitLt).SCB!).floatsSync(),
      );
      expect(dequantizeModel(model)).toBe(model);
      const float = model.model.layers.at(1).mlp.downProj as Linear;
      expect([float.constructor, float.weight.dtype]).toEqual([Linear, "float32"]);
      expect(float.weight.floatsSync()).toEqual(want);
      const before = logitsOf(model);
      await savePretrained(model, folder);
      model.dispose();
      expect(readFileSync(join(folder, "config.json"), "utf8")).toBe(
        readFileSync(fixturePath("models/llama/fp32/config.json"), "utf8"),
      );
      const again = await load(folder);
      expect(logitsOf(again)).toEqual(before);
      again.dispose();
    },
  );
});

describe("damaged files", () => {
  const uniform = uniforms(31);
  const pick = (n: number) => Math.floor(uniform() * n);
  const pieces = ['"', "{", "}", "[", "]", ",", ":", "9", "-", "null", "1e400", "0.5", '"x"', "__proto__", "true"];
  function damage(text: string): string {
    let damaged = text;
    for (let edits = 1 + pick(3); edits > 0; edits--) {
      const at = pick(damaged.length);
      const end = pick(3) === 0 ? at : at + pick(12);
      damaged = damaged.slice(0, at) + (pick(3) === 0 ? "" : pieces[pick(pieces.length)]) + damaged.slice(end);
    }
    return damaged;
  }
  const isOurs = (error: unknown) => {
    if (!String((error as { code?: string }).code).startsWith("ERR_BNB_")) throw error;
  };

  it("5,000 configs give a config or an error of the library, and nothing else", () => {
    vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    const text = readFileSync(fixturePath("models/llama/nf4/config.json"), "utf8");
    let refused = 0;
    for (let i = 0; i < 5000; i++) {
      try {
        const json = parseConfig(damage(text));
        withKeys(JSON.stringify(json), { dtype: '"float32"' });
        LlamaConfig.fromJSON(json);
        if (json["quantization_config"]) BitsAndBytesConfig.fromJSON(json["quantization_config"] as JsonObject);
      } catch (error) {
        isOurs(error);
        refused++;
      }
    }
    vi.restoreAllMocks();
    expect(refused).toBeGreaterThan(2500);
  });

  it("5,000 indexes give names of files in the folder, or an error of the format", () => {
    const map = Object.fromEntries(
      Array.from({ length: 9 }, (_, i) => [`layer.${i}`, `model-0000${i}-of-00009.safetensors`]),
    );
    const text = JSON.stringify({ metadata: { total_size: 9 }, weight_map: map }, null, 2);
    let refused = 0;
    for (let i = 0; i < 5000; i++) {
      try {
        for (const name of shardsOfIndex(damage(text))) expect(name).toMatch(/^[^./\\:][^/\\:]*\.safetensors$/);
      } catch (error) {
        expect(error).toMatchObject({ code: "ERR_BNB_FORMAT" });
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(1000);
  });

  it.each([
    [
      "num_hidden_layers",
      4_000_000_000,
      "config.json: num_hidden_layers is 4000000000, and the checkpoint has 21 tensors",
    ],
    ["vocab_size", 9_000_000_000, 'the shape of "model.embed_tokens.weight" must be [9000000000, 32], got [96, 32]'],
    ["intermediate_size", 2 ** 52, "must be [4503599627370496, 32], got [64, 32]"],
  ])("a config with a giant %s is refused before it takes memory", async (key, value, message) => {
    const folder = newFolder();
    cpSync(plain, folder, { recursive: true });
    const text = readFileSync(join(folder, "config.json"), "utf8");
    writeFileSync(join(folder, "config.json"), withKeys(text, { [key]: String(value) }));
    await expect(load(folder)).rejects.toThrow(message);
  });
});
