// Tensors without any op: upload, read, views of lifetimes, errors.
import { describe, expect, it } from "vitest";
import type { BnbError } from "../../src/index.js";
import {
  concat,
  devices,
  embedding,
  emptyCache,
  keep,
  memory,
  synchronize,
  Tensor,
  tensor,
  tidy,
} from "../../src/index.js";
import { addon } from "../../src/tensor/addon.js";
import { run } from "../../src/tensor/run.js";
import { testDevices } from "../helpers/devices.js";

describe.each(testDevices())("tensors on %s", (device) => {
  it("a disposed tensor never stands for a living one, not even for the first of the process", () => {
    using first = tensor([1, 2, 3], { device });
    const gone = tensor([0], { device });
    gone.dispose();
    expect(() => run(addon.view, gone, [1], 0, 0)).toThrow("view: x was disposed");
    expect(first.size).toBe(3);
  });

  it("gives back what was put in, for every kind of array", async () => {
    const cases: [Parameters<typeof tensor>[0], Parameters<typeof tensor>[1], number[], string][] = [
      [
        [
          [1, 2],
          [3, 4],
        ],
        {},
        [1, 2, 3, 4],
        "float32",
      ],
      [new Float64Array([0.5, 1.5]), {}, [0.5, 1.5], "float32"],
      [new Float32Array([1, 2, 3]).subarray(1), {}, [2, 3], "float32"],
      [new Int32Array([-1, 7]), {}, [-1, 7], "int32"],
      [new BigInt64Array([5n, -6n]), {}, [5, -6], "int32"],
      [new Uint8Array([200, 1]), {}, [200, 1], "uint8"],
      [new Int8Array([-100, 1]), {}, [-100, 1], "int8"],
      [[1, -0.5, 65504], { dtype: "float16" }, [1, -0.5, 65504], "float16"],
      [[1, 3.0625], { dtype: "bfloat16" }, [1, 3.0625], "bfloat16"],
      [new Uint16Array([0x3c00, 0xbc00]), { dtype: "float16" }, [1, -1], "float16"],
      [7, {}, [7], "float32"],
    ];
    for (const [data, options, expected, dtype] of cases) {
      using t = tensor(data, { ...options, device });
      expect(t.dtype).toBe(dtype);
      expect([...(await t.floats())]).toEqual(expected);
      expect([...t.floatsSync()]).toEqual(expected);
    }
  });

  it("gives back lists of every size around that of a command", async () => {
    for (const n of [39, 40, 41, 79, 80, 81, 1000]) {
      const values = Float32Array.from({ length: n }, (_, i) => i);
      // Several at once, so that one too long would write over its neighbour.
      const tensors = Array.from({ length: 5 }, (_, i) =>
        tensor(
          values.map((v) => v + i),
          { device },
        ),
      );
      for (const [i, t] of tensors.entries()) {
        expect(await t.data()).toEqual(values.map((v) => v + i));
        t.dispose();
      }
    }
  });

  it("copies views of shared memory as they are now", async () => {
    const shared = new Float32Array(new SharedArrayBuffer(16));
    shared.set([1, 2, 3, 4]);
    using t = tensor(shared.subarray(1), { device });
    shared.fill(0);
    expect([...(await t.floats())]).toEqual([2, 3, 4]);
  });

  it("returns its memory", async () => {
    const before = memory();
    const t = tensor(new Float32Array(100_000), { device });
    expect(memory().tensors).toBe(before.tensors + 1);
    expect(memory().liveBytes).toBeGreaterThanOrEqual(before.liveBytes + 400_000);
    t.dispose();
    t.dispose();
    await synchronize();
    expect(memory().tensors).toBe(before.tensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
    emptyCache();
    expect(memory().cachedBytes).toBe(0);
  });

  it("tidy keeps what is returned or kept, and nothing else", () => {
    const before = memory().tensors;
    let kept: Tensor | undefined;
    const result = tidy(() => {
      const inner = tidy(() => ({ list: [tensor([1], { device })], other: tensor([2], { device }).shape }));
      kept = keep(tensor([3], { device }));
      tensor([4], { device });
      return new Map([["x", inner.list[0] as Tensor]]);
    });
    expect(memory().tensors).toBe(before + 2);
    expect(result.get("x")?.itemSync()).toBe(1);
    expect(kept?.itemSync()).toBe(3);
    result.get("x")?.dispose();
    kept?.dispose();
    expect(() =>
      tidy(() => {
        tensor([1], { device });
        throw new Error("inside");
      }),
    ).toThrow("inside");
    expect(memory().tensors).toBe(before);
    expect(() => tidy(async () => {})).toThrow("tidy: the function must be synchronous, it returned a promise");
  });

  it("releases forgotten tensors when they are collected", async () => {
    const before = memory().tensors;
    (() => {
      for (let i = 0; i < 100; i++) tensor(new Float32Array(1000), { device });
    })();
    expect(memory().tensors).toBe(before + 100);
    for (let i = 0; i < 50 && memory().tensors > before; i++) {
      (globalThis as { gc?: () => void }).gc?.();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(memory().tensors).toBe(before);
  });
});

describe("errors", () => {
  const failure = (fn: () => unknown): BnbError => {
    try {
      fn();
    } catch (error) {
      return error as BnbError;
    }
    throw new Error("nothing was thrown");
  };

  it("names a disposed tensor", async () => {
    const t = tensor([1]);
    t.dispose();
    expect(failure(() => t.dataSync())).toMatchObject({
      code: "ERR_BNB_DISPOSED",
      message: "dataSync: x was disposed",
    });
    await expect(t.data()).rejects.toThrow("data: x was disposed");
    expect(failure(() => run(addon.view, t, [1], 0, 0))).toMatchObject({
      code: "ERR_BNB_DISPOSED",
      message: "view: x was disposed",
    });
  });

  it("takes no Proxy of a tensor for it, nor what only has the prototype", async () => {
    const t = tensor([1, 2]);
    const proxy = new Proxy(t, {});
    const own = "it must be the object itself, got a Proxy of it";
    expect(failure(() => proxy.dispose())).toMatchObject({ code: "ERR_BNB_ARGUMENT", message: `dispose: ${own}` });
    expect(failure(() => keep(proxy)).message).toBe(`keep: ${own}`);
    expect(failure(() => proxy.detach()).message).toBe(`detach: ${own}`);
    await expect(proxy.data()).rejects.toThrow(`data: ${own}`);
    expect(failure(() => run(addon.view, proxy, [1], 0, 0)).message).toBe("view: x must be a Tensor, got an object");
    expect(failure(() => concat([t, proxy])).message).toMatch(/^concat: .* must be .*Tensor/);
    const heir = Object.create(Tensor.prototype) as Tensor;
    expect(String(heir)).toBe("a Proxy or heir of a Tensor");
    expect(failure(() => run(addon.view, heir, [1], 0, 0)).message).toBe("view: x must be a Tensor, got an object");
    expect(await t.data()).toEqual(Float32Array.of(1, 2));
  });

  it("refuses arrays and iterables that are none", () => {
    const endless = new Proxy([], { get: (_, key) => (key === "length" ? 2 ** 32 - 1 : undefined) });
    expect(failure(() => run(addon.empty, endless, 0, 0)).message).toBe(
      "run: an array among the arguments must have at most 1048576 items, got 4294967295",
    );
    expect(failure(() => tidy(() => endless)).message).toMatch(/^tidy: what fn returns .* cannot be gone through$/);
  });

  it("sets as gradient only a tensor of the shape and device", () => {
    const t = tensor([[1, 2]]);
    expect(failure(() => (t.grad = tensor([1, 2])))).toMatchObject({
      code: "ERR_BNB_SHAPE",
      message: "grad: it must have the shape [1, 2] of its tensor, got [2]",
    });
    expect(failure(() => (t.grad = 3 as never)).message).toBe("grad: it must be a Tensor or null, got 3");
    expect(failure(() => (t.grad = new Proxy(t, {}))).message).toMatch(/^grad: it must be a Tensor or null, got /);
    expect(t.grad).toBeNull();
    t.grad = tensor([[3, 4]]);
    expect(t.grad.shape).toEqual([1, 2]);
    t.grad = null;
    expect(t.grad).toBeNull();
  });

  it("says how numbers become ids", () => {
    expect(failure(() => embedding(tensor([0, 1]), tensor([[1], [2]])))).toMatchObject({
      code: "ERR_BNB_DTYPE",
      message:
        'embedding: ids must be int32, got float32; write tensor(values, { dtype: "int32" }) or cast(ids, "int32")',
    });
  });

  it("names a foreign object and a wrong count of arguments", () => {
    const foreign = { slot: 5 } as unknown as Tensor;
    expect(failure(() => run(addon.view, foreign, [1], 0, 0)).message).toBe("view: x must be a Tensor, got an object");
    expect(failure(() => run(addon.view, 3 as unknown as Tensor, [1], 0, 0)).message).toBe(
      "view: x must be a Tensor, got a number",
    );
    expect(failure(() => (addon.view as unknown as () => void)()).message).toBe("view: takes 4 arguments, got 0");
  });

  it("refuses huge and negative sizes", () => {
    expect(failure(() => run(addon.empty, [-1], 0, 0)).message).toBe("tensor: sizes must be at least 0, got [-1]");
    expect(failure(() => run(addon.empty, [2 ** 40, 2 ** 40], 0, 0)).message).toBe(
      "tensor: the size must stay below 2^53 bytes, got [1099511627776, 1099511627776]",
    );
    const oom = failure(() => run(addon.empty, [2 ** 50], 0, 0));
    expect(oom.code).toBe("ERR_BNB_OOM");
    expect(oom.message).toMatch(
      /^cpu: out of memory: wanted 4503599627370496 bytes, live \d+, cached \d+, the device has \d+$/,
    );
    expect(failure(() => run(addon.empty, [1.5], 0, 0)).message).toBe("empty: shape must be an integer, got 1.5");
  });

  it("refuses a detached buffer, bad ids and unknown devices", () => {
    const buffer = new ArrayBuffer(8);
    const view = new Float32Array(buffer);
    structuredClone(buffer, { transfer: [buffer] });
    expect(failure(() => tensor(view)).message).toBe("tensor: the buffer of data was detached");
    expect(failure(() => tensor(new BigInt64Array([2n ** 40n]))).message).toBe(
      "tensor: ids must fit int32, got 1099511627776 at 0",
    );
    expect(failure(() => tensor([1], { device: "tpu:0" }))).toMatchObject({
      code: "ERR_BNB_DEVICE",
      message: `device: must be one of auto, ${devices().map(String).join(", ")}, got tpu:0`,
    });
    // Where no GPU can be used, the error says why; where one can, that there is no such one.
    const missing = failure(() => tensor([1], { device: "cuda:99" }));
    expect(missing.code).toBe(devices().length > 1 ? "ERR_BNB_DEVICE" : "ERR_BNB_CUDA");
    expect(missing.message).toMatch(/^device: (must be one of auto, cpu, cuda|cuda:99 must be a usable GPU, but \w+)/);
    expect(failure(() => tensor([[1], [2, 3]])).message).toBe("tensor: nested arrays must have equal lengths");
    expect(failure(() => tensor([1, 2], { shape: [3] })).message).toBe(
      "tensor: shape [3] of float32 needs 12 bytes, got 8",
    );
    expect(failure(() => tensor(new Uint16Array(2))).code).toBe("ERR_BNB_DTYPE");
  });
});

describe("devices", () => {
  it("lists the CPU first", () => {
    expect(String(devices()[0])).toBe("cpu");
    expect(devices()[0]?.memory).toBeGreaterThan(1e8);
  });
});
