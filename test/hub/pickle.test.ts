// pytorch_model.bin: a file of torch.save against the same tensors in safetensors; pickles that want more than tensors,
// refused by name; and ten thousand damaged ones.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openCheckpoint } from "../../src/hub/checkpoint.js";
import { readPickle } from "../../src/hub/pickle.js";
import { openPickle } from "../../src/hub/pickle-file.js";
import { uniforms } from "../helpers/random.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";
import { op, zipOf } from "../helpers/torch-file.js";

const root = mkdtempSync(join(tmpdir(), "bnb-pickle-"));
afterAll(() => rmSync(root, { recursive: true }));
const at = (name: string) => join(root, name);
const original = readFileSync(fixturePath("optim/state_dict_adamw-8bit.pt"));

/** A file of torch.save with this pickle and these storages. */
function save(name: string, body: Buffer, storages: Record<string, Buffer> = {}): string {
  const data = Object.entries(storages).map(([key, bytes]) => [`model/data/${key}`, bytes] as const);
  const entries = {
    "model/data.pkl": op.pickle(body),
    "model/byteorder": Buffer.from("little"),
    ...Object.fromEntries(data),
  };
  writeFileSync(at(name), zipOf(entries));
  return at(name);
}
const floats = (...values: number[]) => Buffer.from(Float32Array.from(values).buffer);

describe("a file of torch.save", () => {
  it("holds the tensors that safetensors do", async () => {
    const file = await openPickle(fixturePath("optim/state_dict_adamw-8bit.pt"));
    const expected = readSafetensors("optim/state_dict_adamw-8bit.safetensors");
    expect([...file.names()].sort()).toEqual([...expected.keys()].sort());
    for (const [name, { dtype, shape, bytes }] of expected) {
      const tensor = await file.load(name);
      expect([name, tensor.dtype, tensor.shape]).toEqual([name, dtype, shape]);
      expect(Buffer.from((await tensor.data()).buffer).equals(bytes)).toBe(true);
      tensor.dispose();
    }
    await file.close();
  });

  it("of every dtype, with views on one storage, parameters and OrderedDicts", async () => {
    const storage = op.storage("FloatStorage", "0", 6);
    const items = [
      ...[op.text("whole"), op.tensor(storage, 0, [2, 3], [3, 1])],
      ...[op.text("tail"), op.tensor(storage, 4, [1, 2], [7, 1])],
      ...[
        op.text("one"),
        op.call(
          op.global("torch._utils", "_rebuild_parameter"),
          op.tensor(storage, 5, [], []),
          Buffer.from([0x88]),
          Buffer.from("}"),
        ),
      ],
      ...[op.text("none"), op.tensor(storage, 6, [0, 4], [4, 1])],
      ...[op.text("step"), op.int(7)],
      ...[op.text("half"), op.tensor(op.storage("HalfStorage", "1", 1), 0, [1], [1])],
      ...[op.text("long"), op.tensor(op.storage("LongStorage", "2", 1), 0, [1], [1])],
    ];
    const ordered = Buffer.concat([
      op.global("collections", "OrderedDict"),
      Buffer.from(")R("),
      ...items,
      Buffer.from("u}b"),
    ]);
    const path = save("views.bin", ordered, {
      0: floats(1, 2, 3, 4, 5, 6),
      1: Buffer.from([0, 0x3c]),
      2: Buffer.from(BigInt64Array.of(-5n).buffer),
    });
    const file = await openCheckpoint(path);
    const read = async (name: string) => {
      const tensor = await file.load(name);
      return [tensor.dtype, tensor.shape, [...(await tensor.floats())]];
    };
    expect([...file.names()]).toEqual(["whole", "tail", "one", "none", "half", "long"]);
    expect(await read("whole")).toEqual(["float32", [2, 3], [1, 2, 3, 4, 5, 6]]);
    expect(await read("tail")).toEqual(["float32", [1, 2], [5, 6]]);
    expect(await read("one")).toEqual(["float32", [], [6]]);
    expect(await read("none")).toEqual(["float32", [0, 4], []]);
    expect(await read("half")).toEqual(["float16", [1], [1]]);
    expect(await read("long")).toEqual(["int32", [1], [-5]]);
    await file.close();
  });

  it("is opened by its folder, also in shards, where there are no safetensors", async () => {
    mkdirSync(at("shards"));
    const one = (name: string) => op.dict(op.text(name), op.tensor(op.storage("FloatStorage", "0", 1), 0, [1], [1]));
    save("shards/pytorch_model-00001-of-00002.bin", one("a"), { 0: floats(1) });
    save("shards/pytorch_model-00002-of-00002.bin", one("b"), { 0: floats(2) });
    const weight_map = { a: "pytorch_model-00001-of-00002.bin", b: "pytorch_model-00002-of-00002.bin" };
    writeFileSync(at("shards/pytorch_model.bin.index.json"), JSON.stringify({ weight_map }));
    const shards = await openCheckpoint(at("shards"));
    expect([...shards.names()]).toEqual(["a", "b"]);
    expect(await (await shards.load("b")).item()).toBe(2);
    await shards.close();
    mkdirSync(at("single"));
    save("single/pytorch_model.bin", one("c"), { 0: floats(3) });
    const single = await openCheckpoint(at("single"));
    expect(await (await single.load("c")).item()).toBe(3);
    await single.close();
  });
});

describe("a hostile pickle", () => {
  const victim = at("victim");
  const command = op.text(`touch ${victim}`);
  const cases: [string, Buffer, string][] = [
    ["os.system", op.call(op.global("os", "system"), command), 'asks for "os.system": refused, nothing was executed'],
    ["posix.system", op.call(op.global("posix", "system"), command), 'asks for "posix.system": refused'],
    ["eval", op.call(op.global("builtins", "eval"), command), 'asks for "builtins.eval": refused'],
    ["a name of the prototype", op.global("torch", "constructor"), 'asks for "torch.constructor": refused'],
    ["a storage of another module", op.global("evil", "FloatStorage"), 'asks for "evil.FloatStorage": refused'],
    [
      "a name from the stack",
      Buffer.concat([op.text("os"), op.text("system"), Buffer.from([0x93])]),
      'asks for "os.system"',
    ],
    [
      "INST",
      Buffer.concat([Buffer.from("("), command, Buffer.from("ios\nsystem\n")]),
      "has the opcode INST, which no state dict needs",
    ],
    ["OBJ", Buffer.from("(o"), "has the opcode OBJ"],
    [
      "NEWOBJ",
      Buffer.concat([op.global("collections", "OrderedDict"), Buffer.from([0x29, 0x81])]),
      "has the opcode NEWOBJ",
    ],
    ["EXT1", Buffer.from([0x82, 1]), "has the opcode EXT1"],
    ["a text persistent id", Buffer.from("Pid\n"), "has the opcode PERSID"],
    ["a call of a storage", op.call(op.global("torch", "FloatStorage"), op.int(1)), "calls torch.FloatStorage"],
    ["a call of a value", op.call(op.text("os.system"), command), "calls what cannot be called"],
    ["a state for a list", Buffer.from("]Nb"), "gives a state to what has none"],
    [
      "a storage by another id",
      Buffer.concat([op.text("storage"), Buffer.from("Q")]),
      "refers to something that is no storage",
    ],
    ["an empty stack", Buffer.from("0"), "has the opcode 0x30"],
    ["no value", Buffer.from("a"), "takes a value that is not there"],
    ["no mark", Buffer.from("t"), "takes values back to a mark that is not there"],
    ["a memory of nothing", Buffer.from("h\x07"), "remembers a value that was not there"],
    ["a list as key", Buffer.from("}(]Nu"), "has a key that is neither text nor number"],
    ["a text beyond its end", Buffer.concat([Buffer.from("X"), Buffer.from([255, 255, 255, 255])]), "ends too early"],
    [
      "a dict in itself",
      Buffer.concat([Buffer.from("}q\0("), op.text("a"), Buffer.from("h\0u")]),
      "its dicts nest more than 8 deep",
    ],
    ["no dict", op.text("hello"), "must hold a dict of tensors"],
  ];
  it.each(cases)("with %s is refused", async (_, body, message) => {
    const opened = openPickle(save("hostile.bin", body));
    await expect(opened).rejects.toThrow(message);
    await expect(opened).rejects.toThrow(/^hostile\.bin: /);
    await expect(opened).rejects.toMatchObject({ code: "ERR_BNB_FORMAT" });
    expect(existsSync(victim)).toBe(false);
  });

  const storage = op.storage("FloatStorage", "0", 4);
  const tensor = (...given: [number, number[], number[]]) => op.dict(op.text("x"), op.tensor(storage, ...given));
  it.each<[string, Buffer, string]>([
    ["more than its storage", tensor(1, [4], [1]), 'tensor "x" needs 20 bytes of a storage that has 16'],
    ["an overflow", tensor(0, [2 ** 31 - 1, 2 ** 31 - 1], [2 ** 31 - 1, 1]), "has too many elements"],
    ["columns for rows", tensor(0, [2, 2], [1, 2]), 'tensor "x" is not contiguous: save it as safetensors'],
    [
      "a storage that is not there",
      op.dict(op.text("x"), op.tensor(op.storage("FloatStorage", "9", 4), 0, [1], [1])),
      'tensor "x" has no storage',
    ],
    ["a negative size", tensor(0, [-1], [1]), "describes a tensor without a storage, an offset, a shape"],
    ["fewer strides than axes", tensor(0, [2, 2], [1]), "describes a tensor with other strides than axes"],
  ])("whose tensor has %s is refused", async (_, body, message) => {
    await expect(openPickle(save("tensor.bin", body, { 0: floats(1, 2, 3, 4) }))).rejects.toThrow(message);
  });

  it("that would take for ever is refused", async () => {
    // Each of 7 dicts holds the next one many times.
    let body = Buffer.from("}q\0");
    for (let level = 1; level < 7; level++) {
      const items = Array.from({ length: 40 }, (_, i) =>
        Buffer.concat([op.text(`${i}`), Buffer.from(`h${String.fromCharCode(level - 1)}`)]),
      );
      body = Buffer.concat([body, op.dict(...items), Buffer.from(`q${String.fromCharCode(level)}`)]);
    }
    // The earlier dicts are still on the stack: a tuple of all would be no dict, so they are set as items of one.
    const wrapped = Buffer.concat([
      Buffer.from("}("),
      op.text("all"),
      Buffer.from("("),
      body,
      Buffer.from("t"),
      op.text("last"),
      Buffer.from("h\x06u"),
    ]);
    await expect(openPickle(save("bomb.bin", wrapped))).rejects.toThrow("has more than 1000000 values");
  });
});

describe("a container that is refused", () => {
  it.each<[string, Buffer, string]>([
    [
      "a bare pickle",
      Buffer.from([0x80, 2, 0x7d, 0x2e]),
      "is a bare pickle, as torch before 1.6 wrote it: load and save it",
    ],
    ["something else", Buffer.from("hello, world"), "is no file of torch.save"],
    ["half a zip", original.subarray(0, 9000), "is no whole zip archive, as torch.save writes it: its end is missing"],
    ["a zip without a pickle", zipOf({ "a/b": Buffer.from("x") }), "holds no data.pkl"],
    [
      "compressed entries",
      zipOf({ "model/data.pkl": Buffer.from("x") }, 8),
      'entry "model/data.pkl" is compressed or encrypted',
    ],
    [
      "big-endian numbers",
      zipOf({ "model/data.pkl": op.pickle(Buffer.from("}")), "model/byteorder": Buffer.from("big") }),
      "with another byte order",
    ],
    ["nothing", Buffer.alloc(0), "is no file of torch.save"],
  ])("%s", async (name, bytes, message) => {
    writeFileSync(at(name), bytes);
    await expect(openPickle(at(name))).rejects.toThrow(message);
  });
});

it("10,000 damaged pickles give errors of the file's format or data, and nothing else", () => {
  const start = original.indexOf(Buffer.from([0x80, 2, 0x7d]));
  const pickle = original.subarray(start, start + 916);
  expect(readPickle(pickle, "x")).toBeInstanceOf(Map);
  const uniform = uniforms(77);
  const pick = (n: number) => Math.floor(uniform() * n);
  let refused = 0;
  for (let i = 0; i < 10_000; i++) {
    let damaged = Buffer.from(pickle);
    for (let edits = 1 + pick(4); edits > 0; edits--) {
      const where = pick(damaged.length);
      const kind = pick(3);
      if (kind === 0) damaged[where] = pick(256);
      else if (kind === 1) damaged = Buffer.concat([damaged.subarray(0, where), damaged.subarray(where + 1 + pick(9))]);
      else
        damaged = Buffer.concat([
          damaged.subarray(0, where),
          damaged.subarray(pick(where + 1), where),
          damaged.subarray(where),
        ]);
    }
    try {
      readPickle(damaged, "x");
    } catch (error) {
      if ((error as { code?: string }).code !== "ERR_BNB_FORMAT") throw error;
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(5000);
});

it("damaged files give errors of the format, or files whose tensors lie within them", async () => {
  const uniform = uniforms(78);
  const pick = (n: number) => Math.floor(uniform() * n);
  for (let i = 0; i < 150; i++) {
    const damaged = Buffer.from(original);
    for (let edits = 1 + pick(3); edits > 0; edits--) damaged[damaged.length - 1 - pick(2500)] = pick(256);
    writeFileSync(at("damaged.bin"), damaged);
    try {
      const file = await openPickle(at("damaged.bin"));
      for (const name of file.names()) expect((await file.bytes(name)).byteLength).toBe(file.info(name).nbytes);
      await file.close();
    } catch (error) {
      expect(error).toMatchObject({ code: "ERR_BNB_FORMAT" });
    }
  }
});
