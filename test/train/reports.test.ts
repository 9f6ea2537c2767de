// Where the numbers of a run go: console, JSON lines, a function, and event files, read here by the format's description.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { LlamaForCausalLM } from "../../src/models/index.js";
import { Generator } from "../../src/ops/index.js";
import type { LogEntry, ReportTarget, Sample } from "../../src/train/index.js";
import { Trainer } from "../../src/train/index.js";
import { EventFile } from "../../src/train/tensorboard.js";

const root = mkdtempSync(join(tmpdir(), "bnb-reports-"));
afterAll(() => rmSync(root, { recursive: true }));
let folders = 0;

const samples: Sample[] = [3, 5, 8].map((n) => {
  const ids = Int32Array.from({ length: n }, (_, i) => (i * n) % 16);
  return { ids, labels: ids };
});

const newModel = () =>
  new LlamaForCausalLM(
    { vocabSize: 16, hiddenSize: 8, intermediateSize: 8, numHiddenLayers: 1, numAttentionHeads: 1 },
    { generator: new Generator(1), device: "cpu" },
  );

/** Two steps with an evaluation after each. */
async function run(reportTo: ReportTarget | readonly ReportTarget[], outputDir = join(root, String(folders++))) {
  using model = newModel();
  const args = { outputDir, reportTo, maxSteps: 2, loggingSteps: 1, evalSteps: 1, saveSteps: 0 };
  const { history } = await new Trainer({ model, args, trainDataset: samples, evalDataset: samples }).train();
  expect(history.length).toBe(4);
  return { history, outputDir };
}

describe("reportTo", () => {
  it("gives the same reports to all targets", async () => {
    const file = join(root, "deep", "log.jsonl");
    const told: LogEntry[] = [];
    const lines: string[] = [];
    const write = vi.spyOn(process.stdout, "write").mockImplementation((text) => lines.push(String(text)) > 0);
    const { history, outputDir } = await run([file, (entry) => told.push(entry), "console", "tensorboard"]).finally(
      () => write.mockRestore(),
    );
    expect(told).toEqual(history);
    const read = readFileSync(file, "utf8").trimEnd().split("\n");
    expect(read.map((line) => JSON.parse(line))).toEqual(JSON.parse(JSON.stringify(history)));
    expect(lines.map((line) => line.split("  ")[0])).toEqual(["step 1", "step 1", "step 2", "step 2"]);
    const [trained, evaluated] = history as [LogEntry, LogEntry];
    expect(lines[0]).toContain(`loss ${trained.loss?.toPrecision(5)}`);
    expect(lines[1]).toContain(`evalPerplexity ${evaluated.evalPerplexity?.toPrecision(5)}\n`);

    const [name = ""] = readdirSync(join(outputDir, "runs"));
    expect(name).toMatch(/^events\.out\.tfevents\.\d{10}\./);
    const events = readEvents(readFileSync(join(outputDir, "runs", name)));
    expect(events[0]).toMatchObject({ version: "brain.Event:2", step: 0 });
    expect(events.slice(1).map(({ step }) => step)).toEqual([1, 1, 2, 2]);
    history.forEach((entry, i) => {
      const { scalars, time } = events[i + 1] as Event;
      expect(Math.abs(time - Date.now() / 1000)).toBeLessThan(600);
      const tags = entry.loss === undefined ? ["eval/loss", "eval/perplexity"] : ["train/loss", "train/learningRate"];
      for (const tag of tags) {
        const [group, key = ""] = tag.split("/");
        const own = group === "eval" ? `eval${key[0]?.toUpperCase()}${key.slice(1)}` : key;
        expect(scalars[tag]).toBe(Math.fround(entry[own] as number));
      }
    });
  });

  it("tells no loss of steps whose tokens do not count, and that of the others as if there were none", async () => {
    const masked = samples.map(({ ids }, i) => ({ ids, labels: i === 1 ? ids.map(() => -100) : ids }));
    const trained = async (trainDataset: Sample[], loggingSteps: number) => {
      using model = newModel();
      const lines = join(root, `${folders}.jsonl`);
      const args = { outputDir: join(root, String(folders++)), reportTo: lines, loggingSteps, saveSteps: 0 };
      const each = { ...args, perDeviceTrainBatchSize: 1, numTrainEpochs: 1, shuffle: false };
      const own = { ...each, lrSchedulerType: "constant" as const };
      const { loss } = await new Trainer({ model, args: own, trainDataset }).train();
      const read = readFileSync(lines, "utf8").trimEnd().split("\n");
      return { loss, logged: read.map((line) => JSON.parse(line) as LogEntry) };
    };
    const counting = masked.filter((_, i) => i !== 1);
    const [want, got] = [await trained(counting, 1), await trained(masked, 1)];
    expect(got.logged.map((entry) => entry.loss)).toEqual([want.logged[0]?.loss, undefined, want.logged[1]?.loss]);
    expect(got.logged[1]).toMatchObject({ step: 2, gradNorm: 0 });
    expect(got.logged[1]).not.toHaveProperty("loss");
    expect(got.loss).toBe(want.loss);
    // A run that ends with such a step has the loss of the report before it.
    expect((await trained(masked.slice(0, 2), 1)).loss).toBe(want.logged[0]?.loss);
    // Among others, they change no mean.
    expect((await trained(masked, 3)).loss).toBe((await trained(counting, 2)).loss);
  });

  it('"none" is none, and no file of that name', async () => {
    const before = readdirSync(".");
    const { outputDir } = await run("none");
    await run(["none"]);
    expect(readdirSync(".")).toEqual(before);
    expect(readdirSync(outputDir)).toEqual(["checkpoint-2"]);
  });

  it("a target that cannot be written ends the run with its name", async () => {
    const file = join(root, "file");
    writeFileSync(file, "");
    await expect(run(join(file, "log.jsonl"))).rejects.toThrow(/log\.jsonl: could not be written: /);
    const outputDir = join(root, "taken");
    await run([], outputDir);
    rmSync(join(outputDir, "checkpoint-2"), { recursive: true });
    writeFileSync(join(outputDir, "runs"), "");
    await expect(run("tensorboard", outputDir)).rejects.toThrow(
      /runs.events\.out\.tfevents\..*: could not be written: /,
    );
  });
});

describe("event files", () => {
  it("hold large steps and numbers that are none, and grow record by record", async () => {
    const file = new EventFile(join(root, "events"), 1_700_000_000_123);
    await file.add({ step: 2 ** 40 + 300, epoch: 1.5, loss: Number.NaN }, 1_700_000_001_000);
    await file.add({ step: 0, epoch: 0, rewardMargin: -0.25 }, 1_700_000_002_000);
    expect(file.path).toContain("tfevents.1700000000.");
    expect(readEvents(readFileSync(file.path))).toEqual([
      { time: 1_700_000_001, step: 0, version: "brain.Event:2", scalars: {} },
      {
        time: 1_700_000_001,
        step: 2 ** 40 + 300,
        version: "",
        scalars: { "train/epoch": 1.5, "train/loss": Number.NaN },
      },
      { time: 1_700_000_002, step: 0, version: "", scalars: { "train/epoch": 0, "train/rewardMargin": -0.25 } },
    ]);
  });
});

interface Event {
  time: number;
  step: number;
  version: string;
  scalars: Record<string, number>;
}

/** TFRecord framing, then the messages Event and Summary. Throws where a checksum is wrong. */
function readEvents(file: Buffer): Event[] {
  expect(crc32c(Buffer.from("123456789"))).toBe(0xe3069283); // the check value of CRC-32C
  const events: Event[] = [];
  for (let at = 0; at < file.length; ) {
    const length = Number(file.readBigUInt64LE(at));
    expect(file.readUInt32LE(at + 8)).toBe(masked(file.subarray(at, at + 8)));
    const data = file.subarray(at + 12, at + 12 + length);
    expect(file.readUInt32LE(at + 12 + length)).toBe(masked(data));
    at += 16 + length;
    const event: Event = { time: 0, step: 0, version: "", scalars: {} };
    for (const [field, value] of fieldsOf(data)) {
      if (field === 1) event.time = (value as Buffer).readDoubleLE();
      else if (field === 2) event.step = Number(value);
      else if (field === 3) event.version = String(value);
      else if (field === 5) {
        for (const [, one] of fieldsOf(value as Buffer)) {
          const parts = new Map(fieldsOf(one as Buffer));
          event.scalars[String(parts.get(1))] = (parts.get(2) as Buffer).readFloatLE();
        }
      } else throw new Error(`field ${field}`);
    }
    events.push(event);
  }
  return events;
}

/** Fields of a message: numbers of wire type 0, bytes of 1, 2 and 5. */
function fieldsOf(data: Buffer): [field: number, value: bigint | Buffer][] {
  let at = 0;
  const number = (): bigint => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = data[at++] as number;
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  const take = (n: number): Buffer => {
    at += n;
    return data.subarray(at - n, at);
  };
  const fields: [number, bigint | Buffer][] = [];
  while (at < data.length) {
    const key = Number(number());
    const type = key & 7;
    const value = type === 0 ? number() : take(type === 1 ? 8 : type === 5 ? 4 : Number(number()));
    fields.push([key >> 3, value]);
  }
  return fields;
}

// Bit by bit, as the polynomial has it.
function crc32c(data: Buffer): number {
  let crc = 0xffffffffn;
  for (const byte of data) {
    crc ^= BigInt(byte);
    for (let i = 0; i < 8; i++) crc = crc & 1n ? (crc >> 1n) ^ 0x82f63b78n : crc >> 1n;
  }
  return Number(crc ^ 0xffffffffn);
}
function masked(data: Buffer): number {
  const crc = BigInt(crc32c(data));
  return Number((((crc >> 15n) | (crc << 17n)) + 0xa282ead8n) & 0xffffffffn);
}
