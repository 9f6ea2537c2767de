// Parameters in 4 bits inside of any module: what reading them gives, how they are saved, moved and freed.
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  Bnb4bitParametrization,
  Module,
  Parameter,
  replaceParameter4bit,
  replaceParameter4bitPrequantized,
} from "../../src/nn/index.js";
import type { QuantState } from "../../src/ops/index.js";
import { dequantize4bit, matmul, quantize4bit } from "../../src/ops/index.js";
import { tensor } from "../../src/tensor/create.js";
import { memory, tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { normals } from "../helpers/random.js";

const shape = [3, 8, 16];
const values = (): Tensor => tensor(normals(3 * 8 * 16, 1), { shape });

class Experts extends Module {
  gateUp = new Parameter(values());
  scale = new Parameter(tensor([1]));
  forward(x: Tensor): Tensor {
    return matmul(x, this.gateUp);
  }
}

let before: number;
beforeEach(() => {
  before = memory().tensors;
});
afterEach(() => {
  expect(memory().tensors).toBe(before);
});

describe("replaceParameter4bit", () => {
  it("gives dequantized values at every reading and computes with them", () => {
    tidy(() => {
      const [packed, quantState] = quantize4bit(values(), { quantType: "nf4", blocksize: 32 });
      const expected = dequantize4bit(packed, { quantState });
      using experts = new Experts();
      const float = experts.gateUp;
      replaceParameter4bit(experts, "gateUp", { blocksize: 32 });
      expect(float.disposed).toBe(true);
      expect([experts.gateUp.shape, experts.gateUp.dtype]).toEqual([shape, "float32"]);
      expect(experts.gateUp.dataSync()).toEqual(expected.dataSync());
      const x = tensor(normals(3 * 2 * 8, 2), { shape: [3, 2, 8] });
      expect(experts.forward(x).dataSync()).toEqual(matmul(x, expected).dataSync());
      expect(
        experts
          .requiresGrad_(true)
          .parameters()
          .filter((p) => p.requiresGrad),
      ).toEqual([experts.scale]);
      const direct = new Bnb4bitParametrization(quantState).forward(packed);
      expect(direct.dataSync()).toEqual(expected.dataSync());
      using next = new Parameter(values());
      expect(() => {
        experts.gateUp = next;
      }).toThrow("gateUp cannot be set: it is computed at each reading");
    });
  });

  it.each([true, false])("saves under the parameter's own name, and loads, nested: %s", (compressStatistics) => {
    tidy(() => {
      using experts = new Experts();
      replaceParameter4bit(experts, "gateUp", { compressStatistics });
      const saved = experts.stateDict();
      const nested = compressStatistics ? ["gate_up.nested_absmax", "gate_up.nested_quant_map"] : [];
      expect([...saved.keys()].sort()).toEqual(
        [
          "gate_up",
          "gate_up.absmax",
          ...nested,
          "gate_up.quant_map",
          "gate_up.quant_state.bitsandbytes__nf4",
          "scale",
        ].sort(),
      );
      const json = new TextDecoder().decode(
        saved.get("gate_up.quant_state.bitsandbytes__nf4")?.dataSync() as Uint8Array,
      );
      expect(JSON.parse(json).shape).toEqual(shape);
      using other = new Experts();
      replaceParameter4bit(other, "gateUp", { quantType: "fp4" });
      other.loadStateDict(saved);
      expect(other.gateUp.dataSync()).toEqual(experts.gateUp.dataSync());
      // Floats are quantized as they come.
      const floats = new Map([["gate_up", values()]]);
      other.loadStateDict(floats, { strict: false });
      const bad = () => other.loadStateDict(new Map([["gate_up", values().reshape([8, 3, 16])]]), { strict: false });
      expect(bad).toThrow('the shape of "gate_up" must be [3, 8, 16], got [8, 3, 16]');
    });
  });

  it("takes packed parameters with a checkpoint's statistics, with and without the name before them", () => {
    tidy(() => {
      const [packed, quantState] = quantize4bit(values(), { quantType: "fp4", compressStatistics: true });
      const expected = dequantize4bit(packed, { quantState }).dataSync();
      const dict = quantState.asDict({ packed: true });
      const named = Object.fromEntries(Object.entries(dict).map(([key, part]) => [`gate_up.${key}`, part]));
      for (const statistics of [dict, named]) {
        using experts = new Experts();
        experts.gateUp.dispose();
        experts.gateUp = new Parameter(packed.detach(), { requiresGrad: false });
        replaceParameter4bitPrequantized(experts, "gateUp", statistics, "cpu");
        expect(experts.gateUp.dataSync()).toEqual(expected);
      }
      (quantState as QuantState).dispose();
    });
  });

  it("refuses what is no float parameter of the module and values that are not finite, and changes nothing", () => {
    tidy(() => {
      using experts = new Experts();
      expect(() => replaceParameter4bit(experts, "down")).toThrow(
        "replaceParameter4bit: down must be a Parameter of the module, got undefined",
      );
      expect(() => replaceParameter4bit(experts, "gateUp", { blocksize: 48 })).toThrow(
        "replaceParameter4bit: blocksize must be one of",
      );
      const broken = normals(3 * 8 * 16, 1);
      broken[5] = Infinity;
      experts.loadStateDict({ gate_up: tensor(broken, { shape }) }, { strict: false });
      expect(() => replaceParameter4bit(experts, "gateUp")).toThrow(
        "replaceParameter4bit: gateUp must be finite, got Infinity at 5",
      );
      expect(experts.gateUp).toBeInstanceOf(Parameter);
      experts.gateUp.dispose();
      experts.gateUp = new Parameter(tensor(new Uint8Array(8)), { requiresGrad: false });
      expect(() => replaceParameter4bit(experts, "gateUp")).toThrow(
        "replaceParameter4bit: gateUp must be float32, float16 or bfloat16, got uint8",
      );
    });
  });
});
