// What crosses to the addon: values of the wrong type, numbers that look like handles, arrays and options whose getters
// run code in between, arrays of another context, and code that runs in the middle of an op.
import { createContext, runInContext } from "node:vm";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { Tensor } from "../../src/index.js";
import {
  add,
  cast,
  concat,
  copyInto,
  devices,
  empty,
  fmaPeak,
  fromBytes,
  linear,
  memory,
  mul,
  ones,
  permute,
  softmax,
  sum,
  tensor,
  tidy,
  zeros,
} from "../../src/index.js";
import { addon } from "../../src/tensor/addon.js";
import type { TensorData } from "../../src/tensor/create.js";
import { run } from "../../src/tensor/run.js";
import { testDevices } from "../helpers/devices.js";

const wrong = (message: string | RegExp, code = "ERR_BNB_ARGUMENT"): Error =>
  expect.objectContaining({
    name: "BnbError",
    code,
    message: typeof message === "string" ? message : (expect.stringMatching(message) as string),
  }) as Error;

describe("values of the wrong type", () => {
  it("a number is no tensor, also when a tensor has it as its handle", () => {
    const x = ones([2]);
    const raw = x.slot as never;
    expect(() => softmax(raw)).toThrow(wrong("softmax: x must be a Tensor, got a number"));
    expect(() => add(x, raw)).not.toThrow();
    // As a number of float32: after many tensors a handle has more bits.
    const sum = 1 + Math.fround(x.slot);
    expect(add(x, raw).floatsSync()).toEqual(Float32Array.of(sum, sum));
    expect(() => run(addon.concat, [x, raw], 0)).toThrow(
      wrong("concat: xs must be an array of Tensors, got other values in it"),
    );
    expect(() => linear(ones([1, 2]), ones([2, 2]), raw)).toThrow(wrong("linear: bias must be a Tensor, got a number"));
    expect(() => linear(ones([1, 2]), ones([2, 2]), 0 as never)).toThrow(
      wrong("linear: bias must be a Tensor, got a number"),
    );
  });

  it("a tensor is no number, and null is none", () => {
    const x = ones([2]);
    expect(() => run(addon.clamp, x, x as never, 1)).toThrow(
      wrong("clamp: low must be a number, got a Tensor or a quantized weight"),
    );
    expect(() => run(addon.clamp, x, null as never, 1)).toThrow(wrong("clamp: low must be a number, got null"));
    expect(() => run(addon.clamp, x, 0, undefined as never)).toThrow(wrong("clamp: high must be a number, got null"));
    expect(() => run(addon.softmax, x, null as never)).toThrow(wrong("softmax: log must be a boolean, got null"));
    expect(() => run(addon.permute, x, [x as never])).toThrow(
      wrong("permute: axes must be a number, got a Tensor or a quantized weight"),
    );
    expect(() => run(addon.permute, x, [null as never])).toThrow(wrong("permute: axes must be a number, got null"));
    expect(() => run(addon.permute, ones([2, 2]), [x as never, 0])).toThrow(
      wrong("permute: axes must be a number, got an object"),
    );
  });

  it.each([
    [undefined, "null"],
    [null, "null"],
    ["x", "a string"],
    [1n, "a bigint"],
    [Symbol("x"), "a symbol"],
    [{}, "an object"],
    [() => 1, "a function"],
    [true, "a boolean"],
  ])("%s for a tensor is named", (value, name) => {
    expect(() => softmax(value as never)).toThrow(wrong(`softmax: x must be a Tensor, got ${name}`));
  });

  it.each([-1, 7, 2 ** 31, 1.5, NaN])("%s is no dtype", (code) => {
    const x = ones([2]);
    const message = /dtype must be (a known dtype|an integer), got/;
    const error = expect.objectContaining({
      name: "BnbError",
      message: expect.stringMatching(message) as string,
    }) as Error;
    expect(() => run(addon.empty, [2], code, 0)).toThrow(error);
    expect(() => run(addon.cast, x, code)).toThrow(error);
    expect(() => run(addon.full, [2], 1, code, 0)).toThrow(error);
    expect(() => run(addon.view, x, [2], code, 0)).toThrow(error);
    expect(() => run(addon.sumTo, x, [2], code)).toThrow(error);
    expect(() => addon.fromBytes(new Uint8Array(8), code, [2], 0)).toThrow(error);
  });

  it("bytes are a Uint8Array, of a dtype that there is", () => {
    expect(() => fromBytes(new Uint8Array(8), { dtype: "int64" as never, shape: [1] })).toThrow(
      wrong(/^fromBytes: dtype must be one of float32, .*, got "int64"$/, "ERR_BNB_DTYPE"),
    );
    expect(() => fromBytes(new Float32Array(2) as never, { dtype: "float32", shape: [2] })).toThrow(
      wrong(/^fromBytes: bytes must be a Uint8Array, got /),
    );
    expect(() => addon.fromBytes(new Float32Array(2) as never, 0, [2], 0)).toThrow(
      wrong("tensor: bytes must be a Uint8Array"),
    );
    expect(() => addon.fromBytes({} as never, 0, [2], 0)).toThrow(wrong("tensor: bytes must be a Uint8Array"));
  });
});

describe.each(testDevices())("code that runs among the arguments on %s", (device) => {
  it("may not change the bytes that are being taken", () => {
    const Resizable = ArrayBuffer as unknown as new (n: number, options: { maxByteLength: number }) => ArrayBuffer;
    const buffer = new Resizable(64 * 1024, { maxByteLength: 64 * 1024 });
    const bytes = new Uint8Array(buffer);
    const shrinking = [0, 0];
    Object.defineProperty(shrinking, 1, {
      get: () => {
        (buffer as unknown as { resize(n: number): void }).resize(16);
        return 16384;
      },
    });
    shrinking[0] = 1;
    expect(() => fromBytes(bytes, { dtype: "float32", shape: shrinking, device })).toThrow(
      wrong("fromBytes: shape [1, 16384] of float32 needs 65536 bytes, got 16", "ERR_BNB_SHAPE"),
    );
  });

  it("may not detach them", () => {
    const bytes = new Uint8Array(65536);
    const detaching = {
      dtype: "float32" as const,
      shape: [16384],
      get device() {
        structuredClone(bytes.buffer, { transfer: [bytes.buffer] });
        return device;
      },
    };
    expect(() => fromBytes(bytes, detaching)).toThrow(wrong(/^fromBytes: shape \[16384\] .* got 0$/, "ERR_BNB_SHAPE"));
  });

  it("is run once an element, and its error is its own", () => {
    let reads = 0;
    const axes = [0, 1];
    Object.defineProperty(axes, 0, {
      get: () => {
        reads++;
        return 1;
      },
    });
    Object.defineProperty(axes, 1, { get: () => 0 });
    const x = tensor([[1, 2, 3]], { device });
    expect(run(addon.permute, x, axes)[0].shape).toEqual([3, 1]);
    expect(reads).toBe(1);
    const throwing = [0];
    Object.defineProperty(throwing, 0, {
      get: () => {
        throw new RangeError("mine");
      },
    });
    expect(() => empty(throwing, { device })).toThrow(RangeError);
    expect(() => concat(throwing as never)).toThrow("mine");
  });

  it("may call ops and dispose tensors", () => {
    const x = tensor([1, 2, 3], { device });
    const axes = [0];
    Object.defineProperty(axes, 0, {
      get: () => {
        tidy(() => sum(mul(x, 2)).itemSync());
        return 0;
      },
    });
    expect([...permute(x, axes).floatsSync()]).toEqual([1, 2, 3]);
    const gone = tensor([1], { device });
    const list = [gone, gone];
    Object.defineProperty(list, 1, {
      get: () => {
        gone.dispose();
        return x;
      },
    });
    expect(() => concat(list)).toThrow(wrong("concat: xs was disposed", "ERR_BNB_DISPOSED"));
  });
});

describe("code that runs in the middle of an op", () => {
  afterEach(() => vi.restoreAllMocks());

  // The backlog warning comes at a call of an op with more than 65536 commands queued and not yet run.
  it("finds the results of the op read: process.emitWarning calls ops itself", async () => {
    const warned: Tensor[] = [];
    vi.spyOn(process, "emitWarning").mockImplementation(() => {
      for (let i = 0; i < 5; i++) warned.push(zeros([7, 7, 7, 7]));
    });
    const before = memory().tensors;
    const busy = [1, 2, 3].map(() => fmaPeak(2 ** 28, devices()[0]!));
    const kept: Tensor[] = [];
    for (let i = 0; warned.length === 0 && i < 300_000; i++) {
      const y = ones([2, 3]);
      if (y.shape.length !== 2 || y.shape[0] !== 2 || y.shape[1] !== 3) kept.push(y);
      y.dispose();
    }
    expect(warned.length).toBeGreaterThan(0);
    expect(kept).toEqual([]);
    for (const t of [...busy, ...warned]) t.dispose();
    expect(memory().tensors).toBe(before);
    expect([...(await tensor([1, 2]).data())]).toEqual([1, 2]);
  });
});

describe("arrays of another context", () => {
  const context = createContext({});
  const foreign = (code: string) => runInContext(code, context) as TensorData & Uint8Array;

  it.each([
    ["new Float32Array([1.5, 2])", "float32", [1.5, 2]],
    ["new Float64Array([1.5, 2])", "float32", [1.5, 2]],
    ["new Int32Array([1, -2])", "int32", [1, -2]],
    ["new Int8Array([1, -2])", "int8", [1, -2]],
    ["new Uint8Array([1, 2])", "uint8", [1, 2]],
    ["new Uint8ClampedArray([1, 2])", "uint8", [1, 2]],
    ["new BigInt64Array([1n, -2n])", "int32", [1, -2]],
    ["[1, 2]", "float32", [1, 2]],
  ])("tensor(%s)", (code, dtype, values) => {
    const x = tensor(foreign(code));
    expect(x.dtype).toBe(dtype);
    expect([...x.floatsSync()]).toEqual(values);
    expect([...cast(x, "float32").floatsSync()]).toEqual(values);
  });

  it("bits of 16-bit floats, bytes, and shared memory", () => {
    expect([...tensor(foreign("new Uint16Array([0x3f80])"), { dtype: "bfloat16" }).floatsSync()]).toEqual([1]);
    expect([...fromBytes(foreign("new Uint8Array([1, 2])"), { dtype: "uint8", shape: [2] }).floatsSync()]).toEqual([
      1, 2,
    ]);
    const shared = foreign("new Uint8Array(new SharedArrayBuffer(2)).fill(3)");
    expect([...fromBytes(shared, { dtype: "uint8", shape: [2] }).floatsSync()]).toEqual([3, 3]);
  });
});

it("writes where copyInto is told to, whoever made the shape", () => {
  const x = zeros(runInContext("[2, 2]", createContext({})) as number[]);
  copyInto(x, ones([1, 2]), { start: 1 });
  expect([...x.floatsSync()]).toEqual([0, 0, 1, 1]);
});
