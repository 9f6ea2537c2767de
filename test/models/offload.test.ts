// Models larger than the memory that they may have: parts wait on disk and are there while they compute. The same tokens
// as the model in memory, within the limit, and nothing left behind.
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  AutoModelForCausalLM,
  BitsAndBytesConfig,
  complete,
  emptyCache,
  Generator,
  memory,
  noGrad,
  savePretrained,
  synchronize,
  tensor,
  tidy,
} from "../../src/index.js";
import type { CausalLM, FromPretrainedOptions } from "../../src/models/index.js";
import { testDevices } from "../helpers/devices.js";
import { sixLayers } from "../helpers/six-layers.js";

const config = sixLayers("float32");

const root = mkdtempSync(join(tmpdir(), "bnb-offload-"));
const folder = join(root, "model");
const offloadFolder = join(root, "offload");
beforeAll(async () => {
  using model = AutoModelForCausalLM.fromConfig(config, { generator: new Generator(7), device: "cpu" });
  await savePretrained(model, folder);
});
afterAll(() => rmSync(root, { recursive: true }));

const load = (options: FromPretrainedOptions = {}): Promise<CausalLM> =>
  AutoModelForCausalLM.fromPretrained(folder, options);
const liveBytes = () => memory().devices["cpu"]!.liveBytes;
const prompts = [[1, 2, 3], [90, 5, 60, 7, 100, 33, 2], [44]];

async function tokensOf(model: CausalLM): Promise<number[][]> {
  const greedy = { maxNewTokens: 12, minNewTokens: 12, eosTokenId: [] };
  const batch = await complete(model, prompts, greedy);
  const alone = await complete(model, prompts.slice(1, 2), greedy);
  return [...batch, ...alone].flat().map(({ tokens }) => [...tokens]);
}

const formats: Record<string, FromPretrainedOptions> = {
  float32: {},
  nf4: {
    quantizationConfig: new BitsAndBytesConfig({
      loadIn4bit: true,
      bnb4bitQuantType: "nf4",
      bnb4bitUseDoubleQuant: true,
    }),
  },
  int8: { quantizationConfig: new BitsAndBytesConfig({ loadIn8bit: true }) },
};

// A run for a GPU leaves the CPU to the run without one.
describe.runIf(testDevices().includes("cpu")).each(Object.entries(formats))("%s", (_, options) => {
  it("gives the same tokens within memory below the model's, and leaves nothing", async () => {
    const whole = await load({ ...options, deviceMap: "cpu" });
    const expected = await tokensOf(whole);
    expect(new Set(expected.flat()).size).toBeGreaterThan(5);
    const footprint = whole.memoryFootprint();
    whole.dispose();
    await synchronize();
    emptyCache();
    const before = memory();

    const cpu = Math.floor(0.7 * footprint);
    const model = await load({ ...options, maxMemory: { cpu }, offloadFolder });
    expect(new Set(Object.values(model.deviceMap))).toEqual(new Set(["cpu", "disk"]));
    expect(model.memoryFootprint()).toBe(footprint);
    // As ever, a load has two tensors in hand beside the model: here of 128 by 256 floats.
    const most = memory().devices["cpu"]!.peakBytes - before.devices["cpu"]!.liveBytes;
    expect(most).toBeLessThan(cpu + 2 * 131_072);
    const loaded = liveBytes() - before.devices["cpu"]!.liveBytes;
    expect(loaded).toBeLessThan(cpu);
    emptyCache();
    const logits = tidy(() => noGrad(() => model.forward(tensor(Int32Array.of(5), { shape: [1, 1], device: "cpu" }))));
    await logits.data();
    logits.dispose();
    const peak = memory().devices["cpu"]!.peakBytes - before.devices["cpu"]!.liveBytes;
    // Beside the weights: rotary tables, one token's activations.
    expect(peak).toBeLessThan(cpu + 64 * 1024);
    expect(await tokensOf(model)).toEqual(expected);
    expect(readdirSync(offloadFolder)).toEqual([]);
    model.dispose();
    await synchronize();
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  });
});
