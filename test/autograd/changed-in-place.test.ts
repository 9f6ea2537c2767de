// A gradient is that of the point at which the forward pass ran: when something that it needs was changed in place
// since, by whatever writes to an existing tensor, backward says which, and does nothing.
import { describe, expect, it } from "vitest";
import type { Tensor } from "../../src/index.js";
import { backward, capture, copyInto, full, memory, noGrad, tensor, tidy, zeros } from "../../src/index.js";
import { Embedding, Linear, Linear4bit, Linear8bitLt, Module } from "../../src/nn/index.js";
import {
  attention,
  cast,
  dequantize4bit,
  dequantizeBlockwise,
  embeddingRenorm,
  kvAppend,
  linear,
  linear4bit,
  matmul,
  matmul4bit,
  mul,
  permute,
  quantize4bit,
  quantizeBlockwise,
  reshape,
  rmsNorm,
  slice,
  softmax,
  square,
  sum,
} from "../../src/ops/index.js";
import { clipGradValue, SGD } from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { normals } from "../helpers/optimizers.js";

describe.each(testDevices())("backward after a change in place on %s", (device) => {
  const random = (shape: number[], seed = 1): Tensor => {
    const size = shape.reduce((n, dim) => n * dim, 1);
    return tensor(normals(size, 1, seed), { shape, device });
  };
  const leaf = (shape: number[], seed = 1): Tensor => Object.assign(random(shape, seed), { requiresGrad: true });
  const refusal = (what: string): string =>
    `backward: ${what} must be as it was in the forward pass, got one changed in place since; run the forward pass again`;

  describe("what writes", () => {
    // Each writes to a tensor of its own kind, or to `x`, float32 [4, 64], where it can write to any.
    const ways: Record<string, (x: Tensor) => void> = {
      copyInto: (x) => copyInto(x, zeros([1, 64], { device })),
      "copyInto a view": (x) => copyInto(slice(x, 0, 1, 2), zeros([1, 64], { device })),
      "copyInto a view of another shape": (x) => copyInto(reshape(x, [256]), zeros([1], { device })),
      "copyInto a detached": (x) => copyInto(x.detach(), zeros([1, 64], { device })),
      "copyInto at a position": (x) =>
        copyInto(x, zeros([1, 64], { device }), { start: tensor([2], { dtype: "int32", device }) }),
      "an optimizer's step": (x) => {
        const p = x.detach();
        p.grad = full([4, 64], 1, { device });
        const optimizer = new SGD([p], { lr: 1, momentum: 0.9 });
        optimizer.step();
        optimizer.dispose();
      },
      "gradient clipping": (x) => {
        const p = zeros([4, 64], { device });
        p.grad = x.detach();
        clipGradValue(p, 0.1);
      },
      "keys into pages": (x) => {
        const [q, slots] = [random([1, 1, 4]), tensor([2], { dtype: "int32", device })];
        const layer = { keys: reshape(x, [4, 1, 16, 4]), values: zeros([4, 1, 16, 4], { device }) };
        noGrad(() => kvAppend(q, q, q, layer, slots, null));
      },
      "values into pages": (x) => {
        const [q, slots] = [random([1, 1, 4]), tensor([2], { dtype: "int32", device })];
        const layer = { keys: zeros([4, 1, 16, 4], { device }), values: reshape(x, [4, 1, 16, 4]) };
        noGrad(() => kvAppend(q, q, q, layer, slots, null));
      },
      "embedding renorm": (x) => embeddingRenorm(tensor([1], { dtype: "int32", device }), x, 0.1),
      "out of dequantize4bit": (x) => {
        const [packed, quantState] = quantize4bit(random([4, 64]));
        dequantize4bit(packed, { quantState, out: x });
      },
      "out of dequantizeBlockwise": (x) => {
        const [codes, quantState] = quantizeBlockwise(random([4, 64]));
        dequantizeBlockwise(codes, { quantState, out: x });
      },
      "out of matmul4bit": (x) => {
        const [packed, quantState] = quantize4bit(random([64, 64]));
        noGrad(() => matmul4bit(random([4, 64]), packed, quantState, { out: x }));
      },
      "absmax of quantize4bit": (x) => void quantize4bit(random([256, 64]), { absmax: reshape(x, [256]) }),
      loadStateDict: (x) => {
        class Holder extends Module {
          weight = x;
          forward(): Tensor {
            return this.weight;
          }
        }
        new Holder().loadStateDict(new Map([["weight", zeros([4, 64], { device })]]));
      },
    };

    it.each(Object.entries(ways))("%s", (_, write) => {
      tidy(() => {
        for (const fresh of [false, true]) {
          const x = Object.assign(random([4, 64]), { requiresGrad: !fresh });
          const w = leaf([4, 64], 2);
          if (fresh) write(x);
          const y = sum(mul(x, w));
          if (!fresh) write(x);
          if (fresh) {
            // What was written before the forward pass is no change.
            backward(y);
            expect(w.grad?.floatsSync()).toEqual(x.floatsSync());
          } else {
            expect(() => backward(y)).toThrow(refusal("argument 0 of mul, float32 [4, 64],"));
            expect(() => backward(y)).toThrow(expect.objectContaining({ code: "ERR_BNB_ARGUMENT" }));
            expect([x.grad, w.grad]).toEqual([null, null]);
          }
        }
      });
    });
  });

  describe("what was saved", () => {
    it("an argument, a result, a constant, one behind others", () => {
      tidy(() => {
        const change = (t: Tensor) => copyInto(reshape(t, [t.size]), zeros([1], { device }));
        const [x, w] = [leaf([2, 8]), leaf([8], 2)];
        const cases: [saved: () => [Tensor, Tensor], what: string][] = [
          [() => [w, sum(rmsNorm(x, w))], "argument 1 of rmsNorm, float32 [8],"],
          [
            () => {
              const y = softmax(x);
              return [y, sum(y)];
            },
            "a result of softmax, float32 [2, 8],",
          ],
          [
            () => {
              const constant = random([2, 8], 3);
              return [constant, sum(square(mul(x, constant)))];
            },
            "argument 1 of mul, float32 [2, 8],",
          ],
          [() => [x, sum(square(square(square(x))))], "float32 [2, 8], must be as it was"],
        ];
        for (const [make, what] of cases) {
          const [changed, y] = make();
          change(changed);
          expect(() => backward(y)).toThrow(what);
        }
        expect([x.grad, w.grad]).toEqual([null, null]);
      });
    });

    it("a quantized weight, by any of its parts", () => {
      tidy(() => {
        for (const compressStatistics of [false, true]) {
          const [packed, state] = quantize4bit(random([64, 64]), { compressStatistics });
          const parts = [packed, state.absmax, ...(state.state2 ? [state.state2.absmax, state.offset as Tensor] : [])];
          for (const part of parts) {
            const x = leaf([3, 64], 2);
            const y = sum(linear4bit(x, state.quantized(packed), null));
            const flat = reshape(part, [part.size]);
            copyInto(flat, zeros([1], { dtype: part.dtype, device }));
            expect(() => backward(y)).toThrow(refusal("argument 1 of linear4bit"));
          }
        }
      });
    });

    it("only what the gradient needs: others may change", () => {
      tidy(() => {
        const [x, w, b] = [leaf([2, 4]), random([3, 4], 2), leaf([3], 3)];
        const y = sum(linear(x, w, b));
        const other = random([2, 4]);
        copyInto(b, zeros([1], { device }));
        copyInto(other, zeros([2, 4], { device }));
        backward(y);
        expect(b.grad?.floatsSync()).toEqual(new Float32Array(3).fill(2));
        // Copies do not share what was changed.
        const half = leaf([4], 4);
        const z = sum(square(cast(half, "bfloat16")));
        copyInto(half, zeros([4], { device }));
        backward(z);
        expect(half.grad?.floatsSync().some((g) => g !== 0)).toBe(true);
        const t = leaf([2, 3], 5);
        const s = sum(square(permute(t, [1, 0])));
        copyInto(t, zeros([1, 3], { device }));
        backward(s);
        expect(t.grad).not.toBeNull();
      });
    });
  });

  it("two models that share a weight: the step of one spoils the pass of the other", () => {
    const shared = new Linear(8, 8, { bias: false, device });
    const other = new Linear(8, 8, { bias: false, device });
    other.weight = shared.weight;
    const optimizer = new SGD(shared.parameters(), { lr: 0.1, momentum: 0.9 });
    tidy(() => {
      const x = random([2, 8]);
      const first = sum(shared.forward(x));
      const input = leaf([2, 8], 3);
      const second = sum(other.forward(input));
      backward(first);
      optimizer.step();
      expect(() => backward(second)).toThrow(refusal("argument 1 of linear, float32 [8, 8],"));
      expect(input.grad).toBeNull();
      backward(sum(other.forward(input)));
      expect(input.grad).not.toBeNull();
    });
    optimizer.dispose();
    shared.dispose();
  });

  describe("replays of a graph", () => {
    it("change what it made and what it wrote to, and nothing else", () => {
      const weight = leaf([4], 1);
      const [source, target, untouched] = [random([4], 2), random([4], 3), random([4], 4)];
      const graph = capture(
        () => {
          copyInto(target, mul(source, untouched));
          return square(source);
        },
        { device },
      );
      graph.replay();
      const versions = () => [source, target, untouched, graph.outputs].map((t) => t.version);
      const before = versions();
      const losses = [source, target, untouched, graph.outputs].map((t) => tidy(() => sum(mul(weight, t))));
      graph.replay();
      expect(versions()).toEqual(before.map((version, i) => version + [0, 1, 0, 1][i]!));
      const [a, b, c, d] = losses as [Tensor, Tensor, Tensor, Tensor];
      backward(a);
      backward(c);
      const gradient = weight.grad?.floatsSync();
      for (const spoiled of [b, d]) {
        expect(() => backward(spoiled)).toThrow(refusal("argument 1 of mul, float32 [4],"));
      }
      expect(weight.grad?.floatsSync()).toEqual(gradient);
      // Also when the graph is gone.
      graph.dispose();
      expect(() => backward(b)).toThrow(refusal("argument 1 of mul, float32 [4],"));
      for (const t of [...losses, weight, source, target, untouched]) t.dispose();
    });

    it("a recording alone changes nothing", () => {
      tidy(() => {
        const [weight, target] = [leaf([4]), random([4], 2)];
        const y = sum(mul(weight, target));
        const before = target.version;
        const zero = zeros([4], { device });
        const graph = capture(() => copyInto(target, zero), { device });
        expect(target.version).toBe(before);
        backward(y);
        expect(weight.grad?.floatsSync()).toEqual(target.floatsSync());
        graph.dispose();
      });
    });
  });

  it("a pass after a change has the gradient of the new point, and caches follow versions through views", () => {
    const x = leaf([3]);
    tidy(() => {
      const spoiled = sum(square(x));
      copyInto(x, tensor([1, 2, 3], { device }));
      expect(() => backward(spoiled)).toThrow("changed in place");
      backward(sum(square(x)));
      expect([...(x.grad?.floatsSync() ?? [])]).toEqual([2, 4, 6]);
    });
    const layer = new Linear8bitLt(16, 4, { bias: false, hasFp16Weights: true, device });
    tidy(() => {
      const input = random([2, 16], 2).cast("float16");
      layer.forward(input);
      const rows = reshape(layer.weight as unknown as Tensor, [64]);
      copyInto(rows, zeros([64], { dtype: rows.dtype, device }));
      expect(
        layer
          .forward(input)
          .floatsSync()
          .every((y) => y === 0),
      ).toBe(true);
    });
    layer.dispose();
    x.dispose();
  });

  it("frees what it saved also where it refuses", () => {
    const before = memory().tensors;
    const x = leaf([3]);
    tidy(() => {
      const y = sum(square(x));
      copyInto(x, zeros([1], { device }));
      expect(() => backward(y)).toThrow("changed in place");
    });
    x.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("a layer whose forward pass writes to its weight first has its gradient", () => {
    tidy(() => {
      const table = new Embedding(5, 4, { maxNorm: 0.5, device });
      const ids = tensor([1, 2, 1], { dtype: "int32", device });
      backward(sum(square(table.forward(ids))));
      expect(table.weight.grad).not.toBeNull();
      const [q, k] = [leaf([1, 2, 1, 4]), leaf([1, 2, 1, 4], 2)];
      backward(sum(attention(q, k, k)));
      expect(q.grad).not.toBeNull();
      const layer = new Linear4bit(64, 8, { bias: false, device });
      const input = leaf([2, 64]);
      backward(sum(matmul(layer.forward(input), random([8, 2]))));
      expect(input.grad).not.toBeNull();
      layer.dispose();
      table.dispose();
    });
  });
});
