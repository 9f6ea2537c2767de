// Embedding4bit: rows of a quantized table, saved with the keys of Linear4bit.
import { describe, expect, it } from "vitest";
import { tensor } from "../../src/index.js";
import { Embedding } from "../../src/nn/embedding.js";
import { Embedding4bit, EmbeddingFP4, EmbeddingNF4 } from "../../src/nn/embedding-4bit.js";
import { testDevices } from "../helpers/devices.js";
import { decode4bit } from "../reference/linear-4bit.js";

describe.each(testDevices())("Embedding4bit on %s", (device) => {
  const ids = tensor(new Int32Array([2, 0, 6]), { shape: [3, 1], device });

  it("has Python's defaults", () => {
    const table = new Embedding4bit(7, 40, { device });
    expect(table.weight).toMatchObject({ quantType: "fp4", quantStorage: "uint8", compressStatistics: false });
    expect(new EmbeddingNF4(7, 40, { device }).weight.quantType).toBe("nf4");
    expect(new EmbeddingFP4(7, 40, { device }).weight.quantType).toBe("fp4");
  });

  it.each([1, 40, 64, 100])("quantizes at the first forward, rows of %i", (dim) => {
    const table = new EmbeddingNF4(7, dim, { device });
    const y = table.forward(ids);
    expect([y.shape, y.dtype]).toEqual([[3, 1, dim], "float32"]);
    expect(table.weight.bnbQuantized).toBe(true);
    const values = decode4bit(table.weight, table.weight.quantState!);
    const expected = [2, 0, 6].flatMap((id) => [...values.subarray(id * dim, (id + 1) * dim)]);
    expect(y.floatsSync()).toEqual(Float32Array.from(expected));
    expect(y.requiresGrad).toBe(false);
  });

  it("gives rows of its dtype", () => {
    const table = new Embedding4bit(7, 16, { dtype: "bfloat16", device });
    expect(table.forward(ids).dtype).toBe("bfloat16");
  });

  it("saves, loads, and takes a float table", () => {
    const table = new EmbeddingNF4(7, 64, { device });
    const float = new Embedding(7, 64, { device });
    table.loadStateDict(float.stateDict());
    const y = table.to(device).forward(ids);
    const dict = table.stateDict();
    expect([...dict.keys()].sort()).toEqual(
      ["weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"].sort(),
    );
    const other = new Embedding4bit(7, 64, { device });
    other.loadStateDict(dict);
    expect(other.forward(ids).dataSync()).toEqual(y.dataSync());
  });
});
