// The `bnb` command line: help, version, exit codes, and the two commands through the same door that users take.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { demoCommand } from "../../src/cli/commands/demo.js";
import { checkClaims } from "../../src/cli/demo/checks.js";
import type { DemoResults } from "../../src/cli/demo/results.js";
import type { DemoSettings } from "../../src/cli/demo/settings.js";
import { quickSettings } from "../../src/cli/demo/settings.js";
import { main } from "../../src/cli/main.js";
import { devices } from "../../src/tensor/device.js";
import { memory } from "../../src/tensor/scope.js";

class Sink {
  text = "";
  write(text: string): void {
    this.text += text;
  }
}

async function bnb(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = [new Sink(), new Sink()];
  const code = await main(args, { stdout, stderr });
  return { code, stdout: stdout.text, stderr: stderr.text };
}

const version = (JSON.parse(readFileSync("package.json", "utf8")) as { version: string }).version;

describe("main", () => {
  it("prints help and version", async () => {
    const help = await bnb("--help");
    expect(help.code).toBe(0);
    expect(help.stdout).toMatch(/^Usage: bnb <command>/);
    for (const command of ["demo", "info"]) {
      expect(help.stdout).toContain(`  ${command} `);
      const own = await bnb(command, "--help");
      expect(own.code).toBe(0);
      expect(own.stdout).toContain(`Usage: bnb ${command}`);
    }
    expect(await bnb("--version")).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });

  it("says what is wrong, on stderr, with exit code 2", async () => {
    expect((await bnb()).code).toBe(2);
    expect(await bnb("traim")).toMatchObject({ code: 2, stdout: "", stderr: expect.stringContaining('"traim"') });
    expect(await bnb("toString")).toMatchObject({ code: 2 });
    expect(await bnb("demo", "--sed", "1")).toMatchObject({ code: 2, stderr: expect.stringContaining("--sed") });
    expect(await bnb("demo", "extra")).toMatchObject({ code: 2, stderr: expect.stringContaining("extra") });
    expect(await bnb("demo", "--seed", "x")).toMatchObject({
      code: 2,
      stderr: 'bnb demo: demo: --seed must be a whole number of at least 0, got x\nTry "bnb demo --help".\n',
    });
    expect(await bnb("demo", "--text", "/no/such/file")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("/no/such/file must be a readable file"),
    });
    expect(await bnb("demo", "--device", "tpu")).toMatchObject({ code: 1, stderr: expect.stringContaining("tpu") });
    expect(await bnb("info", "--all")).toMatchObject({ code: 2 });
  });

  it("finds a report that cannot be written before the work", async () => {
    const folder = mkdtempSync(join(tmpdir(), "bnb-cli-"));
    writeFileSync(join(folder, "file"), "");
    for (const option of ["--report", "--json"]) {
      const sink = new Sink();
      const expected = `demo: ${option} must name a file that can be written, got ${folder}`;
      for (const path of [folder, join(folder, "file", "index.html")]) {
        expect(await main(["demo", option, path], { stdout: sink, stderr: sink })).toBe(2);
        expect(sink.text).toContain(expected);
      }
      // Nothing was begun.
      expect(sink.text).toMatch(/^bnb demo: /);
    }
    rmSync(folder, { recursive: true });
  });

  it("ends quietly when nobody reads what it prints", () => {
    const command = `"${process.execPath}" dist/cli/main.js --help; echo "ended with $?" >&2`;
    // The reader is gone before the program writes.
    const { stderr } = spawnSync("sh", ["-c", `{ sleep 0.3; ${command}; } | true`], { encoding: "utf8" });
    expect(stderr).toBe("ended with 141\n");
  });

  it("info names the versions, the device and its instruction set", async () => {
    const { code, stdout } = await bnb("info");
    expect(code).toBe(0);
    expect(stdout).toContain(version);
    expect(stdout).toContain(process.versions.node);
    expect(stdout).toMatch(/cpu .*(base|avx2|avx512), \d+ threads/);
    // A GPU with its libraries, or why there is none.
    expect(stdout).toMatch(devices().length > 1 ? /cuda:0 .*\n.*cuBLASLt: / : /^GPU +\w/m);
  });
});

describe("demo", () => {
  const tiny: DemoSettings = {
    ...quickSettings,
    model: { ...quickSettings.model, hiddenSize: 64, intermediateSize: 128, numHiddenLayers: 1, numKeyValueHeads: 2 },
    pretrain: { steps: 6, shortSteps: 3, batchSize: 4, sequenceLength: 32, learningRate: 4e-3, warmupSteps: 2 },
    finetune: { ...quickSettings.finetune, steps: 4, shortSteps: 0, batchSize: 4, sequenceLength: 32, warmupSteps: 1 },
    evaluationBatches: 2,
    speedTokens: 4,
    sampleTokens: 16,
  };
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "demo-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  async function run(name: string, ...args: string[]): Promise<{ code: number; text: string; results: DemoResults }> {
    const stdout = new Sink();
    const [report, json] = [join(folder, `${name}/index.html`), join(folder, `${name}.json`)];
    const context = { stdout, stderr: new Sink(), version };
    const code = await demoCommand(tiny).run(["--report", report, "--json", json, ...args], context);
    expect(existsSync(report)).toBe(true);
    return { code, text: stdout.text, results: JSON.parse(readFileSync(json, "utf8")) as DemoResults };
  }

  it("measures everything it promises, writes the page and the JSON, and frees its memory", async () => {
    const before = memory();
    const { code, text, results } = await run("first");
    expect(results).toMatchObject({ version, seed: 1, settings: { pretrain: { steps: 6 } } });
    expect(results.parameters).toBe(
      256 * 64 + 64 + 2 * 64 + 64 * (64 + 32 + 32 + 64) * (tiny.model.hiddenSize / 64) + 3 * 64 * 128,
    );

    expect(results.optimizers.map(({ name }) => name)).toEqual(["AdamW", "AdamW8bit"]);
    const [adamw32, adamw8] = results.optimizers;
    expect(adamw32?.stateBytes).toBe(8 * results.parameters);
    expect(adamw8?.stateBytes).toBeLessThan(0.6 * 8 * results.parameters);
    for (const { losses, heldOutPerplexity, tokensPerSecond } of results.optimizers) {
      expect(losses).toHaveLength(6);
      expect(losses[0]).toBeCloseTo(Math.log(256), 0);
      expect(losses.at(-1)).toBeLessThan(losses[0] as number);
      expect(heldOutPerplexity).toBeGreaterThan(1);
      expect(tokensPerSecond).toBeGreaterThan(0);
    }

    expect(results.variants.map(({ name }) => name)).toEqual(["float32", "INT8", "FP4", "NF4", "NF4 + DQ"]);
    const [float, int8, fp4, nf4, nested] = results.variants;
    expect(float).toMatchObject({ bytes: 4 * results.parameters, ratio: 1, bitsPerWeight: 32 });
    expect(int8?.bytes).toBeLessThan(float?.bytes as number);
    expect(fp4?.bytes).toBeLessThan(int8?.bytes as number);
    expect(fp4?.bytes).toBe(nf4?.bytes);
    expect(nested?.bitsPerWeight).toBeLessThan(nf4?.bitsPerWeight as number);

    expect(results.finetune.losses).toHaveLength(4);
    expect(results.finetune.baseHashBefore).toMatch(/^[0-9a-f]{64}$/);
    expect(results.finetune.baseHashAfter).toBe(results.finetune.baseHashBefore);
    expect(results.samples).toHaveLength(2);
    for (const { prompt, text: sample, eventLoopP99Ms } of results.samples) {
      expect(text).toContain(prompt + sample);
      expect(eventLoopP99Ms).toBeGreaterThan(0);
    }
    expect(code).toBe(results.checks.every(({ holds }) => holds) ? 0 : 1);

    const page = readFileSync(join(folder, "first/index.html"), "utf8");
    expect(page).toMatch(/^<!doctype html>/);
    expect(page.match(/<svg /g)).toHaveLength(2);
    expect(page).not.toMatch(/(src|href)=|url\(|@import/);
    expect(memory().liveBytes).toBe(before.liveBytes);
    expect(memory().tensors).toBe(before.tensors);
  });

  it("prints the same losses for a seed and others for another, and reads texts of the user's", async () => {
    const own = join(folder, "own.txt");
    writeFileSync(own, "A text of one's own, long enough to train on it a little. ".repeat(2000));
    // Three demos: on the CPU, where they are quick. That a GPU gives the same twice is tested with the ops.
    const texts = ["--text", own, "--style", own, "--device", "cpu"];
    const figures = ({ optimizers, variants, finetune, samples }: DemoResults) => ({
      losses: optimizers.map(({ losses }) => losses),
      perplexities: variants.map(({ perplexity }) => perplexity),
      finetune: [finetune.losses, finetune.perplexityBefore, finetune.perplexityAfter, finetune.baseHashAfter],
      texts: samples.map(({ text }) => text),
    });
    const first = await run("a", ...texts, "--seed", "7");
    const second = await run("b", ...texts, "--seed", "7");
    const third = await run("c", ...texts, "--seed", "8");
    expect(first.results.text.source).toBe(own);
    expect(figures(second.results)).toEqual(figures(first.results));
    expect(figures(third.results).losses).not.toEqual(figures(first.results).losses);
  });
});

describe("claims", () => {
  const results = (change: (r: DemoResults) => void = () => {}): DemoResults => {
    const good = {
      optimizers: [{ finalLoss: 2 }, { finalLoss: 2.03 }],
      variants: [
        { name: "float32", perplexity: 10 },
        { name: "INT8", perplexity: 10.05 },
        { name: "NF4", perplexity: 11 },
        { name: "NF4 + DQ", perplexity: 11.1 },
      ],
      finetune: { perplexityBefore: 8, perplexityAfter: 4, baseHashBefore: "ab", baseHashAfter: "ab" },
    } as DemoResults;
    change(good);
    return good;
  };

  it("hold for figures within their bounds", () => {
    expect(checkClaims(results()).map(({ holds }) => holds)).toEqual(new Array<boolean>(6).fill(true));
  });

  const set = <T extends object>(part: T | undefined, change: Partial<T>) => void Object.assign(part as T, change);
  it.each<[index: number, change: (r: DemoResults) => void]>([
    [0, (r) => set(r.optimizers[1], { finalLoss: 2.05 })],
    [0, (r) => set(r.optimizers[1], { finalLoss: 1.95 })],
    [0, (r) => set(r.optimizers[1], { finalLoss: Number.NaN })],
    [1, (r) => set(r.variants[1], { perplexity: 10.2 })],
    [2, (r) => set(r.variants[2], { perplexity: 11.3 })],
    [3, (r) => void r.variants.pop()],
    [4, (r) => set(r.finetune, { baseHashAfter: "cd" })],
    [5, (r) => set(r.finetune, { perplexityAfter: 6 })],
  ])("claim %i fails beyond them", (index, change) => {
    const holds = checkClaims(results(change)).map((check) => check.holds);
    expect(holds).toEqual(holds.map((_, i) => i !== index));
  });
});
