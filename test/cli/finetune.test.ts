// `bnb finetune`: what it leaves, that the result is used as it says, and what it refuses; killed and out of room, it goes on.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { finetuneSettings } from "../../src/cli/finetune/settings.js";
import {
  AutoModelForCausalLM,
  AutoTokenizer,
  BitsAndBytesConfig,
  noGrad,
  PeftModel,
  tensor,
  tidy,
} from "../../src/index.js";
import { seededRandom } from "../../src/models/seeded-random.js";
import { resolveArguments, warmupOf } from "../../src/train/arguments.js";
import { bnb, bnbJson } from "../helpers/bnb.js";

const root = mkdtempSync(join(tmpdir(), "bnb-finetune-"));
afterAll(() => rmSync(root, { recursive: true }));
const model = join(root, "model");
const data = join(root, "data.jsonl");
const program = join("dist", "cli", "main.js");

const rows = Array.from({ length: 10 }, (_, i) => ({
  messages: [
    { role: "user", content: `${i} + 1?` },
    { role: "assistant", content: `It is ${i + 1}.` },
  ],
}));
const lines = (list: readonly unknown[]): string => list.map((row) => `${JSON.stringify(row)}\n`).join("");
let files = 0;
const file = (text: string, ending = "jsonl"): string => {
  const path = join(root, `file${files++}.${ending}`);
  writeFileSync(path, text);
  return path;
};
let outputs = 0;
const newOutput = (): string => join(root, `out${outputs++}`);

beforeAll(async () => {
  const sizes = ["--hidden-size", "64", "--intermediate-size", "64", "--layers", "1", "--positions", "96"];
  const { code } = await bnb("make-model", model, ...sizes, "--dtype", "float32", "--device", "cpu");
  expect(code).toBe(0);
  writeFileSync(data, lines(rows));
});

interface Result {
  task: string;
  evaluation: Record<string, number> | null;
  base: string;
  steps: number;
  loss: number;
  evalLoss: number;
  trainable: number;
  report: string;
  texts: { prompt: string; before: string; after: string; wanted: string | null }[];
  commands: string[];
}
const run = (output: string, ...more: string[]) =>
  bnbJson<Result>("finetune", model, "--data", data, "--output", output, "--device", "cpu", ...more);
const refusal = async (...args: string[]): Promise<[number, string]> => {
  const { code, stderr } = await bnb("finetune", model, "--device", "cpu", ...args);
  return [code, stderr.replace(/\n(Try .*\n)?$/, "")];
};

describe("a fine-tuning", () => {
  it("learns the data, and the commands that it names use the result", async () => {
    const output = newOutput();
    const config = file(
      "# rates\ntraining:\n  learningRate: 2.0e-2\n  evalSteps: 10\nlora: {r: 4, loraDropout: 0, modulesToSave: [lm_head]}\n",
      "yaml",
    );
    const settings = ["--config", config, "--eval-data", data, "--steps", "30", "--r", "8"];
    const result = await run(output, ...settings, "--accumulate", "1", "--base", "nf4");
    expect([result.base, result.steps]).toEqual(["nf4", 30]);
    // 4 + 3 layers: r of the option, not of the file, beside 64 inputs and 64 or 32 outputs each.
    const saved = JSON.parse(readFileSync(join(output, "adapter_config.json"), "utf8"));
    expect(saved).toMatchObject({ r: 8, lora_alpha: 16, base_model_name_or_path: model, peft_type: "LORA" });
    expect(result.trainable).toBe(8 * (5 * 128 + 2 * 96) + 259 * 64);
    expect(result.evalLoss).toBeLessThan(2);
    // What it says after is what the data has; before it was noise.
    const [first] = result.texts;
    expect(first?.prompt).toContain("0 + 1?");
    expect(first?.after.slice(0, 5)).toBe("It is");
    expect(first?.before.slice(0, 5)).not.toBe("It is");
    expect(first?.wanted).toMatch(/^It is 1\./);

    // The loss by hand, with the adapter that was saved, over the base of the command.
    const tuned = await AutoModelForCausalLM.fromPretrained(model, {
      quantizationConfig: new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" }),
      deviceMap: "cpu",
    });
    await PeftModel.fromPretrained(tuned, output);
    using tokenizer = await AutoTokenizer.fromPretrained(model);
    let [sum, count] = [0, 0];
    for (const { messages } of rows) {
      const whole = await tokenizer.encode(await tokenizer.applyChatTemplate(messages), { addSpecialTokens: false });
      const prompt = await tokenizer.applyChatTemplate(messages.slice(0, 1), { addGenerationPrompt: true });
      const start = (await tokenizer.encode(prompt, { addSpecialTokens: false })).length;
      const end = whole.lastIndexOf(258) + 1;
      const logits = noGrad(() =>
        tidy(() => tuned.forward(tensor([[...whole]], { dtype: "int32", device: "cpu" })).floatsSync()),
      );
      const width = logits.length / whole.length;
      for (let i = start; i < end; i++, count++) {
        const row = logits.subarray((i - 1) * width, i * width);
        sum += Math.log(row.reduce((total, x) => total + Math.exp(x), 0)) - (row[whole[i] as number] as number);
      }
    }
    tuned.dispose();
    expect(result.evalLoss).toBeCloseTo(sum / count, 3);

    const [chat = "", merge = ""] = result.commands;
    expect(chat).toBe(`bnb chat ${model} --4bit --lora ${output}`);
    const said = await bnbJson<{ text: string }>(
      ...["generate", ...chat.split(" ").slice(2), "--chat", "--prompt", "0 + 1?", "--device", "cpu"],
      ...["--temperature", "0", "--max-new-tokens", "5"],
    );
    expect(said.text).toBe("It is");
    expect(merge).toBe(`bnb merge ${model} ${output} ${output}-merged`);
    expect((await bnb(...merge.split(" ").slice(1), "--device", "cpu")).code).toBe(0);

    const html = readFileSync(result.report, "utf8");
    expect(html).not.toMatch(/<script|src=|href=/);
    for (const part of ["Loss", "Learning rate", "Gradient norm", "before", "after", "in the data", chat]) {
      expect(html).toContain(part);
    }
    expect(html.match(/<svg/g)?.length).toBe(3);
    expect(html).toContain("evaluation");
  });

  it("says what it does, and how the base is", async () => {
    const output = newOutput();
    const { code, stdout } = await bnb(
      ...["finetune", model, "--data", data, "--output", output, "--eval-data", data, "--steps", "1"],
      ...["--base", "int8", "--device", "cpu", "--prompt", "Hi <b>"],
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/^data: 10 samples, 91 tokens to learn\nevaluation: 10 samples/);
    expect(stdout).toMatch(/step 1: evaluation \d\.\d{4}, perplexity/);
    expect(stdout).toContain(`  bnb chat ${model} --8bit --lora ${output}\n`);
    expect(readFileSync(join(output, "report.html"), "utf8")).toContain("Hi &lt;b&gt;");
  });

  it("goes on with --resume to the bit, and refuses to begin over another run", async () => {
    const [whole, halves] = [newOutput(), newOutput()];
    const steps = ["--epochs", "2", "--accumulate", "1", "--config", file("training: {saveSteps: 1}", "yaml")];
    await run(whole, ...steps);
    const json = file(JSON.stringify({ training: { saveSteps: 1 }, data, output: halves }), "json");
    await bnbJson("finetune", model, ...steps, "--config", json, "--device", "cpu");
    rmSync(join(halves, "checkpoint-6"), { recursive: true });
    expect(await refusal("--data", data, "--output", halves)).toEqual([
      2,
      `bnb finetune: ${halves} holds a run already; --resume goes on with it, or give a new folder`,
    ]);
    await run(halves, ...steps, "--resume");
    const adapter = (folder: string) => readFileSync(join(folder, "adapter_model.safetensors"));
    expect(adapter(halves).equals(adapter(whole))).toBe(true);
  });
});

describe("settings", () => {
  it("options count before a config, and what a config says before the defaults", async () => {
    const values = { data, output: newOutput(), prompt: [], resume: false, packing: false };
    const settingsOf = async (training: object, options: object) => {
      const config = file(JSON.stringify({ training }), "json");
      return (await finetuneSettings({ ...values, ...options, config } as never)).training;
    };
    expect(await settingsOf({ maxSteps: 9 }, { epochs: "1" })).toMatchObject({ numTrainEpochs: 1, maxSteps: -1 });
    expect(await settingsOf({ maxSteps: 9 }, { epochs: "1", steps: "4" })).toMatchObject({ maxSteps: 4 });
    expect(await settingsOf({ maxSteps: 9 }, {})).toMatchObject({ maxSteps: 9, warmupRatio: 0.03 });
    const warmupOfAll = async (training: object) =>
      warmupOf(resolveArguments("finetune", await settingsOf(training, {})), 100);
    expect(await warmupOfAll({})).toBe(3);
    expect(await warmupOfAll({ warmupSteps: 0 })).toBe(0);
    expect(await warmupOfAll({ warmupSteps: 0, warmupRatio: 0.1 })).toBe(10);
    expect(await warmupOfAll({ warmupSteps: 7 })).toBe(7);
  });

  it("a run that is done is not taken up with other adapters or another base", async () => {
    const output = newOutput();
    await run(output, "--steps", "1", "--alpha", "8");
    const config = readFileSync(join(output, "adapter_config.json"), "utf8");
    for (const [options, message] of [
      [
        ["--alpha", "800"],
        /model must be "\(default\): LoraAdapter\(r=16, scaling=0\.5" as in .*checkpoint-1, got .*=50"$/,
      ],
      [["--alpha", "8", "--base", "float"], /model must be .*Linear4bit\(.*, got .*Linear\(/],
    ] as const) {
      const args = ["--data", data, "--output", output, "--steps", "1", "--resume", ...options];
      const { code, stdout, stderr } = await bnb("finetune", model, "--device", "cpu", ...args);
      expect(code).not.toBe(0);
      expect(stderr.split("\n")[0]).toMatch(message);
      expect(stdout).toMatch(/^data: .*\n$/); // and not that --resume goes on
    }
    expect(readFileSync(join(output, "adapter_config.json"), "utf8")).toBe(config);
  });
});

describe("samples on disk", () => {
  it("give the bits that samples in memory give, also when the run goes on, and leave no file", async () => {
    const [memory, disk] = [newOutput(), newOutput()];
    const settings = ["--steps", "4", "--accumulate", "1", "--config", file("training: {saveSteps: 1}", "yaml")];
    await run(memory, ...settings);
    await run(disk, ...settings, "--on-disk", "--eval-data", data);
    const adapter = (folder: string) => readFileSync(join(folder, "adapter_model.safetensors"));
    expect(adapter(disk).equals(adapter(memory))).toBe(true);
    for (const name of ["checkpoint-4", "adapter_model.safetensors"]) rmSync(join(disk, name), { recursive: true });
    await run(disk, ...settings, "--on-disk", "--resume");
    expect(adapter(disk).equals(adapter(memory))).toBe(true);
    expect(readdirSync(disk).filter((name) => name.endsWith(".tokens"))).toEqual([]);
  });
});

describe("a folder that is not empty", () => {
  it("is refused with the option that takes it, unless all in it is what a killed run left", async () => {
    const output = newOutput();
    const settings = ["--steps", "1", "--accumulate", "1", "--on-disk"];
    // As kill -9 while the samples are written, and while the first checkpoint is, leaves it.
    const rest = [".checkpoint-50.0123456789ab", "data.tokens", ".data.tokens.0123456789ab.part", "evaluation.tokens"];
    mkdirSync(join(output, rest[0] as string), { recursive: true });
    for (const name of rest.slice(1)) writeFileSync(join(output, name), "rest");
    writeFileSync(join(output, "notes.txt"), "mine");
    expect(await refusal("--data", data, "--output", output, ...settings)).toEqual([
      2,
      `bnb finetune: ${output} is not empty; give a new folder, or --resume to write into it`,
    ]);
    rmSync(join(output, "notes.txt"));
    const whole = await run(newOutput(), ...settings);
    expect((await run(output, ...settings)).loss).toBe(whole.loss);
    expect(existsSync(join(output, rest[0] as string))).toBe(false);
    expect(existsSync(join(output, "data.tokens"))).toBe(false);
  });
});

describe("pairs of answers", () => {
  const pairs = file(
    lines(rows.map(({ messages: [ask, answer] }) => ({ prompt: [ask], chosen: [answer], rejected: "No idea." }))),
  );
  const settings = [
    "--on-disk",
    "--data",
    pairs,
    "--eval-data",
    pairs,
    "--steps",
    "12",
    "--accumulate",
    "1",
    "--dropout",
    "0",
  ];

  it("are known by their columns; the better answers win, and the page shows it", async () => {
    const output = newOutput();
    const result = await run(output, ...settings, "--learning-rate", "1e-2", "--beta", "0.5");
    expect([result.task, result.steps]).toEqual(["dpo", 12]);
    // Half of the pairs win by chance, and log 2 is the loss of none.
    expect(result.evaluation?.["evalRewardAccuracy"]).toBe(1);
    expect(result.evaluation?.["evalRewardMargin"]).toBeGreaterThan(1);
    expect(result.evaluation).not.toHaveProperty("evalPerplexity");
    expect(result.evalLoss).toBeLessThan(Math.log(2) / 2);
    expect(result.texts[0]?.wanted).toMatch(/^It is 1\./);
    const html = readFileSync(result.report, "utf8");
    for (const part of ["10 pairs", "Rewards", "100 % of the better answers preferred", "nats a pair"]) {
      expect(html).toContain(part);
    }
    expect(html.match(/<svg/g)?.length).toBe(5);
    // One evaluation is a point in the charts of loss and share.
    expect(html.match(/<circle class="point s1"/g)?.length).toBe(2);
  });

  it("--task and the config say it too, and the line tells what counts", async () => {
    const output = newOutput();
    const config = file(JSON.stringify({ task: "dpo", beta: 0.3, output }), "json");
    const args = ["finetune", model, ...settings, "--steps", "1", "--config", config, "--device", "cpu"];
    const { code, stdout } = await bnb(...args);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^data: 10 pairs, \d+ tokens to learn\n/);
    expect(stdout).toMatch(/step 1: evaluation 0\.\d{4}, \d+ % of the better answers preferred, margin -?\d/);
    expect(readFileSync(join(output, "report.html"), "utf8")).toMatch(/<td>beta<\/td><td>0\.3<\/td>/);
  });

  it("what has no pairs is refused, and beta without them", async () => {
    const output = newOutput();
    expect(await refusal("--data", data, "--output", output, "--task", "dpo")).toEqual([
      1,
      expect.stringMatching(/data\.jsonl:1: must have prompt, chosen and rejected, got messages$/),
    ]);
    expect(await refusal("--data", data, "--output", output, "--beta", "0.2")).toEqual([
      2,
      "bnb finetune: --beta is for --task dpo, got a run of sft",
    ]);
    expect(await refusal("--data", pairs, "--output", output, "--beta", "0")).toEqual([
      2,
      "bnb finetune: --beta must be above 0, got 0",
    ]);
  });
});

describe("what cannot be", () => {
  it("a broken row: number and reason; or left out by option", async () => {
    const broken = file(`${lines(rows.slice(0, 2))}{"messages": \n${lines([{ text: 3 }])}`);
    const output = newOutput();
    expect(await refusal("--data", broken, "--output", output)).toEqual([
      1,
      expect.stringMatching(/^bnb finetune: loadDataset: file\d+\.jsonl:3: is no JSON: /),
    ]);
    expect(existsSync(output)).toBe(false);
    const args = ["--data", broken, "--output", output, "--skip-bad-rows", "--steps", "1", "--device", "cpu"];
    const { code, stdout } = await bnb("finetune", model, ...args);
    expect(code).toBe(0);
    expect(stdout).toMatch(
      /^data: 2 samples, .*\n {2}left out: file\d+\.jsonl:3: is no JSON.*\n {2}left out: .*:4: must have/,
    );
  });

  it("a sample longer than the context", async () => {
    const long = file(lines([...rows, { text: "x".repeat(200) }]));
    const output = newOutput();
    expect(await refusal("--data", long, "--output", output, "--too-long", "error")).toEqual([
      1,
      expect.stringMatching(/:11: has 201 tokens, more than maxLength 96$/),
    ]);
    const { stdout } = await bnb(
      ...["finetune", model, "--data", long, "--output", output, "--steps", "1", "--device", "cpu"],
    );
    expect(stdout).toMatch(/^data: 11 samples, .*, 1 cut at 96 tokens\n/);
    expect(await refusal("--data", data, "--output", newOutput(), "--max-length", "97")).toEqual([
      2,
      `bnb finetune: --max-length must be at most 96, the positions of ${model}, got 97`,
    ]);
  });

  it("a template that drops the assistant, targets that match nothing, a loss that is no number", async () => {
    const template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
    const config = file(JSON.stringify({ chatTemplate: template }), "json");
    expect(await refusal("--data", data, "--output", newOutput(), "--config", config)).toEqual([
      1,
      expect.stringMatching(
        /data\.jsonl:1: the chat template must keep what the assistant says, got one that drops message 2$/,
      ),
    ]);
    expect(await refusal("--data", data, "--output", newOutput(), "--targets", "q_prj,v_proj")).toEqual([
      2,
      expect.stringMatching(
        /: each of targetModules must name layers of the model, got q_prj \(did you mean q_proj\?\)$/,
      ),
    ]);
    const output = newOutput();
    const saving = file("training: {saveSteps: 1, maxGradNorm: 0, lrSchedulerType: constant}", "yaml");
    const rate = ["--learning-rate", "1e38", "--optim", "lion_32bit", "--config", saving, "--device", "cpu"];
    const args = ["finetune", model, "--data", data, "--output", output, ...rate];
    const { code, stdout, stderr } = await bnb(...args);
    expect(code).toBe(1);
    const [, step] =
      /^bnb finetune: Trainer: the (?:loss|gradient norm) of step (\d+) must be finite/.exec(stderr) ?? [];
    expect(Number(step)).toBeGreaterThan(1);
    const last = join(output, `checkpoint-${Number(step) - 1}`);
    expect(stdout).toContain(`${last} is whole; --resume goes on from there\n`);
    expect(existsSync(last)).toBe(true);
  });

  it("an output that is the folder of the model or of data, with --resume too", async () => {
    const elsewhere = join(newOutput(), "rows.jsonl");
    mkdirSync(dirname(elsewhere));
    writeFileSync(elsewhere, lines(rows));
    for (const [output, what, ...more] of [
      [model, "the model", "--data", data],
      [root, "the data", "--data", data],
      [dirname(elsewhere), "the evaluation data", "--data", data, "--eval-data", elsewhere],
    ] as const) {
      expect(await refusal("--output", output, "--resume", ...more)).toEqual([
        2,
        `bnb finetune: ${output} is the folder of ${what} itself; give another for the result`,
      ]);
    }
    expect(readdirSync(dirname(elsewhere))).toEqual(["rows.jsonl"]);
  });

  it.each([
    [["--output", "x"], "--data FILE is missing: what the model is to learn"],
    [["--data", "none.jsonl"], "--output DIR is missing: where the result goes"],
    [["--data", "none.jsonl", "--output", "x"], "--data must be a readable file: ENOENT"],
    [["--base", "nf3"], "--base must be one of nf4, fp4, int8, float, got nf3"],
    [["--optim", "adamw_8bits"], "--optim must be one of adamw_torch"],
    [["--config", "none.yaml"], "--config must be a readable file: ENOENT"],
  ])("%j", async (args, message) => {
    const rest = message.includes("missing") || message.includes("--data") ? [] : ["--data", data, "--output", "x"];
    const [code, stderr] = await refusal(...rest, ...args);
    expect(code).toBe(2);
    expect(stderr).toContain(`bnb finetune: ${message}`);
  });

  it.each([
    ["a: [1", "yaml", /: is neither YAML nor JSON: Flow sequence .*line 1, column/],
    ["{", "json", /: is neither YAML nor JSON: /],
    ["learningRate: 1", "yaml", /: options must be among data, evalData, .*, got learningRate/],
    ["training: {outputDir: x}", "yaml", /: training must not have outputDir: output does$/],
    [
      "training: {learningRat: 1}",
      "yaml",
      /^bnb finetune: training: options must be among .*got learningRat \(did you/,
    ],
    ["lora: {r: 0}", "yaml", /LoraConfig: r must be an integer of at least 1, got 0$/],
    ["- 1", "yaml", /: options must be an object/],
  ])("the config %s", async (text, ending, message) => {
    const config = file(text, ending);
    const [code, stderr] = await refusal("--data", data, "--output", "x", "--config", config);
    expect(code).toBe(2);
    expect(stderr).toMatch(message);
  });
});

describe("in a process of its own", () => {
  const saving = () => file("training: {saveSteps: 1, saveTotalLimit: 2}", "yaml");
  const args = (output: string, steps: number) => [
    ...["finetune", model, "--data", data, "--output", output, "--steps", String(steps), "--resume"],
    ...["--accumulate", "2", "--config", saving(), "--device", "cpu", "--quiet"],
  ];
  const checkpoints = (output: string): string[] =>
    existsSync(output) ? readdirSync(output).filter((name) => name.startsWith("checkpoint-")) : [];

  // BNB_KILLS=50 for a long one.
  it("killed again and again at any moment, it leaves the adapter of a run that was not", async () => {
    const kills = Number(process.env["BNB_KILLS"] ?? 3);
    const uniform = seededRandom(7);
    const steps = 10 + 12 * kills;
    const [whole, killed] = [newOutput(), newOutput()];
    await bnb(...args(whole, steps));
    for (let i = 0; i < kills; i++) {
      const before = new Set(checkpoints(killed));
      const child = spawn(process.execPath, [program, ...args(killed, steps)], { stdio: "ignore" });
      const ended = once(child, "exit");
      // From the first step of its own on, at some moment of a step or of the writing.
      while (checkpoints(killed).every((name) => before.has(name)) && child.exitCode === null) await wait(1);
      await wait(40 * uniform());
      child.kill("SIGKILL");
      expect(await ended).toEqual([null, "SIGKILL"]);
    }
    expect((await bnb(...args(killed, steps))).code).toBe(0);
    const adapter = (folder: string) => readFileSync(join(folder, "adapter_model.safetensors"));
    expect(adapter(killed).equals(adapter(whole))).toBe(true);
    // Nothing is left of what was half written.
    expect(readdirSync(killed).sort()).toEqual(readdirSync(whole).sort());
  }, 600_000);

  it("on a full disk it ends with one line, and what was there goes on when there is room", async () => {
    const [whole, output] = [newOutput(), newOutput()];
    await bnb(...args(whole, 4));
    const script = `process.on("SIGXFSZ", () => {});
      require(${JSON.stringify(join(process.cwd(), program))}).main(process.argv.slice(1)).then((code) => { process.exitCode = code; });`;
    // The checkpoints of more than one step do not fit; the first one is there.
    await bnb(...args(output, 4));
    for (const name of ["checkpoint-4", "adapter_model.safetensors"]) rmSync(join(output, name), { recursive: true });
    const command = 'ulimit -f 40; exec "$0" -e "$@"';
    const { status, stderr } = spawnSync("sh", ["-c", command, process.execPath, script, ...args(output, 4)], {
      encoding: "utf8",
    });
    expect(status).toBe(1);
    expect(stderr).toMatch(
      /^bnb finetune: .*checkpoint-4: the checkpoint could not be written, those before it are as they were: .*EFBIG.*\n$/,
    );
    expect(checkpoints(output)).toEqual(["checkpoint-3"]);
    expect((await bnb(...args(output, 4))).code).toBe(0);
    const adapter = (folder: string) => readFileSync(join(folder, "adapter_model.safetensors"));
    expect(adapter(output).equals(adapter(whole))).toBe(true);
  });
});
