// The `bnb` command line: help, version and wrong usage, and the demo through the same door that users take.
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { demoCommand } from "../../src/cli/commands/demo.js";
import { checkClaims } from "../../src/cli/demo/checks.js";
import type { DemoResults } from "../../src/cli/demo/results.js";
import type { DemoSettings } from "../../src/cli/demo/settings.js";
import { quickSettings } from "../../src/cli/demo/settings.js";
import { printable } from "../../src/cli/terminal.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import { memory } from "../../src/tensor/scope.js";
import { bnb, Sink } from "../helpers/bnb.js";

const version = (JSON.parse(readFileSync("package.json", "utf8")) as { version: string }).version;

it("what a model wrote reaches a terminal without its control characters", () => {
  expect(printable("a\tb\n\x1b[31mc\x7f\x80\x9b2Jd\x9f\xa0é")).toBe("a\tb\n·[31mc···2Jd·\xa0é");
});

describe("main", () => {
  it("prints help and version", async () => {
    const help = await bnb("--help");
    expect(help.code).toBe(0);
    expect(help.stdout).toMatch(/^Usage: bnb <command>/);
    const commands = [...help.stdout.matchAll(/^ {2}([a-z][a-z-]+) {2,}\w/gm)].map(([, name]) => name as string);
    expect(commands).toEqual(expect.arrayContaining(["demo", "doctor", "estimate", "inspect", "make-model"]));
    for (const command of commands) {
      const own = await bnb(command, "--help");
      expect(own.code).toBe(0);
      expect(own.stdout).toContain(`Usage: bnb ${command} `);
      // What all share, and no line that a terminal would break.
      expect(own.stdout).toMatch(/ --json .*\n.* --quiet .*\n.* --debug .*\n.* --help /);
      expect(Math.max(...own.stdout.split("\n").map(({ length }) => length))).toBeLessThanOrEqual(120);
      expect(await bnb("help", command)).toEqual(own);
    }
    expect(await bnb("--version")).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });

  it("says what is wrong, on stderr, with exit code 2", async () => {
    expect((await bnb()).code).toBe(2);
    expect(await bnb("traim")).toMatchObject({ code: 2, stdout: "", stderr: expect.stringContaining("traim") });
    expect((await bnb("inspet")).stderr).toBe(
      'bnb: unknown command inspet (did you mean inspect?)\nTry "bnb --help".\n',
    );
    expect(await bnb("toString")).toMatchObject({ code: 2 });
    expect(await bnb("demo", "--sed", "1")).toMatchObject({
      code: 2,
      stderr: 'bnb demo: unknown option --sed (did you mean --seed?)\nTry "bnb demo --help".\n',
    });
    expect((await bnb("demo", "--quick=yes")).stderr).toMatch('--quick takes no value, got "yes"\n');
    expect((await bnb("demo", "--seed")).stderr).toMatch("--seed needs a value: --seed N\n");
    expect((await bnb("inspect")).stderr).toMatch("bnb inspect: <model> is missing\n");
    expect(await bnb("demo", "extra")).toMatchObject({ code: 2, stderr: expect.stringContaining("extra") });
    expect(await bnb("demo", "--seed", "x")).toMatchObject({
      code: 2,
      stderr: 'bnb demo: --seed must be a whole number of at least 0, got "x"\nTry "bnb demo --help".\n',
    });
    expect(await bnb("demo", "--text", "/no/such/file")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("/no/such/file must be a readable file"),
    });
    expect(await bnb("demo", "--device", "tpu")).toMatchObject({ code: 1, stderr: expect.stringContaining("tpu") });
    expect(await bnb("doctor", "--all")).toMatchObject({ code: 2 });
    expect(await bnb("doctor", "now")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('"now" is one word too'),
    });
  });

  it("finds a report that cannot be written before the work", async () => {
    const folder = mkdtempSync(join(tmpdir(), "bnb-cli-"));
    writeFileSync(join(folder, "file"), "");
    const refusing = process.platform === "linux" ? ["/proc/none/index.html"] : [];
    for (const path of [folder, join(folder, "file", "index.html"), ...refusing]) {
      const { code, stdout, stderr } = await bnb("demo", "--report", path);
      expect([code, stdout]).toEqual([2, ""]); // nothing was begun
      expect(stderr).toMatch(`bnb demo: --report must name a file that can be written, got ${path}`);
    }
    rmSync(folder, { recursive: true });
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

  async function run(name: string, ...args: string[]): Promise<{ code: number; text: string }> {
    const report = join(folder, `${name}/index.html`);
    const [stdout, stderr] = [new Sink(), new Sink()];
    const code = await demoCommand(tiny).run(["--report", report, ...args], { stdout, stderr, version });
    expect(existsSync(report)).toBe(true);
    return { code, text: stdout.text };
  }
  const resultsOf = async (name: string, ...args: string[]): Promise<DemoResults> =>
    JSON.parse((await run(name, "--json", ...args)).text) as DemoResults;

  it("measures everything it promises, writes the page and the JSON, and frees its memory", async () => {
    const before = memory();
    const { code, text } = await run("text");
    const results = await resultsOf("first");
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

    expect(results.checkpoint).toMatchObject({ logits: 40 * 256, largestDifference: 0 });
    const saved = await AutoModelForCausalLM.fromPretrained(results.checkpoint.folder);
    expect(saved.parameters().reduce((sum, { size }) => sum + size, 0)).toBe(results.parameters);
    expect(saved.tokenizer?.vocabSize).toBe(256);
    saved.dispose();

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
    const first = await resultsOf("a", ...texts, "--seed", "7");
    const second = await resultsOf("b", ...texts, "--seed", "7");
    const third = await resultsOf("c", ...texts, "--seed", "8");
    expect(first.text.source).toBe(own);
    expect(figures(second)).toEqual(figures(first));
    expect(figures(third).losses).not.toEqual(figures(first).losses);
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
      checkpoint: { folder: "model", bytes: 9, logits: 4, largestDifference: 0 },
      finetune: { perplexityBefore: 8, perplexityAfter: 4, baseHashBefore: "ab", baseHashAfter: "ab" },
    } as DemoResults;
    change(good);
    return good;
  };

  it("hold for figures within their bounds", () => {
    expect(checkClaims(results()).map(({ holds }) => holds)).toEqual(new Array<boolean>(7).fill(true));
  });

  const set = <T extends object>(part: T | undefined, change: Partial<T>) => void Object.assign(part as T, change);
  it.each<[index: number, change: (r: DemoResults) => void]>([
    [0, (r) => set(r.optimizers[1], { finalLoss: 2.05 })],
    [0, (r) => set(r.optimizers[1], { finalLoss: 1.95 })],
    [0, (r) => set(r.optimizers[1], { finalLoss: Number.NaN })],
    [1, (r) => set(r.variants[1], { perplexity: 10.2 })],
    [2, (r) => set(r.variants[2], { perplexity: 11.3 })],
    [3, (r) => void r.variants.pop()],
    [4, (r) => set(r.checkpoint, { largestDifference: 1e-7 })],
    [4, (r) => set(r.checkpoint, { largestDifference: Number.NaN })],
    [4, (r) => set(r.checkpoint, { logits: 0 })],
    [5, (r) => set(r.finetune, { baseHashAfter: "cd" })],
    [6, (r) => set(r.finetune, { perplexityAfter: 6 })],
  ])("claim %i fails beyond them", (index, change) => {
    const holds = checkClaims(results(change)).map((check) => check.holds);
    expect(holds).toEqual(holds.map((_, i) => i !== index));
  });
});
