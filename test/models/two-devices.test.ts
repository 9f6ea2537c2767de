// One model on two GPUs, with layers that wait in host memory or on disk: the same numbers as on one. On emulated devices,
// and on the fake CUDA runtime, which sees each call; in processes of their own, which have two of them.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { devices } from "../../src/index.js";
import { fixturePath } from "../helpers/safetensors.js";

const dist = join(import.meta.dirname, "..", "..", "dist");
const fake = process.env["BNB_FAKE_BINARY"];
const isEmulated = devices().some((device) => device.name === "emulated GPU");
const offloadFolder = mkdtempSync(join(tmpdir(), "bnb-two-devices-"));
afterAll(() => rmSync(offloadFolder, { recursive: true }));

interface Outcome {
  maps: Record<string, Record<string, string>>;
  /** By the map: logits of a forward, tokens of a batch. */
  logits: Record<string, number[]>;
  tokens: Record<string, number[][]>;
  /** Of the first and of the last layer, where the model can be trained. */
  gradients: Record<string, number[][]>;
  errors: Record<string, string>;
  leaked: Record<string, object>;
}

/** Loads a checkpoint by each of the maps, the first of which is the model in one piece. */
function run(path: string, maps: Record<string, object>, env: Record<string, string>): Outcome {
  const program = `
    const { AutoModelForCausalLM, complete, crossEntropy, memory, noGrad, synchronize, tensor, tidy } = require(${JSON.stringify(join(dist, "index.js"))});
    const outcome = { maps: {}, logits: {}, tokens: {}, errors: {}, leaked: {}, gradients: {} };
    const snapshot = async () => {
      await synchronize();
      const { tensors, devices } = memory();
      return { tensors, live: Object.values(devices).map(({ liveBytes }) => liveBytes) };
    };
    const one = async (name, options) => {
      const model = await AutoModelForCausalLM.fromPretrained(process.env.MODEL, options);
      outcome.maps[name] = model.deviceMap;
      const ids = tensor(Int32Array.of(3, 1, 4), { shape: [1, 3], device: model.device });
      const logits = tidy(() => noGrad(() => model.forward(ids)));
      outcome.logits[name] = [...(await logits.floats())];
      logits.dispose();
      ids.dispose();
      const found = await complete(model, [[1, 2, 3], [7]], { maxNewTokens: 2, minNewTokens: 2, eosTokenId: [] });
      outcome.tokens[name] = found.flat().map(({ tokens }) => [...tokens]);
      if (process.env.TRAINS) {
        const [a, b] = [0, 1].map((at) => tensor(Int32Array.of(5, 6, 7, 8).subarray(at, at + 3), { shape: [1, 3], device: model.device }));
        tidy(() => crossEntropy(model.forward(a), b).backward());
        const named = new Map(model.namedParameters());
        outcome.gradients[name] = await Promise.all(["model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"].map(async (key) => [...(await named.get(key).grad.floats())].slice(0, 1024)));
        a.dispose();
        b.dispose();
      }
      model.dispose();
    };
    (async () => {
      await one("first", { deviceMap: "cuda:0", ...JSON.parse(process.env.OPTIONS ?? "{}") });
      for (const [name, options] of Object.entries(JSON.parse(process.env.MAPS))) {
        const before = await snapshot();
        try { await one(name, options); } catch (error) { outcome.errors[name] = error.message; }
        const after = await snapshot();
        if (JSON.stringify(after) !== JSON.stringify(before)) outcome.leaked[name] = { before, after };
      }
      console.log(JSON.stringify(outcome));
    })().catch((error) => { console.error(error); process.exitCode = 1; });`;
  const child = spawnSync(process.execPath, ["-e", program], {
    encoding: "utf8",
    timeout: 240_000,
    env: { ...process.env, MODEL: path, MAPS: JSON.stringify(maps), ...env },
  });
  expect(`${child.signal ?? child.status}`, child.stderr).toBe("0");
  expect(child.stderr).not.toContain("fake CUDA:");
  return JSON.parse(child.stdout) as Outcome;
}

const llama = {
  split: { deviceMap: { "": 0, "model.layers.1": 1, "model.norm": 1 } },
  balanced: { deviceMap: "balanced" },
  auto: { deviceMap: "auto" },
  "second alone": { deviceMap: "cuda:1" },
  "host memory": { deviceMap: { "": 0, "model.layers": "cpu" } },
  disk: { deviceMap: { "": 1, "model.layers.0": "disk", lm_head: "disk" }, offloadFolder },
  "all at once": {
    deviceMap: {
      "model.embed_tokens": 0,
      "model.layers.0": "cpu",
      "model.layers.1": "disk",
      "model.norm": 1,
      lm_head: 1,
    },
    offloadFolder,
  },
};

function expectSame(outcome: Outcome, names: readonly string[]): void {
  expect(outcome.errors).toEqual({});
  expect(outcome.leaked).toEqual({});
  for (const name of names) {
    expect(outcome.logits[name], name).toEqual(outcome.logits["first"]);
    expect(outcome.tokens[name], name).toEqual(outcome.tokens["first"]);
  }
  expect(readdirSync(offloadFolder)).toEqual([]);
}

describe.runIf(isEmulated)("on two emulated GPUs", () => {
  const env = { BNB_EMULATED_DEVICES: "2" };

  it("llama in nf4", { timeout: 240_000 }, () => {
    const outcome = run(fixturePath("models/llama/nf4"), llama, env);
    expectSame(outcome, Object.keys(llama));
    const { maps } = outcome;
    expect(maps["auto"]).toEqual({ "": "cuda:0" });
    expect(maps["second alone"]).toEqual({ "": "cuda:1" });
    expect(new Set(Object.values(maps["balanced"]!))).toEqual(new Set(["cuda:0", "cuda:1"]));
    expect(maps["all at once"]).toEqual({
      "model.embed_tokens": "cuda:0",
      "model.layers.0": "cpu",
      "model.layers.1": "disk",
      "model.norm": "cuda:1",
      lm_head: "cuda:1",
    });
  });

  it("llama in training", { timeout: 240_000 }, () => {
    const { split } = llama;
    const { gradients, leaked } = run(fixturePath("models/llama/fp32"), { split }, { ...env, TRAINS: "1" });
    expect(gradients["first"]![0]!.some((value) => value !== 0)).toBe(true);
    expect(gradients["split"]).toEqual(gradients["first"]);
    expect(leaked).toEqual({});
  });

  it.each(["fp32", "int8"])("llama in %s", { timeout: 240_000 }, (variant) => {
    const { "all at once": all } = llama;
    expectSame(run(fixturePath(`models/llama/${variant}`), { all }, env), ["all"]);
  });

  it.each([
    ["gpt2", "transformer.h.1"],
    ["gemma2", "model.layers.1"],
    ["falcon", "transformer.h.1"],
    ["gpt-neox", "gpt_neox.layers.0"],
    ["mixtral", "model.layers.1"],
    ["llama-dynamic-ntk", "model.layers.0"],
  ])("%s", { timeout: 240_000 }, (name, layer) => {
    const maps = {
      split: { deviceMap: { "": 0, [layer]: 1 } },
      "host memory": { deviceMap: { "": "cpu", [layer]: 1 } },
    };
    expectSame(run(fixturePath(`families/${name}/fp32`), maps, env), Object.keys(maps));
  });

  it.each([
    ["llama-plain", { "": 0, lm_head: 1 }],
    ["gpt2", { "": 1, "transformer.h": 0 }],
  ])("%s with a quantized head", { timeout: 240_000 }, (name, deviceMap) => {
    const options = { quantizeHead: "nf4" };
    const maps = { split: { deviceMap, ...options } };
    const path = fixturePath(`families/${name}/fp32`);
    expectSame(run(path, maps, { ...env, OPTIONS: JSON.stringify(options) }), ["split"]);
  });

  it("says what is missing on which GPU", { timeout: 240_000 }, () => {
    const { errors } = run(
      fixturePath("models/llama/fp32"),
      {
        room: { maxMemory: { 0: 2000, cpu: "1GiB" } },
        folder: { maxMemory: { 0: "1.6MB", cpu: 0 } },
        other: { deviceMap: { "": "cuda:2" } },
      },
      env,
    );
    expect(errors["room"]).toMatch(/^deviceMap: cuda:0 must have room for two .*, got 2000 bytes: .* are missing$/);
    expect(errors["folder"]).toMatch(
      /^deviceMap: .* must wait on disk, as cuda:0 has no room for them: give offloadFolder/,
    );
    expect(errors["other"]).toBe("device: must be one of auto, cpu, cuda:0, cuda:1, got cuda:2");
  });
});

describe.runIf(fake !== undefined)("on the fake CUDA runtime", () => {
  it("copies beside the compute stream", { timeout: 240_000 }, () => {
    const { disk, "all at once": all } = llama;
    const maps = { disk, all };
    expectSame(run(fixturePath("models/llama/nf4"), maps, { BNB_BINARY: fake as string }), Object.keys(maps));
  });
});
