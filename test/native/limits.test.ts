// Calls that would block the JavaScript thread or a worker for ever, take memory that is not there, or read what they
// write: an error that names the limit, or the right result.
import { describe, expect, it } from "vitest";
import {
  arange,
  backward,
  copyInto,
  createDynamicMap,
  createLinearMap,
  dequantize4bit,
  dequantizeBlockwise,
  devices,
  empty,
  fmaPeak,
  gemv4bit,
  matmul,
  matmul4bit,
  memory,
  noGrad,
  ones,
  QuantState,
  quantize4bit,
  quantizeBlockwise,
  slice,
  tensor,
  train,
  zeros,
} from "../../src/index.js";
import { addon } from "../../src/tensor/addon.js";
import { dtypes } from "../../src/tensor/dtype.js";
import { run } from "../../src/tensor/run.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";

const { evenBatches, randomBatches, splitBytes } = train;

const error = (code: string, message: string): Error =>
  expect.objectContaining({ name: "BnbError", code, message: expect.stringContaining(message) as string }) as Error;

describe("numbers without bound", () => {
  it.each([
    [true, 2 ** 53, 8],
    [true, 30, 8],
    [false, 7, 2 ** 40],
    [true, 7, 9],
    [true, -1, 8],
    [true, NaN, 8],
    [true, 7, 0],
    [true, 1.5, 8],
  ])("createDynamicMap(%s, %s, %s)", (signed, exponentBits, totalBits) => {
    expect(() => createDynamicMap(signed, exponentBits, totalBits)).toThrow(
      /^createDynamicMap: (maxExponentBits must be an integer from 0|totalBits must be an integer from 1) to 8, got /,
    );
  });

  it("fmaPeak", () => {
    for (const n of [1e15, 2 ** 53, 2 ** 28 + 1]) {
      expect(() => fmaPeak(n, devices()[0]!)).toThrow(
        error("ERR_BNB_OPTION", `fmaPeak: iterations must be at least 1 and at most 268435456, got ${n}`),
      );
    }
  });

  const bytes = new Uint8Array(100);
  it.each([0, -1, 0.5, NaN])("splitBytes in pieces of %s", (n) => {
    expect(() => splitBytes(bytes, { chunk: n })).toThrow(
      error("ERR_BNB_OPTION", `splitBytes: chunk must be an integer of at least 1, got ${n}`),
    );
    expect(() => splitBytes(bytes, { every: n })).toThrow(
      error("ERR_BNB_OPTION", `splitBytes: every must be an integer of at least 1, got ${n}`),
    );
  });

  it("batches", () => {
    const first = (batchSize: number, sequenceLength = 4, count = 1) => [
      () => evenBatches(bytes, { batchSize, sequenceLength, count }).next(),
      () => randomBatches(bytes, { batchSize, sequenceLength, seed: 1 }).next(),
    ];
    for (const n of [2 ** 31, 2 ** 26 + 1]) {
      for (const make of first(n))
        expect(make).toThrow(error("ERR_BNB_OPTION", "batchSize * sequenceLength must be at most 2^28"));
    }
    for (const n of [0, -1, 1.5, NaN]) {
      for (const make of first(n))
        expect(make).toThrow(error("ERR_BNB_OPTION", "batchSize must be an integer of at least 1"));
      for (const make of first(1, n)) {
        expect(make).toThrow(error("ERR_BNB_OPTION", "sequenceLength must be an integer of at least 1"));
      }
    }
    expect(first(1, 4, NaN)[0]!).toThrow(
      error("ERR_BNB_OPTION", "evenBatches: count must be an integer of at least 0"),
    );
  });
});

describe.each(testDevices())("products of a large batch on %s", (device) => {
  it("the gradient of a shared matrix is one product, however many matrices share it", async () => {
    const a = zeros([2 ** 31, 0, 3], { device, requiresGrad: true });
    const b = ones([0, 2], { device, requiresGrad: true });
    expect(() => matmul(a, b, { transposeA: true })).toThrow(/the inner sizes must agree|2\^53|out of memory/);
    const shared = ones([3, 2], { device, requiresGrad: true });
    const y = matmul(a, shared);
    expect(y.shape).toEqual([2 ** 31, 0, 2]);
    backward(y, zeros(y.shape, { device }));
    expect([...(await shared.grad!.data())]).toEqual([0, 0, 0, 0, 0, 0]);
    expect(a.grad!.shape).toEqual(a.shape);
    const columns = zeros([2 ** 31, 3, 0], { device, requiresGrad: true });
    const turned = matmul(columns, shared, { transposeA: true });
    shared.grad = null;
    backward(turned, zeros(turned.shape, { device }));
    expect([...(await shared.grad!.data())]).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it.each([false, true])("and the right one (transposeB %s)", (transposeB) => {
    // a [B, K, M] transposed, b shared: db = sum over the batch of a dy.
    const [B, K, M, N] = [5, 3, 4, 2] as const;
    const at = (i: number) => ((i * 7) % 11) - 5;
    const a = tensor(
      Array.from({ length: B * K * M }, (_, i) => at(i)),
      { shape: [B, K, M], device },
    );
    const b = ones(transposeB ? [N, K] : [K, N], { device, requiresGrad: true });
    const dy = Array.from({ length: B * M * N }, (_, i) => at(i + 3));
    backward(matmul(a, b, { transposeA: true, transposeB }), tensor(dy, { shape: [B, M, N], device }));
    const expected = new Array<number>(K * N).fill(0);
    for (let i = 0; i < B; i++) {
      for (let k = 0; k < K; k++) {
        for (let n = 0; n < N; n++) {
          for (let m = 0; m < M; m++) {
            const to = transposeB ? n * K + k : k * N + n;
            expected[to]! += at(i * K * M + k * M + m) * dy[i * M * N + m * N + n]!;
          }
        }
      }
    }
    expect([...b.grad!.floatsSync()]).toEqual(expected);
  });
});

describe.each(testDevices())("tensors that share memory on %s", (device) => {
  const n = 40_000; // more than one thread copies
  const counted = () => arange(0, n, 1, { device });

  it.each([
    [0, 1],
    [1, 0],
    [0, 17],
    [12_345, 0],
    [3, 3],
  ])("copyInto from rows %i on to rows %i on", (from, to) => {
    const x = counted();
    const count = n - Math.max(from, to);
    copyInto(x, slice(x, 0, from, from + count), { start: to });
    const expected = Float32Array.from({ length: n }, (_, i) => (i >= to && i < to + count ? i - to + from : i));
    expect(x.floatsSync()).toEqual(expected);
  });

  it("copyInto where the kernel reads the position", () => {
    const x = counted();
    copyInto(x, slice(x, 0, 0, n - 5), { start: tensor([5], { dtype: "int32", device }) });
    expect(x.floatsSync()).toEqual(Float32Array.from({ length: n }, (_, i) => (i < 5 ? i : i - 5)));
    const numbers = tensor([1, 2, 3], { dtype: "int32", device });
    expect(() =>
      copyInto(numbers, tensor([9], { dtype: "int32", device }), { start: slice(numbers, 0, 0, 1) }),
    ).toThrow(error("ERR_BNB_ARGUMENT", "copyInto: dst must not share memory with position"));
  });

  it("what an op writes is none of what it reads", () => {
    const x = ones([64, 64], { device });
    const [packed, state] = quantize4bit(x, { quantType: "nf4" });
    const bytesOf = (t: typeof x, count: number) => run(addon.view, t, [count], 4, 0)[0];
    const scales = slice(x, 0, 0, 1);
    const shares = (op: string, to: string, from: string) =>
      error("ERR_BNB_ARGUMENT", `${op}: ${to} must not share memory with ${from}`);
    expect(() => quantize4bit(x, { quantType: "nf4", out: bytesOf(x, 2048) })).toThrow(
      shares("quantize4bit", "out", "A"),
    );
    expect(() => quantize4bit(x, { quantType: "nf4", absmax: scales })).toThrow(shares("quantize4bit", "absmax", "A"));
    expect(() => quantizeBlockwise(x, { blocksize: 64, out: bytesOf(x, 4096) })).toThrow(
      shares("quantizeBlockwise", "out", "A"),
    );
    expect(() => quantizeBlockwise(x, { blocksize: 64, absmax: scales })).toThrow(
      shares("quantizeBlockwise", "absmax", "A"),
    );
    const [codes, eight] = quantizeBlockwise(ones([256], { device }), { blocksize: 64 });
    const wide = zeros([256], { device });
    copyInto(bytesOf(wide, 256), codes);
    expect(() => dequantizeBlockwise(bytesOf(wide, 256), { quantState: eight, out: wide })).toThrow(
      shares("dequantizeBlockwise", "out", "A"),
    );
    const room = zeros([64, 64], { device });
    const inside = bytesOf(room, 2048);
    copyInto(inside, packed.ndim === 2 ? run(addon.view, packed, [2048], 4, 0)[0] : packed);
    expect(() => dequantize4bit(inside, { quantState: state, out: room })).toThrow(
      shares("dequantize4bit", "out", "A"),
    );
    const row = ones([1, 64], { device });
    expect(() => noGrad(() => gemv4bit(row, packed, state, { out: row }))).toThrow(
      shares("linear4bitInto", "out", "x"),
    );
    const half = slice(ones([2, 64], { device }), 0, 0, 1);
    expect(() => noGrad(() => gemv4bit(half, packed, state, { out: half }))).toThrow(
      shares("linear4bitInto", "out", "x"),
    );
  });

  // A state whose statistics lie where the op is to write, one after the other.
  it.each(["absmax", "absmax of absmax", "code of absmax", "offset"])("nor the %s of what it decodes", (name) => {
    const out = zeros([256, 64], { device });
    const [packed, nested] = quantize4bit(ones([256, 64], { device }), { quantType: "nf4", compressStatistics: true });
    const { absmax, code, offset, state2, blocksize, quantType, shape, dtype } = nested;
    const inside = (part: Tensor): Tensor => run(addon.view, out, [...part.shape], dtypes.indexOf(part.dtype), 0)[0];
    const placed = (part: Tensor, as: string): Tensor => (as === name ? inside(part) : part);
    const state = new QuantState({
      ...{ blocksize, quantType, shape, dtype, code, absmax: placed(absmax, "absmax") },
      offset: placed(offset!, "offset"),
      state2: new QuantState({
        ...{ blocksize: state2!.blocksize, dtype: state2!.dtype },
        absmax: placed(state2!.absmax, "absmax of absmax"),
        code: placed(state2!.code, "code of absmax"),
      }),
    });
    const says = (op: string) => error("ERR_BNB_ARGUMENT", `${op}: out must not share memory with ${name}`);
    expect(() => dequantize4bit(packed, { quantState: state, out })).toThrow(says("dequantize4bit"));
    const y = run(addon.view, out, [64, 256], 0, 0)[0];
    const x = ones([64, 64], { device });
    expect(() => noGrad(() => matmul4bit(x, packed, state, { out: y }))).toThrow(says("linear4bitInto"));
  });

  it("nor the code of an 8-bit map", () => {
    const code = createLinearMap(true, 8, true, { device });
    const [codes, { absmax }] = quantizeBlockwise(ones([256], { device }), { code });
    expect(() => dequantizeBlockwise(codes, { absmax, code, out: code })).toThrow(
      error("ERR_BNB_ARGUMENT", "dequantizeBlockwise: out must not share memory with code"),
    );
    const x = ones([256], { device });
    expect(() => quantizeBlockwise(x, { code, absmax: slice(code, 0, 0, 1) })).toThrow(
      error("ERR_BNB_ARGUMENT", "quantizeBlockwise: absmax must not share memory with code"),
    );
  });

  it("two parts of one memory are apart", () => {
    const both = ones([2, 64], { device });
    const [packed, state] = quantize4bit(ones([64, 64], { device }), { quantType: "nf4" });
    const out = slice(both, 0, 1, 2);
    noGrad(() => gemv4bit(slice(both, 0, 0, 1), packed, state, { out }));
    expect([...both.floatsSync()]).toEqual([...new Array<number>(64).fill(1), ...new Array<number>(64).fill(64)]);
  });
});

// A sanitizer keeps to a limit of its own.
describe.runIf(process.env["BNB_SANITIZED"] !== "1")("memory that is not there", () => {
  const total = devices()[0]!.memory;

  it("arange says so before it makes its numbers", () => {
    for (const n of [1e12, 2 ** 53, total]) {
      expect(() => arange(n)).toThrow(error("ERR_BNB_OOM", `arange: out of memory: wanted ${n * 8} bytes`));
    }
  });

  it("counts what tensors hold already", () => {
    const nbytes = Math.floor(total * 0.6);
    using first = empty([nbytes], { dtype: "uint8", device: "cpu" });
    expect(() => empty([nbytes], { dtype: "uint8", device: "cpu" })).toThrow(
      error("ERR_BNB_OOM", `cpu: out of memory: wanted ${nbytes} bytes`),
    );
    expect(first.size).toBe(nbytes);
  });

  it("a copy for JavaScript counts, too", async () => {
    const nbytes = Math.floor(total * 0.6);
    using x = empty([nbytes], { dtype: "uint8", device: "cpu" });
    const message = `out of memory: wanted ${nbytes} bytes, live ${memory().devices["cpu"]!.liveBytes},`;
    await expect(x.data()).rejects.toThrow(error("ERR_BNB_OOM", `data: ${message}`));
    await expect(x.floats()).rejects.toThrow(error("ERR_BNB_OOM", "data: out of memory"));
    expect(() => x.dataSync()).toThrow(error("ERR_BNB_OOM", `dataSync: ${message}`));
  });
});
