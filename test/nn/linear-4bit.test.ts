// Linear4bit and Params4bit: when they quantize, what they save and load, what reaches whom in training.
import { describe, expect, it } from "vitest";
import { backward } from "../../src/autograd/backward.js";
import type { DType, Tensor } from "../../src/index.js";
import { BnbError, dequantize4bit, fromBytes, matmul4bit, memory, synchronize, tensor, tidy } from "../../src/index.js";
import { Sequential } from "../../src/nn/containers.js";
import { Linear } from "../../src/nn/linear.js";
import { Linear4bit, LinearFP4, LinearNF4, setActivationQuant } from "../../src/nn/linear-4bit.js";
import { Params4bit } from "../../src/nn/params-4bit.js";
import { replaceLinear } from "../../src/nn/replace.js";
import { Generator } from "../../src/ops/random.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose, relativeError } from "../helpers/expect-close.js";
import { noise } from "../helpers/noise.js";
import { readSafetensors, toNumbers } from "../helpers/safetensors.js";
import { sumError } from "../helpers/tolerance.js";
import { decode4bit, linear, linearBackward } from "../reference/linear-4bit.js";

const settle = async (tensors: number): Promise<void> => {
  for (let i = 0; i < 50 && memory().tensors > tensors; i++) {
    (globalThis as { gc?: () => void }).gc?.();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await synchronize();
};

describe.each(testDevices())("Linear4bit on %s", (device) => {
  const input = (m: number, k: number): Tensor => tensor(noise(m * k, 2), { shape: [m, k], device });
  const layerOf = (k: number, n: number, options = {}): Linear4bit =>
    new Linear4bit(k, n, { quantType: "nf4", device, generator: new Generator(1), ...options });
  const valuesOf = (layer: Linear4bit): Float64Array => decode4bit(layer.weight, layer.weight.quantState!);

  describe("values", () => {
    it("has Python's defaults", () => {
      const layer = new Linear4bit(64, 32, { device });
      expect(layer.weight).toBeInstanceOf(Params4bit);
      expect(layer.weight).toMatchObject({
        blocksize: 64,
        compressStatistics: true,
        quantType: "fp4",
        quantStorage: "uint8",
        requiresGrad: false,
        bnbQuantized: false,
      });
      expect([layer.bias!.shape, layer.computeDtype, layer.activationQuant]).toEqual([[32], null, "none"]);
      expect(new LinearNF4(64, 32, { device }).weight.quantType).toBe("nf4");
      expect(new LinearFP4(64, 32, { device }).weight.quantType).toBe("fp4");
      expect(new Linear4bit(64, 32, { bias: false, device }).bias).toBe(null);
    });

    it("quantizes at the first forward and computes with the quantized weight", () => {
      const layer = layerOf(96, 40);
      const before = layer.weight;
      const float = before.floatsSync();
      const x = input(5, 96);
      const y = layer.forward(x);
      expect(before.disposed).toBe(true);
      expect(layer.weight.bnbQuantized).toBe(true);
      expect([layer.weight.dtype, layer.weight.shape]).toEqual(["uint8", [1920, 1]]);
      expect(layer.weight.quantState!.nested).toBe(true);
      const expected = linear(x.floatsSync(), valuesOf(layer), 40, 96, layer.bias!.floatsSync()).y;
      expect(relativeError(y.floatsSync(), expected)).toBeLessThan(2e-6);
      const exact = linear(x.floatsSync(), float, 40, 96, layer.bias!.floatsSync()).y;
      expect(relativeError(y.floatsSync(), exact)).toBeGreaterThan(1e-2);
      const packed = layer.weight;
      expect(layer.forward(x).dataSync()).toEqual(y.dataSync());
      expect(layer.weight).toBe(packed);
    });

    it("quantizes when it is moved to its device, and by quantize()", () => {
      for (const layer of [layerOf(64, 8).to(device), layerOf(64, 8).quantize()]) {
        expect(layer.weight.bnbQuantized).toBe(true);
        expect(String(layer.weight.device)).toBe(device);
      }
    });

    it.each(["bfloat16", "float32", "float64"] as const)("stores the same bytes as %s", (quantStorage) => {
      const plain = layerOf(64, 32).quantize();
      const layer = layerOf(64, 32, { quantStorage }).quantize();
      expect(layer.weight.dtype).toBe(quantStorage);
      const x = input(2, 64);
      expect(layer.forward(x).dataSync()).toEqual(plain.forward(x).dataSync());
    });

    it("stays frozen, whatever its codes are stored as", () => {
      for (const quantStorage of ["uint8", "bfloat16", "float32"] as const) {
        const layer = layerOf(64, 32, { quantStorage }).quantize();
        layer.requiresGrad_(true);
        expect([layer.weight.requiresGrad, layer.bias!.requiresGrad]).toEqual([false, true]);
      }
    });

    it("keeps what a state dict holds, also one that was made in a tidy", () => {
      const layer = layerOf(64, 32).quantize();
      tidy(() => layer.stateDict().size);
      const dict = layer.stateDict();
      for (const part of dict.values()) expect(part.floatsSync().length).toBe(part.size);
    });

    it("gives the output the dtype of the input, whatever computeDtype is", () => {
      const layer = layerOf(64, 8, { computeDtype: "bfloat16" });
      for (const dtype of ["float32", "float16", "bfloat16"] as const) {
        const x = tensor(noise(128), { shape: [2, 64], dtype, device });
        const y = layer.forward(x);
        expect(y.dtype).toBe(dtype);
        const expected = linear(x.floatsSync(), valuesOf(layer), 8, 64, layer.bias!.floatsSync()).y;
        expect(relativeError(y.floatsSync(), expected)).toBeLessThan(4e-3);
      }
    });

    it("replaces the Linear layers of a model, with their weights", () => {
      const model = new Sequential(new Linear(64, 32, { device }), new Linear(32, 16, { device }));
      const weights = model.stateDict().get("0.weight")!.floatsSync();
      replaceLinear(model, (k, n, bias) => new LinearNF4(k, n, { bias, device, compressStatistics: false }), {
        copyWeights: true,
      });
      const layer = model.at(0) as LinearNF4;
      layer.quantize();
      expect(relativeError(valuesOf(layer), weights)).toBeLessThan(0.12);
    });
  });

  describe("gradients", () => {
    it("reach x and the bias; the weight is frozen", () => {
      const layer = layerOf(96, 12).quantize();
      const bytes = layer.weight.dataSync();
      const x = input(3, 96);
      x.requiresGrad = true;
      const dy = tensor(noise(36, 5), { shape: [3, 12], device });
      backward(layer.forward(x), dy);
      expect(
        relativeError(x.grad!.floatsSync(), linearBackward(dy.floatsSync(), valuesOf(layer), 12, 96)),
      ).toBeLessThan(2e-6);
      const columns = Array.from({ length: 12 }, (_, j) => [0, 1, 2].map((i) => noise(36, 5)[i * 12 + j]!));
      const sums = columns.map((column) => column.reduce((a, b) => a + b, 0));
      expectClose(layer.bias!.grad!.floatsSync(), sums, { atol: columns.map(sumError), rtol: 2 ** -24 });
      expect([layer.weight.grad, layer.weight.requiresGrad]).toEqual([null, false]);
      expect(layer.weight.dataSync()).toEqual(bytes);
    });
  });

  describe("state dict", () => {
    const keys = ["weight", "bias", "weight.absmax", "weight.quant_map"];
    const nested = ["weight.nested_absmax", "weight.nested_quant_map"];

    it.each([
      ["nf4", true],
      ["nf4", false],
      ["fp4", true],
      ["fp4", false],
    ] as const)("%s, nested %s, survives a round trip bit for bit", (quantType, compressStatistics) => {
      const layer = layerOf(96, 40, { quantType, compressStatistics, blocksize: 32 }).quantize();
      const dict = layer.stateDict();
      const expected = [
        ...keys,
        ...(compressStatistics ? nested : []),
        `weight.quant_state.bitsandbytes__${quantType}`,
      ];
      expect([...dict.keys()].sort()).toEqual(expected.sort());
      const bytes = (t: Tensor) => Buffer.from(t.dataSync().buffer);
      const json = JSON.parse(bytes(dict.get(`weight.quant_state.bitsandbytes__${quantType}`)!).toString());
      expect(json).toMatchObject({ quant_type: quantType, blocksize: 32, dtype: "float32", shape: [40, 96] });

      // Another layer takes over what the file says, also from a state of its own.
      for (const other of [layerOf(96, 40), layerOf(96, 40).quantize()]) {
        const old = other.weight;
        other.loadStateDict(dict);
        expect(old.disposed).toBe(true);
        expect(other.weight).toMatchObject({ quantType, compressStatistics, blocksize: 32, bnbQuantized: true });
        const again = other.stateDict();
        for (const [name, value] of dict) expect(bytes(again.get(name)!), name).toEqual(bytes(value));
        const x = input(2, 96);
        expect(other.forward(x).dataSync()).toEqual(layer.forward(x).dataSync());
        other.dispose();
      }
      expect(layer.weight.disposed).toBe(false);
    });

    it("takes float weights, and quantizes them if it is quantized", () => {
      const float = new Linear(64, 8, { device });
      const late = layerOf(64, 8, { compressStatistics: false });
      late.loadStateDict(float.stateDict());
      expect(late.weight.bnbQuantized).toBe(false);
      const early = layerOf(64, 8, { compressStatistics: false }).quantize();
      early.loadStateDict(float.stateDict());
      expect(early.weight.bnbQuantized).toBe(true);
      const x = input(1, 64);
      expect(early.forward(x).dataSync()).toEqual(late.forward(x).dataSync());
    });

    it.each(["nf4-plain-fp32", "nf4-dq-bf16", "fp4-plain-fp16", "fp4-dq-fp32"])(
      "loads what bitsandbytes saved, and saves the same bytes: %s",
      (name) => {
        const file = readSafetensors("functional/quant_state_packed.safetensors");
        const dict = new Map<string, Tensor>();
        for (const [key, { bytes, dtype, shape }] of file) {
          if (!key.startsWith(`${name}.weight`)) continue;
          dict.set(key.slice(name.length + 1), fromBytes(bytes, { dtype: dtype as DType, shape, device }));
        }
        const layer = layerOf(64, 16, { bias: false });
        layer.loadStateDict(dict);
        const dequantized = dequantize4bit(layer.weight, { quantState: layer.weight.quantState! });
        const expected = file.get(`${name}.dequant`)!;
        expect(dequantized.dtype).toBe(expected.dtype);
        expectClose(dequantized.floatsSync(), toNumbers(expected), { atol: 0, rtol: name.includes("dq") ? 1e-6 : 0 });
        const saved = layer.stateDict();
        expect([...saved.keys()].sort()).toEqual([...dict.keys()].sort());
        for (const [key, value] of dict) expect(saved.get(key)!.dataSync(), key).toEqual(value.dataSync());
      },
    );

    it("says what does not fit, and changes nothing", () => {
      const layer = layerOf(64, 8).quantize();
      const kept = layer.weight;
      const other = layerOf(64, 16).quantize();
      expect(() => layer.loadStateDict(other.stateDict())).toThrow(/"weight" must be \[8, 64\], got \[16, 64\]/);
      const dict = new Map(layerOf(64, 8).quantize().stateDict());
      dict.delete("weight.absmax");
      expect(() => layer.loadStateDict(dict)).toThrow(/absmax/);
      expect(() => layer.loadStateDict(new Map())).toThrow(/"weight" is missing/);
      const more = new Map([...layer.stateDict(), ["extra", layer.weight]]);
      const before = memory().tensors;
      for (let i = 0; i < 3; i++) expect(() => layer.loadStateDict(more)).toThrow(/"extra" is not expected/);
      expect(memory().tensors).toBe(before);
      expect(layer.weight).toBe(kept);
    });
  });

  describe("Params4bit", () => {
    it("makes a parameter of a checkpoint's tensors", () => {
      const layer = layerOf(64, 8).quantize();
      const stats = layer.weight.quantState!.asDict({ packed: true });
      const weight = Params4bit.fromPrequantized(layer.weight, stats);
      expect(weight).toMatchObject({ bnbQuantized: true, quantType: "nf4", requiresGrad: false });
      const expected = valuesOf(layer);
      layer.dispose();
      expect(decode4bit(weight, weight.quantState!)).toEqual(expected);
      expect(() => Params4bit.fromPrequantized(weight, stats, { requiresGrad: true })).toThrow(BnbError);
    });

    it("quantizes by itself, without a layer", () => {
      const float = new Params4bit(tensor(noise(640), { shape: [10, 64], device }), { quantType: "nf4" });
      const weight = float.quantize();
      expect([float.disposed, weight.quantize()]).toEqual([true, weight]);
      const values = dequantize4bit(weight, { quantState: weight.quantState! });
      expect(relativeError(values.floatsSync(), noise(640))).toBeLessThan(0.12);
      expect(() => new Params4bit(tensor([1], { device }), { bnbQuantized: true })).toThrow(
        "Params4bit: bnbQuantized data needs its quantState",
      );
    });
  });

  describe("activationQuant", () => {
    it("may be set at any time, of one layer or of all of a module", () => {
      tidy(() => {
        const layers = new Sequential(layerOf(128, 64), new Linear4bit(64, 8, { activationQuant: "int16", device }));
        const x = input(3, 128);
        const exact = layers.forward(x);
        setActivationQuant(layers, "int8");
        expect(layers.children().map((layer) => (layer as Linear4bit).activationQuant)).toEqual(["int8", "int8"]);
        const [first] = layers.children() as [Linear4bit];
        const { quantState } = first.weight;
        const want = matmul4bit(x, first.weight, quantState!, { bias: first.bias, activationQuant: "int8" });
        expect([...first.forward(x).floatsSync()]).toEqual([...want.floatsSync()]);
        setActivationQuant(first, "none");
        setActivationQuant(layers.children()[1] as Linear4bit, "int16");
        expect([...layers.forward(x).floatsSync()]).toEqual([...exact.floatsSync()]);
        layers.dispose();
      });
    });

    it("needs a layer that has it", () => {
      expect(() => setActivationQuant(new Linear(4, 4, { device }), "int8")).toThrow(
        "setActivationQuant: the module must have a 4-bit layer (Linear4bit), it has none",
      );
      const layer = layerOf(64, 8);
      expect(() => setActivationQuant(layer, "int4" as "int8")).toThrow(
        'setActivationQuant: activationQuant must be one of none, int16, int8, got "int4"',
      );
      expect(() => {
        layer.activationQuant = "int4" as "int8";
      }).toThrow('Linear4bit: activationQuant must be one of none, int16, int8, got "int4"');
      expect(layer.activationQuant).toBe("none");
    });
  });

  describe("errors", () => {
    it("names options that do not exist", () => {
      expect(() => new Linear4bit(64, 8, { computeDtype: "int8", device })).toThrow(
        'Linear4bit: computeDtype must be float32, float16 or bfloat16, got "int8"',
      );
      expect(() => new Linear4bit(64, 8, { activationQuant: "int2" as "none", device })).toThrow(/activationQuant/);
      expect(() => layerOf(64, 8, { blocksize: 48 }).quantize()).toThrow(/blocksize/);
      expect(() => layerOf(64, 8).forward(input(1, 63))).toThrow("the last axis of x must be 64, got [1, 63]");
    });
  });

  it("frees the float weight when it quantizes, and everything when it is disposed", async () => {
    await settle(0);
    const before = memory();
    const layer = layerOf(256, 256, { bias: false });
    const float = memory().liveBytes;
    layer.quantize();
    expect(memory().liveBytes - before.liveBytes).toBeLessThan(0.2 * (float - before.liveBytes));
    tidy(() => {
      layer.forward(input(2, 256));
      layer.stateDict();
    });
    layer.dispose();
    await settle(before.tensors);
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
  });
});
