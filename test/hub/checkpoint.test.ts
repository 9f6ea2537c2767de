// Checkpoints of several files: cut anywhere they load to the same bits, and an index can lead nowhere but to them.
import { execFileSync } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { openCheckpoint } from "../../src/hub/checkpoint.js";
import { saveCheckpoint } from "../../src/hub/save-checkpoint.js";
import type { TensorSource } from "../../src/hub/source.js";
import type { Tensor } from "../../src/index.js";
import { tensor } from "../../src/index.js";
import { readSafetensors } from "../helpers/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "bnb-checkpoint-"));
afterAll(() => rmSync(root, { recursive: true }));
let folder = "";
let count = 0;
beforeEach(() => {
  folder = join(root, String(count++));
  mkdirSync(folder);
});

const INDEX = "model.safetensors.index.json";
const nf4 = "test/fixtures/models/llama/nf4";
const expected = readSafetensors("models/llama/nf4/model.safetensors");

async function loadAll(source: TensorSource): Promise<Map<string, Tensor>> {
  const tensors = new Map<string, Tensor>();
  for (const name of source.names()) tensors.set(name, await source.load(name));
  return tensors;
}

async function expectTheModel(path: string): Promise<void> {
  const source = await openCheckpoint(path);
  expect([...source.names()].sort()).toEqual([...expected.keys()].sort());
  for (const [name, tensor] of await loadAll(source)) {
    expect(tensor.shape).toEqual(expected.get(name)?.shape);
    expect(Buffer.from((await tensor.data()).buffer).equals(expected.get(name)?.bytes ?? Buffer.of())).toBe(true);
    tensor.dispose();
  }
  await source.close();
}

const writeIndex = (weightMap: unknown) =>
  writeFileSync(
    join(folder, INDEX),
    typeof weightMap === "string" ? weightMap : JSON.stringify({ weight_map: weightMap }),
  );
const refused = async (code: string, message: string) => {
  const open = openCheckpoint(folder);
  await expect(open).rejects.toThrow(message);
  await expect(open).rejects.toMatchObject({ code });
};

describe("a model of 4-bit weights", () => {
  it("loads from its folder and from its file", async () => {
    await expectTheModel(nf4);
    await expectTheModel(join(nf4, "model.safetensors"));
  });

  it("cut at every tensor boundary, loads to the same bits", async () => {
    const source = await openCheckpoint(nf4);
    const tensors = await loadAll(source);
    await source.close();
    // One shard a tensor: the parts of each quantized weight lie in different files.
    await saveCheckpoint(folder, tensors, { maxShardSize: 1 });
    expect(readdirSync(folder)).toHaveLength(tensors.size + 1);
    await expectTheModel(folder);
    for (const tensor of tensors.values()) tensor.dispose();
  });

  it("is saved as it was loaded, byte for byte", async () => {
    const source = await openCheckpoint(nf4);
    await saveCheckpoint(folder, await loadAll(source));
    await source.close();
    const written = readFileSync(join(folder, "model.safetensors"));
    expect(written.equals(readFileSync(join(nf4, "model.safetensors")))).toBe(true);
  });
});

it("shards are filled in order, and the index is as transformers writes it", async () => {
  const x = tensor(new Float32Array(10)); // 40 bytes
  const tensors = { "b.weight": x, a: x, ü: x, c: x };
  await saveCheckpoint(folder, tensors, { maxShardSize: 100, totalParameters: 40 });
  expect(readFileSync(join(folder, INDEX), "utf8")).toBe(`{
  "metadata": {
    "total_parameters": 40,
    "total_size": 160
  },
  "weight_map": {
    "a": "model-00001-of-00002.safetensors",
    "b.weight": "model-00001-of-00002.safetensors",
    "c": "model-00002-of-00002.safetensors",
    "\\u00fc": "model-00002-of-00002.safetensors"
  }
}
`);
});

it("a tensor beyond the limit of a shard gets one of its own, and the shard before it goes on", async () => {
  const [x, large] = [tensor([1]), tensor(new Float32Array(10))];
  await saveCheckpoint(folder, { a: x, large, b: x }, { maxShardSize: 8 });
  expect(JSON.parse(readFileSync(join(folder, INDEX), "utf8")).weight_map).toEqual({
    a: "model-00002-of-00002.safetensors",
    b: "model-00002-of-00002.safetensors",
    large: "model-00001-of-00002.safetensors",
  });
});

describe("saving over a checkpoint", () => {
  const [x, y] = [tensor(new Float32Array(64).fill(1)), tensor(new Float32Array(64).fill(2))];
  const read = async () => {
    const source = await openCheckpoint(folder);
    const values = [];
    for (const name of source.names()) values.push([name, (await source.load(name)).floatsSync()[0]]);
    await source.close();
    return Object.fromEntries(values);
  };

  it("leaves no file of the old one, whichever of the two had shards", async () => {
    await saveCheckpoint(folder, { x, y }, { maxShardSize: 256 });
    writeFileSync(join(folder, "model-card.safetensors"), "");
    await saveCheckpoint(folder, { x: y });
    expect(readdirSync(folder).sort()).toEqual(["model-card.safetensors", "model.safetensors"]);
    expect(await read()).toEqual({ x: 2 });
    await saveCheckpoint(folder, { x, y: x }, { maxShardSize: 256 });
    expect(readdirSync(folder).filter((name) => name === "model.safetensors")).toEqual([]);
    expect(await read()).toEqual({ x: 1, y: 1 });
  });

  it("loses nothing when the disk is full half way", async () => {
    await saveCheckpoint(folder, { x, y }, { maxShardSize: 256 });
    const before = readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), "latin1")]);
    const large = tensor(new Float32Array(1 << 16));
    const limit = (bytes: string) => execFileSync("prlimit", ["--pid", String(process.pid), `--fsize=${bytes}:`]);
    const ignore = () => undefined;
    process.on("SIGXFSZ", ignore); // as a full disk: the write fails, the process goes on
    limit("100000");
    try {
      const save = saveCheckpoint(folder, { x: y, large }, { maxShardSize: 256 });
      await expect(save).rejects.toThrow(/model-0000\d-of-00002\.safetensors: could not be written: EFBIG/);
      await expect(save).rejects.toMatchObject({ code: "ERR_BNB_FILE" });
    } finally {
      limit("unlimited");
      process.off("SIGXFSZ", ignore);
    }
    expect(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), "latin1")])).toEqual(before);
    expect(await read()).toEqual({ x: 1, y: 2 });
  });
});

describe("an index that is refused", () => {
  const shard = "model-00001-of-00001.safetensors";
  const save = (name: string, tensors: Record<string, Tensor>) =>
    saveCheckpoint(folder, tensors).then(() => renameSync(join(folder, "model.safetensors"), join(folder, name)));

  it.each([
    ["no JSON", "{", "model.safetensors.index.json: is not JSON: ends"],
    ["no map", "{}", "must have an object weight_map"],
    ["an empty map", '{"weight_map":{}}', "weight_map is empty"],
    ["a name twice", '{"weight_map":{"x":"a.safetensors","x":"b.safetensors"}}', 'the key "x" for the second time'],
  ])("%s", async (_, text, message) => {
    writeIndex(text);
    await refused("ERR_BNB_FORMAT", message);
  });

  it.each([
    "../x.safetensors",
    "/x.safetensors",
    "a/x.safetensors",
    "..\\x.safetensors",
    "c:x.safetensors",
    "x\0.safetensors",
    ".safetensors",
    "x.bin",
    "",
    7,
  ])("the file %j", async (file) => {
    writeIndex({ x: file });
    await refused("ERR_BNB_FORMAT", `tensor "x" must lie in a file of the same folder that ends in .safetensors, got`);
  });

  it("a shard that is missing", async () => {
    writeIndex({ x: shard });
    await refused("ERR_BNB_FILE", `its shard ${shard} could not be opened: ENOENT`);
  });

  it("a tensor that its shard lacks", async () => {
    await save(shard, { y: tensor([1]) });
    writeIndex({ y: shard, x: shard });
    await refused("ERR_BNB_FORMAT", `tensor "x" is not in its shard ${shard}`);
  });

  it("a tensor in two shards", async () => {
    await save("a.safetensors", { x: tensor([1]), y: tensor([1]) });
    await save("b.safetensors", { x: tensor([2]), z: tensor([1]) });
    writeIndex({ x: "a.safetensors", z: "b.safetensors" });
    await refused("ERR_BNB_FORMAT", 'tensor "x" is in two shards, a.safetensors and b.safetensors');
  });

  it("a link out of the folder, while links into the hub's blobs are followed", async () => {
    await save(shard, { x: tensor([1]) });
    const blobs = join(folder, "blobs");
    const snapshot = join(folder, "snapshots", "0123");
    mkdirSync(blobs);
    mkdirSync(snapshot, { recursive: true });
    renameSync(join(folder, shard), join(blobs, "abc"));
    symlinkSync("../../blobs/abc", join(snapshot, shard));
    writeIndex({ x: shard });
    cpSync(join(folder, INDEX), join(snapshot, INDEX));
    const source = await openCheckpoint(snapshot);
    expect([...source.names()]).toEqual(["x"]);
    await source.close();
    const outside = join(root, "outside.safetensors");
    cpSync(join(blobs, "abc"), outside);
    symlinkSync(outside, join(folder, shard));
    await refused("ERR_BNB_FORMAT", `its shard ${shard} is a link that leaves the folder of the model`);
  });

  it("an empty folder", async () => {
    await refused("ERR_BNB_FILE", "must hold model.safetensors or model.safetensors.index.json, has neither");
  });
});
