// Files of the reference writer, read and written again byte for byte; headers that must be refused, each for its own
// reason; and thousands of damaged files, which give errors and nothing else.
import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openSafetensors } from "../../src/hub/safetensors.js";
import { headerLength, parseHeader } from "../../src/hub/safetensors-header.js";
import { saveSafetensors } from "../../src/hub/safetensors-writer.js";
import { tensor } from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { uniforms } from "../helpers/random.js";
import { readSafetensors } from "../helpers/safetensors.js";

const folder = mkdtempSync(join(tmpdir(), "bnb-safetensors-"));
afterAll(() => rmSync(folder, { recursive: true }));
const inFolder = (name: string) => join(folder, name);

function headerOf(file: Buffer, name = "x.safetensors") {
  const length = headerLength(file.subarray(0, 8), name, file.byteLength);
  return parseHeader(file.subarray(8, 8 + length), name, file.byteLength);
}

/** A file with this JSON as header and `bytes` zeros after it. */
function fileOf(json: string | Buffer, bytes = 0): Buffer {
  const header = Buffer.from(json as string);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(header.byteLength));
  return Buffer.concat([size, header, Buffer.alloc(bytes)]);
}

const fixtures = (readdirSync("test/fixtures", { recursive: true }) as string[]).filter((path) =>
  path.endsWith(".safetensors"),
);

describe("files of the reference writer", () => {
  it.each(fixtures)("%s is written again byte for byte", async (path) => {
    const file = readFileSync(join("test/fixtures", path));
    const { tensors, metadata } = headerOf(file, path);
    // In another order than the file's.
    const raw = [...tensors].reverse().map(([name, { dtype, shape, offset, nbytes }]) => {
      return [name, { dtype, shape, bytes: file.subarray(offset, offset + nbytes) }] as const;
    });
    await saveSafetensors(inFolder("copy"), new Map(raw), { metadata: Object.fromEntries(metadata) });
    expect(readFileSync(inFolder("copy")).equals(file)).toBe(true);
  });

  it("types that no tensor has keep their bytes", async () => {
    const bytes = Uint8Array.from({ length: 16 }, (_, i) => i);
    const tensors = {
      a: { dtype: "C64", shape: [2], bytes },
      b: { dtype: "F6_E2M3", shape: [4, 5], bytes: bytes.subarray(1) },
    } as const;
    await saveSafetensors(inFolder("raw"), tensors);
    const file = await openSafetensors(inFolder("raw"));
    expect(file.info("b")).toEqual({ dtype: "F6_E2M3", shape: [4, 5], nbytes: 15, file: "raw" });
    expect(await file.bytes("b")).toEqual(bytes.subarray(1));
    expect(await file.bytes("b", 2, 5)).toEqual(bytes.subarray(3, 6));
    await expect(file.bytes("b", 2, 16)).rejects.toThrow("bytes: end must be an integer from 2 to 15, got 16");
    await expect(file.load("b")).rejects.toThrow(
      'raw: tensor "b" of F6_E2M3 has no dtype among tensors; bytes() reads',
    );
    await file.close();
  });
});

describe.each(testDevices())("loading on %s", (device) => {
  it("gives the elements of every dtype, wherever they begin", async () => {
    const path = "functional/int8.safetensors"; // I64, F64, F32, I32, F16, BF16, U8, I8
    const expected = readSafetensors(path);
    const file = await openSafetensors(join("test/fixtures", path));
    for (const [name, { dtype, shape, values }] of expected) {
      const loaded = await file.load(name, { device });
      expect([loaded.dtype, loaded.shape, loaded.device.toString()]).toEqual([
        dtype === "int64" ? "int32" : dtype === "bool" ? "uint8" : dtype,
        shape,
        device,
      ]);
      const got = await loaded.data();
      if (dtype === "int64") expect(Array.from(got, BigInt)).toEqual([...(values as BigInt64Array)]);
      else expect(got).toEqual(values);
      loaded.dispose();
    }
    await file.close();
  });

  // E5M2 is the upper half of a float16; E4M3 by the values of the paper that defines it.
  it.each(["float32", "float16", "bfloat16"] as const)("widens 8-bit floats to %s", async (dtype) => {
    const codes = Uint8Array.from({ length: 256 }, (_, i) => i);
    await saveSafetensors(inFolder("f8"), {
      e5m2: { dtype: "F8_E5M2", shape: [16, 16], bytes: codes },
      e4m3: { dtype: "F8_E4M3", shape: [256], bytes: codes },
      none: { dtype: "F8_E4M3", shape: [0, 3], bytes: new Uint8Array(0) },
    });
    const file = await openSafetensors(inFolder("f8"));
    const halves = tensor(
      Uint16Array.from(codes, (code) => code << 8),
      { dtype: "float16" },
    );
    const e5m2 = await file.load("e5m2", { device, dtype });
    expect([e5m2.dtype, e5m2.shape]).toEqual([dtype, [16, 16]]);
    expect(await e5m2.floats()).toEqual(halves.floatsSync());
    const e4m3 = await (await file.load("e4m3", { device, dtype })).floats();
    const known = { 0: 0, 1: 2 ** -9, 7: 7 * 2 ** -9, 8: 2 ** -6, 56: 1, 60: 1.5, 126: 448, 127: Number.NaN };
    for (const [code, value] of Object.entries(known)) {
      expect([code, e4m3[Number(code)]]).toEqual([code, value]);
      expect([code, e4m3[Number(code) + 128]]).toEqual([code, -value]);
    }
    for (let code = 1; code < 0x7f; code++) expect(e4m3[code]).toBeGreaterThan(e4m3[code - 1]!);
    expect((await file.load("none", { device, dtype })).shape).toEqual([0, 3]);
    await file.close();
  });

  it("converts floats to the dtype that is asked for, and nothing else", async () => {
    const x = tensor([1, 2.00390625], { dtype: "float16", device });
    await saveSafetensors(inFolder("asked"), { x, codes: tensor([1, 2], { dtype: "uint8", device }) });
    const file = await openSafetensors(inFolder("asked"));
    const loaded = await file.load("x", { device, dtype: "bfloat16" });
    expect([loaded.dtype, ...(await loaded.floats())]).toEqual(["bfloat16", 1, 2]);
    await expect(file.load("codes", { dtype: "float32" })).rejects.toThrow(
      'asked: tensor "codes" of U8 cannot become float32: its integers may be codes',
    );
    await file.close();
  });

  it("saves what it loads", async () => {
    const x = tensor([1.5, -2, 3e-8], { dtype: "bfloat16", shape: [1, 3], device });
    await saveSafetensors(inFolder("x"), { x, empty: tensor(new Int8Array(0), { shape: [0, 7], device }) });
    const file = await openSafetensors(inFolder("x"));
    expect([...file.names()]).toEqual(["x", "empty"]);
    expect(await (await file.load("x", { device })).data()).toEqual(await x.data());
    expect((await file.load("empty", { device })).shape).toEqual([0, 7]);
    await file.close();
  });
});

describe("a tensor of many parts", () => {
  const bytes = Uint8Array.from({ length: 5_000_003 }, (_, i) => (i * 2654435761) >>> 13);

  it("is read by several threads to the last byte", async () => {
    await saveSafetensors(inFolder("large"), { before: tensor(new Float32Array(3)), x: tensor(bytes) });
    const file = await openSafetensors(inFolder("large"));
    const x = await file.load("x");
    expect(Buffer.compare(Buffer.from((await x.data()) as Uint8Array), Buffer.from(bytes))).toBe(0);
    truncateSync(inFolder("large"), 3_000_000);
    await expect(file.load("x")).rejects.toThrow(/readFile: the file ends at byte 3000000, \d+ more must be/);
    await file.close();
  });
});

describe("a file that cannot be read", () => {
  it("says so when it became shorter after it was opened", async () => {
    await saveSafetensors(inFolder("short"), { x: tensor(new Float32Array(4096)) });
    const file = await openSafetensors(inFolder("short"));
    truncateSync(inFolder("short"), 5000);
    await expect(file.load("x")).rejects.toThrow("readFile: the file ends at byte 5000, 11488 more must be there");
    await expect(file.bytes("x")).rejects.toThrow("short: ended at byte 5000, 16488 must be there");
    await file.close();
    await expect(openSafetensors(inFolder("short"))).rejects.toThrow(
      'short: is incomplete: it must have 16488 bytes, has 5000; tensor "x" and what follows are cut off',
    );
  });

  const others: [string, string | Buffer, string][] = [
    [
      "pointer",
      "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698672\n",
      "is a Git LFS pointer of 73 bytes; the file itself has 4976698672 bytes",
    ],
    ["gguf", Buffer.concat([Buffer.from("GGUF"), Buffer.alloc(60)]), "is a GGUF file, whose block formats"],
    ["zip", Buffer.from("PK\u0003\u0004 and more bytes"), "is a PyTorch pickle or an archive"],
    ["page", "<!DOCTYPE html><html>Log in</html>", "is a web page"],
    ["tiny", "1234567", "tiny: must have at least 8 bytes, has 7"],
  ];
  it.each(others)("%s", async (name, contents, message) => {
    writeFileSync(inFolder(name), contents);
    const open = openSafetensors(inFolder(name));
    await expect(open).rejects.toThrow(message);
    await expect(open).rejects.toMatchObject({ code: "ERR_BNB_FORMAT" });
  });

  it("names the system's reason", async () => {
    const missing = openSafetensors(inFolder("missing"));
    await expect(missing).rejects.toMatchObject({ code: "ERR_BNB_FILE" });
    await expect(missing).rejects.toThrow("missing: could not be opened: ENOENT");
    await expect(openSafetensors(folder)).rejects.toThrow("is not a file");
  });
});

describe("a hostile header", () => {
  const entry = (fields: string) => `{"x":{${fields}}}`;
  const good = '"dtype":"F32","shape":[2],"data_offsets":[0,8]';
  const deep = `{"x":{${good},"a":[[[1]]]}}`;
  const cases: [string, string | Buffer, number, string][] = [
    ["not UTF-8", Buffer.from([0x7b, 0xff, 0x7d]), 0, "its header is not UTF-8"],
    ["a byte order mark", `\ufeff{}`, 0, 'its header must start with "{"'],
    ["nothing", "", 0, 'its header must start with "{", it is empty'],
    ["an array", "[]", 0, 'its header must start with "{", got "["'],
    ["text after it", "{} {}", 0, "more than one value at character 3"],
    ["a newline after it", "{}\n", 0, "more than one value at character 2"],
    ["a bare word", '{"x":nul}', 0, "no JSON value at character 5"],
    ["an open object", '{"x":', 0, "ends where a value should be at character 5"],
    ["an open string", '{"x', 0, "a string that does not end"],
    ["a bad escape", '{"\\x":1}', 0, "an escape that is not JSON"],
    ["a control character", '{"\u0001":1}', 0, "a control character in a string"],
    ["half a pair", '{"\\ud800":1}', 0, "half a surrogate pair"],
    ["depth", deep, 8, "nested more than 4 deep"],
    ["the same tensor twice", `{"x":{${good}},"x":{${good}}}`, 8, 'the key "x" for the second time'],
    ["the same key twice", entry(`${good},"dtype":"F32"`), 8, 'the key "dtype" for the second time'],
    ["the same name, escaped", `{"x":{${good}},"\\u0078":{${good}}}`, 8, 'the key "x" for the second time'],
    ["metadata that is no object", '{"__metadata__":[]}', 0, "__metadata__ must be an object"],
    ["metadata of numbers", '{"__metadata__":{"a":1}}', 0, '__metadata__: "a" must be a string'],
    ["an entry that is no object", '{"x":1}', 0, 'tensor "x" must be an object with dtype, shape and data_offsets'],
    ["a long name", `{"${"n".repeat(4097)}":{${good}}}`, 8, "has a name of 4097 characters, at most 4096 may be"],
    [
      "an unknown dtype",
      entry('"dtype":"F128","shape":[],"data_offsets":[0,16]'),
      16,
      'has the dtype "F128", known are BOOL',
    ],
    [
      "a dtype of the prototype",
      entry('"dtype":"toString","shape":[],"data_offsets":[0,1]'),
      1,
      'has the dtype "toString"',
    ],
    ["no shape", entry('"dtype":"F32","data_offsets":[0,8]'), 8, "must have a shape of plain non-negative integers"],
    ["a negative size", entry('"dtype":"F32","shape":[-2],"data_offsets":[0,8]'), 8, "must have a shape of plain"],
    ["a fraction", entry('"dtype":"F32","shape":[2.0],"data_offsets":[0,8]'), 8, "must have a shape of plain"],
    ["an exponent", entry('"dtype":"F32","shape":[2e0],"data_offsets":[0,8]'), 8, "must have a shape of plain"],
    [
      "a size of 2^53",
      entry('"dtype":"U8","shape":[9007199254740992],"data_offsets":[0,8]'),
      8,
      "must have a shape of plain",
    ],
    [
      "65 axes",
      entry(`"dtype":"U8","shape":[${Array(65).fill(1)}],"data_offsets":[0,1]`),
      1,
      "has 65 axes, at most 64 may be",
    ],
    [
      "a product beyond 2^53",
      entry('"dtype":"U8","shape":[274177,67280421310721],"data_offsets":[0,1]'),
      1,
      "has no whole number of bytes below 2^53",
    ],
    [
      "bytes beyond 2^53",
      entry('"dtype":"F64","shape":[9007199254740991],"data_offsets":[0,8]'),
      8,
      "has no whole number of bytes below 2^53",
    ],
    ["half a byte", entry('"dtype":"F4","shape":[3],"data_offsets":[0,2]'), 2, "has no whole number of bytes"],
    [
      "one offset",
      entry('"dtype":"F32","shape":[2],"data_offsets":[8]'),
      8,
      "must have two plain non-negative integers as data_offsets",
    ],
    [
      "offsets in disorder",
      entry('"dtype":"F32","shape":[2],"data_offsets":[8,0]'),
      8,
      "begins at byte 8 and ends at byte 0",
    ],
    [
      "too few bytes",
      entry('"dtype":"F32","shape":[2],"data_offsets":[0,4]'),
      4,
      "of F32 [2] needs 8 bytes, data_offsets give 4",
    ],
    [
      "a hole",
      entry('"dtype":"F32","shape":[2],"data_offsets":[4,12]'),
      12,
      'tensor "x" leaves a hole of 4 bytes before it',
    ],
    [
      "an overlap",
      `{"x":{${good}},"y":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}}`,
      10,
      'tensor "y" overlaps the one before it',
    ],
    ["an alias", `{"x":{${good}},"y":{${good}}}`, 8, 'tensor "y" overlaps the one before it'],
    ["bytes at the end", entry(good), 9, "has 1 bytes after its last tensor"],
    ["bytes that are missing", entry(good), 7, "is incomplete: it must have"],
  ];
  it.each(cases)("with %s is refused", (_, json, bytes, message) => {
    const parse = () => headerOf(fileOf(json, bytes));
    expect(parse).toThrow(message);
    expect(parse).toThrow(/^x\.safetensors: /);
    expect(parse).toThrow(expect.objectContaining({ code: "ERR_BNB_FORMAT" }));
  });

  it("claims more than the file or the limit holds", () => {
    const claim = (length: bigint) => {
      const file = Buffer.alloc(64);
      file.writeBigUInt64LE(length);
      return () => headerOf(file);
    };
    expect(claim(57n)).toThrow("the header claims 57 bytes after the first 8, the file has 64");
    expect(claim(2n ** 64n - 1n)).toThrow("must have at most 100000000 bytes, claims 18446744073709551615");
  });

  it("may use names of the prototype, unknown keys, zero sizes and trailing spaces", () => {
    const odd = '"dtype":"F32","shape":[],"data_offsets":[0,4],"note":-1.5e3';
    const json = `{ "__proto__" : {${odd}}, "constructor":{"dtype":"F32","shape":[0,9007199254740991],"data_offsets":[4,4]} }   `;
    const { tensors } = headerOf(fileOf(json, 4));
    expect([...tensors.keys()]).toEqual(["__proto__", "constructor"]);
    expect(tensors.get("constructor")).toEqual({
      dtype: "F32",
      shape: [0, 9007199254740991],
      offset: 8 + json.length + 4,
      nbytes: 0,
    });
  });
});

it("10,000 damaged headers give ERR_BNB_FORMAT or the same tiling of the file", () => {
  const file = readFileSync("test/fixtures/models/llama/nf4/model.safetensors");
  const length = headerLength(file, "x", file.byteLength);
  const uniform = uniforms(20261127);
  const pick = (n: number) => Math.floor(uniform() * n);
  const pieces = ['"', "{", "}", "[", "]", ",", ":", "9", "-", "e", "\\", "\0", "é", "1e9", "__proto__", "null"];
  let refused = 0;
  for (let i = 0; i < 10_000; i++) {
    let header = Buffer.from(file.subarray(8, 8 + length));
    for (let edits = 1 + pick(3); edits > 0; edits--) {
      const at = pick(header.byteLength);
      const kind = pick(4);
      if (kind === 0) header[at] = pick(256);
      else if (kind === 1) header = Buffer.concat([header.subarray(0, at), header.subarray(at + 1 + pick(20))]);
      else if (kind === 2)
        header = Buffer.concat([
          header.subarray(0, at),
          Buffer.from(pieces[pick(pieces.length)]!),
          header.subarray(at),
        ]);
      else
        header = Buffer.concat([
          header.subarray(0, at),
          header.subarray(pick(header.byteLength), at),
          header.subarray(at),
        ]);
    }
    const size = 8 + header.byteLength + (file.byteLength - 8 - length);
    try {
      const { tensors } = parseHeader(header, "x", size);
      const sum = [...tensors.values()].reduce((n, { nbytes }) => n + nbytes, 0);
      if (8 + header.byteLength + sum !== size) throw new Error("the tensors do not fill the file");
    } catch (error) {
      if ((error as { code?: string }).code !== "ERR_BNB_FORMAT") throw error;
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(5000);
});
