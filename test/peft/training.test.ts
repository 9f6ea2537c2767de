// Training as torch and Python's peft do it: losses of ten steps, gradients, final adapters; and starts from the weights.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { noGrad } from "../../src/autograd/no-grad.js";
import { openSafetensors } from "../../src/hub/safetensors.js";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import { Embedding, Linear, Linear4bit, Linear8bitLt, Sequential } from "../../src/nn/index.js";
import { crossEntropy, Generator, randn, slice } from "../../src/ops/index.js";
import { AdamW } from "../../src/optim/index.js";
import type { PeftModel as Peft } from "../../src/peft/index.js";
import { getPeftModel, LoraConfig, LoraLinear, PeftModel } from "../../src/peft/index.js";
import { tensor } from "../../src/tensor/create.js";
import { tidy } from "../../src/tensor/scope.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { expectClose } from "../helpers/expect-close.js";
import { own } from "../helpers/owned.js";

const scratch = mkdtempSync(join(tmpdir(), "bnb-peft-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const load = async (folder: string): Promise<CausalLM> => own(await AutoModelForCausalLM.fromPretrained(folder));
const values = (t: Tensor) => Array.from(t.floatsSync());
async function tensorsIn(path: string): Promise<Map<string, Tensor>> {
  const source = await openSafetensors(path);
  const found = new Map<string, Tensor>();
  for (const name of source.names()) found.set(name, own(await source.load(name)));
  await source.close();
  return found;
}

interface Run {
  losses: number[];
  gradients: Map<string, number[]>;
}
const key = (path: string) =>
  path
    .replace(/^model\./, "base_model.model.")
    .replace(/\.default\.(lora_[AB])$/, ".$1.weight")
    .replace(".default.trainable_tokens_delta", ".token_adapter.trainable_tokens_delta")
    .replace(".default.lora_magnitude", ".lora_magnitude");

/** Ten steps of AdamW over what learns, and the gradients of one of them. */
function train(peft: Peft<CausalLM>, batches: Tensor, lr: number, gradientsOf: number): Run {
  const learning = peft.namedParameters().filter(([, { requiresGrad }]) => requiresGrad);
  const optimizer = own(
    new AdamW(
      learning.map(([, parameter]) => parameter),
      { lr, weightDecay: 0 },
    ),
  );
  const [, rows, length] = batches.shape as [number, number, number];
  const losses: number[] = [];
  const gradients = new Map<string, number[]>();
  for (let step = 0; step < 10; step++) {
    tidy(() => {
      const ids = slice(batches, 0, step, step + 1).reshape([rows, length]);
      const logits = slice(peft.forward(ids), 1, 0, length - 1);
      const loss = crossEntropy(
        logits.reshape([rows * (length - 1), logits.shape[2] as number]),
        slice(ids, 1, 1, length).reshape([-1]),
      );
      loss.backward();
      losses.push(loss.itemSync());
    });
    if (step === gradientsOf) for (const [path, { grad }] of learning) gradients.set(key(path), values(grad as Tensor));
    optimizer.step();
    optimizer.zeroGrad();
  }
  return { losses, gradients };
}

/** 99 % of the elements within a bound: where a gradient is almost zero, Adam's first step has a sign by chance. */
function expectMostClose(found: number[], want: number[], atol: number): void {
  const far = found.filter((v, i) => Math.abs(v - want[i]!) > atol).length;
  expect(far).toBeLessThanOrEqual(Math.max(1, 0.01 * found.length));
}

describe("ten steps of AdamW", () => {
  const traces = "test/fixtures/adapters/traces";
  const { runs, optimizer } = JSON.parse(readFileSync(`${traces}/trace.json`, "utf8"));
  it.each(Object.keys(runs))("of %s", async (name) => {
    const model = await load("test/fixtures/families/llama-plain/fp32");
    const peft = await PeftModel.fromPretrained(model, `${traces}/${name}/init`, { isTrainable: true });
    const batches = (await tensorsIn(`${traces}/micro_batches.safetensors`)).get("input_ids") as Tensor;
    const { losses, gradients } = train(peft, batches, optimizer.lr, 1);
    losses.forEach((loss, i) => {
      expect(Math.abs(loss - runs[name].losses[i])).toBeLessThan(2e-5 + 2e-5 * i);
    });
    const folder = join(scratch, name);
    await peft.savePretrained(folder);
    const final = await tensorsIn(`${traces}/${name}/final/adapter_model.safetensors`);
    const ours = await tensorsIn(join(folder, "adapter_model.safetensors"));
    expect([...ours.keys()]).toEqual([...final.keys()]);
    for (const [path, want] of final) expectMostClose(values(ours.get(path) as Tensor), values(want), 2e-4);
    const wanted = await tensorsIn(`${traces}/${name}/grads_step2.safetensors`);
    expect(gradients.size).toBe(wanted.size);
    const all = [...gradients];
    for (const [path, want] of wanted) {
      const plain = path
        .replace("modules_to_save.", "")
        .replace("lora_magnitude_vector.weight", "lora_magnitude_vector");
      const found = all.find(([own]) => own.endsWith(plain) || (plain === "lm_head.weight" && own.includes("lm_head")));
      expectClose(found?.[1] ?? [], values(want), { atol: 2e-5, rtol: 1e-3 });
    }
  });

  it("over NF4 weights", async () => {
    const folder = "test/fixtures/peft/qlora";
    const trace = JSON.parse(readFileSync(`${folder}/trace.json`, "utf8"));
    const model = await load("test/fixtures/models/llama/nf4");
    const peft = getPeftModel(model, new LoraConfig({ r: 4, loraAlpha: 8, targetModules: ["q_proj", "v_proj"] }));
    const start = await tensorsIn(`${folder}/init_adapter.safetensors`);
    for (const [path, layer] of peft.layers) {
      const [loraA, loraB] = ["A", "B"].map((which) => start.get(`${path}.lora_${which}.weight`) as Tensor) as [
        Tensor,
        Tensor,
      ];
      (layer as LoraLinear).adapters.get("default")!.assign({ loraA, loraB });
    }
    const batches = (await tensorsIn(`${folder}/micro_batches.safetensors`)).get("input_ids") as Tensor;
    const { losses, gradients } = train(peft, batches, trace.runs.adamw.lr, 0);
    losses.forEach((loss, i) => {
      expect(Math.abs(loss - trace.runs.adamw.micro_batch_losses[i])).toBeLessThan(1e-4 + 2e-5 * i);
    });
    for (const [path, want] of await tensorsIn(`${folder}/grads_step1_adamw.safetensors`)) {
      const found = gradients.get(`base_model.model.${path}`) ?? [];
      expectClose(found, values(want), { atol: 2e-5, rtol: 2e-3 });
    }
    for (const [path, want] of await tensorsIn(`${folder}/final_adapter_adamw.safetensors`)) {
      const [, layer, which] = /(.*)\.lora_([AB])\.weight/.exec(path) as unknown as [string, string, "A" | "B"];
      const adapter = (peft.layers.get(layer) as LoraLinear).adapters.get("default")!;
      expectMostClose(values(which === "A" ? adapter.loraA : adapter.loraB), values(want), 2e-4);
    }
  });
});

describe("DoRA", () => {
  const bases: [string, () => Linear][] = [
    ["Linear", () => new Linear(64, 24, { generator: new Generator(2) })],
    ["Linear4bit", () => new Linear4bit(64, 24, { quantType: "nf4", generator: new Generator(2) })],
    ["Linear8bitLt", () => new Linear8bitLt(64, 24, { hasFp16Weights: false, generator: new Generator(2) })],
  ];
  it.each(bases)("over %s is m (W + s B A) / |W + s B A|, merged or not", (_, makeBase) => {
    const layer = own(
      new LoraLinear(makeBase(), {
        r: 3,
        loraAlpha: 6,
        useDora: true,
        initLoraWeights: false,
        generator: new Generator(4),
      }),
    );
    const adapter = layer.adapters.get("default")!;
    const m = values(adapter.magnitude as Tensor).map((v, i) => v * (1 + 0.1 * (i % 5)));
    layer.loadStateDict({ "default.lora_magnitude_vector": own(tensor(m)) }, { strict: false });
    const x = own(randn([5, 64], { generator: new Generator(6) }));
    const forward = () => noGrad(() => tidy(() => values(layer.forward(x))));
    const unmerged = forward();
    // float64, from the weights that the base computes with.
    const base = noGrad(() =>
      tidy(() => {
        const eye = tensor(
          Float32Array.from({ length: 64 * 64 }, (_, i) => (i % 65 === 0 ? 1 : 0)),
          { shape: [64, 64] },
        );
        const bias = values(layer.baseLayer.stateDict().get("bias") as Tensor);
        return values(layer.baseLayer.forward(eye)).map((v, at) => v - bias[at % 24]!);
      }),
    );
    const bias = values(layer.baseLayer.stateDict().get("bias") as Tensor);
    const [a, b] = [values(adapter.loraA), values(adapter.loraB)];
    const rows = Array.from({ length: 24 }, (_, o) =>
      Array.from(
        { length: 64 },
        (_, i) => base[i * 24 + o]! + 2 * [0, 1, 2].reduce((sum, k) => sum + b[o * 3 + k]! * a[k * 64 + i]!, 0),
      ),
    );
    const want = Array.from({ length: 5 * 24 }, (_, at) => {
      const [n, o] = [Math.floor(at / 24), at % 24];
      const row = rows[o]!;
      const scale = m[o]! / Math.hypot(...row);
      return bias[o]! + scale * row.reduce((sum, w, i) => sum + w * x.floatsSync()[n * 64 + i]!, 0);
    });
    const tolerance = makeBase() instanceof Linear8bitLt ? 0.06 : 1e-4;
    expectClose(unmerged, want, { atol: tolerance, rtol: 1e-4 });
  });
});

describe("starts from the base's weights", () => {
  const plain = "test/fixtures/families/llama-plain/fp32";
  const info = JSON.parse(readFileSync("test/fixtures/adapters/expected.json", "utf8")).pissa;
  async function logitsOf(model: CausalLM): Promise<number[]> {
    const ids = (await tensorsIn("test/fixtures/adapters/expected.safetensors")).get("input_ids") as Tensor;
    return noGrad(() => tidy(() => values(model.forward(ids))));
  }
  const config = (initLoraWeights: "pissa" | "olora" | "loftq", more = {}) =>
    new LoraConfig({ r: 4, loraAlpha: 8, targetModules: ["q_proj", "up_proj"], initLoraWeights, ...more });

  it("pissa: the part of the largest singular values, as peft's", async () => {
    const model = await load(plain);
    const peft = getPeftModel(model, config("pissa"));
    const expected = await tensorsIn("test/fixtures/adapters/expected.safetensors");
    expectClose(await logitsOf(model), values(expected.get("pissa.logits") as Tensor), { atol: 3e-4, rtol: 0 });
    for (const path of Object.keys(info.modules)) {
      const layer = peft.layers.get(path) as LoraLinear;
      const delta = noGrad(() => tidy(() => values(layer.updateOf(layer.adapters.get("default")!))));
      expectClose(delta, values(expected.get(`pissa.delta.${path}.weight`) as Tensor), { atol: 1e-5, rtol: 0 });
    }
  });

  it.each(["pissa", "olora"] as const)("%s changes no logit, is saved for both bases, and given back", async (kind) => {
    const model = await load(plain);
    const before = await logitsOf(model);
    const peft = getPeftModel(model, config(kind));
    expectClose(await logitsOf(model), before, { atol: 1e-4, rtol: 0 });
    for (const layer of peft.layers.values()) {
      const { loraB } = (layer as LoraLinear).adapters.get("default")!;
      const grown = own(noGrad(() => loraB.mul(1.5)));
      layer.loadStateDict({ "default.lora_B": grown }, { strict: false });
    }
    const trained = await logitsOf(model);
    const [same, converted] = [join(scratch, `${kind}-same`), join(scratch, `${kind}-plain`)];
    const warned = new Promise<Error>((resolve) => process.once("warning", resolve));
    await peft.savePretrained(same);
    expect((await warned).message).toContain(`the adapter belongs to a base that "${kind}" took a part from`);
    await peft.savePretrained(converted, { convertStart: true });
    for (const folder of [same, converted]) {
      const again = await load(plain);
      const loaded = await PeftModel.fromPretrained(again, folder);
      expect(loaded.peftConfig.get("default")?.r).toBe(folder === same ? 4 : 8);
      expectClose(await logitsOf(again), trained, { atol: 3e-4, rtol: 0 });
    }
    peft.unload();
    expectClose(await logitsOf(model), before, { atol: 1e-4, rtol: 0 });
  });

  it("loftq makes the base 4-bit, with less loss than that alone", async () => {
    const error = async (iterations: number | null): Promise<number> => {
      const model = await load(plain);
      const weights = new Map([...model.stateDict()].map(([name, t]) => [name, values(t)]));
      const peft = getPeftModel(model, config("loftq", { loftqConfig: { loftqIter: iterations ?? 1 } }));
      let sum = 0;
      for (const [path, layer] of peft.layers) {
        expect(layer.baseLayer).toBeInstanceOf(Linear4bit);
        if (iterations === null) layer.setEnabled(false);
        const { inFeatures: n } = layer as LoraLinear;
        const eye = own(
          tensor(
            Float32Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0)),
            { shape: [n, n] },
          ),
        );
        const found = noGrad(() => tidy(() => values((layer as LoraLinear).forward(eye).transpose())));
        const want = weights.get(`${path}.weight`)!;
        sum += found.reduce((s, v, i) => s + (v - want[i]!) ** 2, 0);
      }
      return sum;
    };
    const alone = await error(null);
    const once = await error(1);
    const thrice = await error(3);
    expect(once).toBeLessThan(0.8 * alone);
    expect(thrice).toBeLessThan(once);
  });

  it("loftq of several iterations says that its base goes with it; of one it is that of any 4-bit base", async () => {
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => undefined);
    for (const [loftqIter, isTold] of [
      [1, false],
      [3, true],
    ] as const) {
      warn.mockClear();
      const model = await load(plain);
      const peft = getPeftModel(model, config("loftq", { loftqConfig: { loftqIter } }));
      const started = await logitsOf(model);
      const folder = join(scratch, `loftq-${loftqIter}`);
      await peft.savePretrained(folder);
      const told = warn.mock.calls.map(([message]) => String(message));
      expect(told.some((text) => text.includes('4-bit base that "loftq" made in 3 iterations'))).toBe(isTold);
      // Over the same layers quantized by themselves.
      const again = await load(plain);
      const other = getPeftModel(again, config("loftq"));
      const quantized = other.unload() as CausalLM;
      await PeftModel.fromPretrained(quantized, folder);
      const far = (await logitsOf(quantized)).reduce((most, v, i) => Math.max(most, Math.abs(v - started[i]!)), 0);
      if (isTold) expect(far).toBeGreaterThan(1e-2);
      else expect(far).toBeLessThan(1e-4);
    }
    warn.mockRestore();
  });

  it("take the largest singular values of large matrices by iteration", () => {
    const model = own(new Sequential(new Linear(200, 260, { bias: false })));
    const [u, v, noise] = [
      [260, 2],
      [2, 200],
      [260, 200],
    ].map((shape, i) => own(randn(shape, { generator: new Generator(i + 1) })));
    const low = own(u!.matmul(v!));
    const weight = own(low.add(own(noise!.mul(1e-3))));
    model.loadStateDict({ "0.weight": weight });
    const peft = getPeftModel(model, new LoraConfig({ r: 2, targetModules: ["0"], initLoraWeights: "pissa" }));
    const layer = peft.layers.get("0") as LoraLinear;
    const delta = noGrad(() => tidy(() => values(layer.updateOf(layer.adapters.get("default")!))));
    expectClose(delta, values(low), { atol: 2e-3, rtol: 0 });
    const rest = values(layer.baseLayer.stateDict().get("weight") as Tensor);
    expect(Math.sqrt(rest.reduce((sum, r) => sum + r * r, 0) / rest.length)).toBeLessThan(1.05e-3);
  });

  it("need floats", async () => {
    const model = await load("test/fixtures/models/llama/nf4");
    expect(() => getPeftModel(model, config("pissa"))).toThrow(
      'getPeftModel: initLoraWeights "pissa" needs a Linear of floats, got Linear4bit at model.layers.0.self_attn.q_proj',
    );
  });
});

it("DoRA leaves nothing of a forward pass in a tidy", async () => {
  const model = own(new Sequential(new Embedding(8, 4), new Linear(4, 6)));
  const config = new LoraConfig({ r: 2, targetModules: "0|1", useDora: true });
  const peft = own(getPeftModel(model, config));
  const ids = own(tensor([1, 5, 3], { dtype: "int32" }));
  await expect(() => tidy(() => void peft.forward(ids))).toLeakNothing();
});
