// generate and chat: their texts against what the model itself gives, what options mean, and Ctrl-C in an answer.
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Interrupts } from "../../src/cli/interrupts.js";
import { main } from "../../src/cli/main.js";
import { textSettings } from "../../src/cli/text-options.js";
import type { ChatMessage, GenerationConfig } from "../../src/hub/index.js";
import { AutoModelForCausalLM, BitsAndBytesConfig, generate, memory } from "../../src/index.js";
import type { CausalLMOptions } from "../../src/models/index.js";
import { bnb, bnbJson, bnbWith, Sink } from "../helpers/bnb.js";

const root = mkdtempSync(join(tmpdir(), "bnb-text-"));
afterAll(() => rmSync(root, { recursive: true }));
const model = join(root, "model");
const cpu = ["--device", "cpu"];
beforeAll(async () => {
  const sizes = ["--hidden-size", "32", "--intermediate-size", "64", "--layers", "1", "--dtype", "float32"];
  expect(await bnb("make-model", model, ...sizes, ...cpu)).toMatchObject({ code: 0 });
});

/** What the model says, in one piece. */
async function texts(
  prompts: readonly (string | ChatMessage[])[],
  options: GenerationConfig,
  load: CausalLMOptions = {},
): Promise<string[]> {
  const loaded = await AutoModelForCausalLM.fromPretrained(model, load);
  const answers: string[] = [];
  for (const prompt of prompts) {
    let answer = "";
    for await (const piece of generate(loaded, prompt, options)) answer += piece;
    answers.push(answer);
  }
  loaded.dispose();
  return answers;
}

describe("generate", () => {
  it("prints what follows a prompt, a piped one too, and that of the same seed again", async () => {
    const before = memory();
    const options = ["--max-new-tokens", "12", "--seed", "5", "--temperature", "0.9"];
    const [want] = await texts(["A bit"], { maxNewTokens: 12, seed: 5, temperature: 0.9, doSample: true });
    const { text } = await bnbJson<{ text: string }>("generate", model, "--prompt", "A bit", ...options, ...cpu);
    expect(text).toBe(want);
    const piped = await bnbWith({ stdin: Readable.from(["A ", "bit\n"]) }, "generate", model, ...options, ...cpu);
    // Of what a model says, a terminal gets no control characters.
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are replaced
    expect(piped).toEqual({ code: 0, stderr: "", stdout: `${want!.replace(/[\x00-\x08\x0b-\x1f\x7f]/g, "·")}\n` });
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  });

  it("uses the template with --chat, and quantizes with --4bit and --8bit", async () => {
    const messages = [
      { role: "system", content: "Be brief." },
      { role: "user", content: "Hi" },
    ];
    const quantizationConfig = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" });
    const [want] = await texts([messages], { maxNewTokens: 10 }, { quantizationConfig });
    const options = ["--prompt", "Hi", "--chat", "--system", "Be brief.", "--max-new-tokens", "10", "--4bit", ...cpu];
    expect(await bnbJson("generate", model, ...options)).toMatchObject({ prompt: messages, text: want });
    const eight = await bnb("generate", model, "--prompt", "Hi", "--8bit", "--max-new-tokens", "1", ...cpu);
    expect(eight).toMatchObject({ code: 0, stderr: "" });
  });

  it("computes with a head in the format of --head", async () => {
    for (const quantizeHead of ["nf4", "int8"] as const) {
      const [want] = await texts(["A bit"], { maxNewTokens: 8, seed: 2, doSample: true }, { quantizeHead });
      const options = ["--prompt", "A bit", "--max-new-tokens", "8", "--seed", "2", "--head", quantizeHead, ...cpu];
      expect(await bnbJson("generate", model, ...options)).toMatchObject({ text: want });
    }
  });

  it("computes where a map says", async () => {
    const [want] = await texts(["A bit"], { maxNewTokens: 6 });
    const options = ["generate", model, "--prompt", "A bit", "--max-new-tokens", "6", "--offload-folder", root];
    for (const where of [
      ["--device-map", '{"": "cpu", "model.layers.0": "disk"}'],
      ["--device-map", "auto", "--max-memory", "cpu=1GiB"],
      ["--device-map", "auto", "--max-memory", "cpu=800000000"],
    ]) {
      expect(await bnbJson("generate", ...options.slice(1), ...where)).toMatchObject({ text: want });
    }
  });

  it("says what is wrong", async () => {
    const cases: [args: string[], message: string][] = [
      [["--prompt", "a", "--head", "int4"], "--head must be one of float, int8, nf4, fp4, got int4"],
      [[], "--prompt TEXT is missing: what the model is to continue"],
      [["--prompt", "a", "--system", "b"], "--system needs --chat"],
      [["--prompt", "a", "--max-memory", "10GB"], "--max-memory must be such as cuda:0=10GiB,cpu=20GiB, got 10GB"],
      [["--prompt", "a", "--device-map", "{cpu}"], '--device-map must be a name, or JSON such as {"": "cpu"}: '],
      [["--prompt", "a", "--4bit", "--8bit"], "--4bit and --8bit: give one of them"],
      [["--prompt", "a", "--top-p", "2"], '--top-p must be a number from 0 to 1, got "2"'],
      [["--prompt", "a", "--temperature", "0", "--seed", "1"], "--temperature 0 takes the likeliest token: leave out"],
      [["--prompt", "a", "--dtype", "float8"], "--dtype must be one of float32, float16, bfloat16, got float8"],
      [["--prompt", "a", "--device", "tpu"], "device: must be one of auto, cpu"],
      [["--prompt", "a", "--device-map", "auto", "--device", "cpu"], "--device-map and --device: give one of them"],
      [["--prompt", "a", "--offload-folder", root], "--offload-folder needs --device-map or --max-memory"],
      [["--prompt", "a", "--revision", "main"], "--revision is of models of the hub, and "],
      [["--prompt", "x".repeat(2000)], "generate: the prompt must have between 1 and 1024 tokens, got 2000"],
    ];
    for (const [args, message] of cases) {
      const { code, stdout, stderr } = await bnbWith({ stdin: Readable.from([]) }, "generate", model, ...args);
      expect(code).not.toBe(0);
      expect(stdout).toBe("");
      expect(stderr).toMatch(`bnb generate: ${message}`);
    }
  });

  it("takes no piped bytes that are not UTF-8 for other characters", async () => {
    const stdin = Readable.from([Buffer.from([0x61, 0xe9])]);
    const { code, stdout, stderr } = await bnbWith({ stdin }, "generate", model, ...cpu);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toContain("bnb generate: what is piped in must be UTF-8, and is not\n");
  });

  it("ends with 130 when Ctrl-C comes, and keeps what was printed", async () => {
    const [interrupts, stdout, stderr] = [new Interrupts(), new Sink(), new Sink()];
    stdout.write = (text) => {
      stdout.text += text;
      interrupts.fire();
      return true;
    };
    const args = ["generate", model, "--prompt", "Hi", "--max-new-tokens", "900", ...cpu];
    expect(await main(args, { stdout, stderr, interrupts })).toBe(130);
    expect(stderr.text).toBe("bnb generate: stopped\n");
    expect(stdout.text.length).toBeLessThan(900);
    expect(interrupts.fire()).toBe(false); // a second one ends the program
  });
});

describe("options of texts", () => {
  const none = { stop: [] } as unknown as Parameters<typeof textSettings>[0];
  it.each<[given: object, settings: GenerationConfig]>([
    [{}, {}],
    [
      { "max-new-tokens": "7", stop: ["a", "b"] },
      { maxNewTokens: 7, stopStrings: ["a", "b"] },
    ],
    [{ temperature: "0.5" }, { temperature: 0.5, doSample: true }],
    [{ temperature: "0" }, { doSample: false }],
    [
      { seed: "0", "top-k": "4", "top-p": "0.5", "min-p": "0.1" },
      { seed: 0, topK: 4, topP: 0.5, minP: 0.1, doSample: true },
    ],
    [{ "repetition-penalty": "1.2" }, { repetitionPenalty: 1.2 }],
  ])("%o are %o", (given, settings) => {
    expect(textSettings({ ...none, ...given })).toEqual(settings);
  });
});

describe("chat", () => {
  const said = (...lines: string[]) => Readable.from([lines.map((line) => `${line}\n`).join("")]);
  const talk = async (stdin: Readable, ...args: string[]): Promise<ChatMessage[]> => {
    const ran = await bnbWith({ stdin }, "chat", model, "--max-new-tokens", "6", ...cpu, "--json", ...args);
    expect(ran).toMatchObject({ code: 0, stderr: "" });
    return (JSON.parse(ran.stdout) as { messages: ChatMessage[] }).messages;
  };

  it("answers with what was said before, and follows its commands", async () => {
    const before = memory();
    const messages = await talk(
      said("/system Be kind.", "gone", "/reset", "one \\", "and more", "gone", "/undo", "two", "/exit", "never read"),
    );
    const system = { role: "system", content: "Be kind." };
    const one = { role: "user", content: "one \nand more" };
    const [first] = await texts([[system, one]], { maxNewTokens: 6 });
    const asked = [system, one, { role: "assistant", content: first }, { role: "user", content: "two" }];
    const [second] = await texts([asked], { maxNewTokens: 6 });
    expect(messages).toEqual([...asked, { role: "assistant", content: second }]);
    expect(await talk(said("/system x", "/system", "/nonsense", "/help"), "--system", "y")).toEqual([]);
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  });

  it("prints answers as they come, and says what it cannot do", async () => {
    const stdin = said("/help", "/nonsense", "x".repeat(1200), "hi");
    const { code, stdout, stderr } = await bnbWith({ stdin }, "chat", model, "--max-new-tokens", "3", ...cpu);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^ {2}\/reset +forget the conversation$/m);
    expect(stdout).toMatch(/^\/nonsense is no command\.$/m);
    // A message that is too long is not remembered, and the next is answered.
    expect(stderr).toMatch(/^bnb chat: generate: the prompt must have between 1 and 1024 tokens, got \d+\n$/);
  });

  it("ends the answer on Ctrl-C, keeps what came of it, and goes on", async () => {
    const [interrupts, stdout, stderr] = [new Interrupts(), new Sink(), new Sink()];
    const stdin = new PassThrough();
    let pieces = 0;
    stdout.write = (text) => {
      stdout.text += text;
      const isAnswer = !text.includes("/help");
      if (isAnswer && ++pieces === 1) interrupts.fire();
      if (text.includes("(stopped)")) stdin.end("/undo\n");
      return true;
    };
    stdin.write("tell me\n");
    const args = ["chat", model, "--max-new-tokens", "900", ...cpu];
    expect(await main(args, { stdout, stderr, stdin, interrupts })).toBe(0);
    expect(stdout.text).toMatch(/ \(stopped\)\n0 questions are left\.\n$/);
    expect(interrupts.signal.aborted).toBe(false);
    expect(stderr.text).toBe("");
  });

  it("needs a template", async () => {
    const bare = join(root, "bare");
    cpSync(model, bare, { recursive: true });
    writeFileSync(join(bare, "tokenizer_config.json"), "{}");
    expect((await bnb("chat", bare)).stderr).toBe(
      `bnb chat: ${bare} has no chat template: bnb generate continues texts without one\n`,
    );
  });
});

describe("serve", () => {
  it("answers until Ctrl-C", async () => {
    const [interrupts, stdout, stderr] = [new Interrupts(), new Sink(), new Sink()];
    const before = memory();
    const keys = join(root, "served-keys");
    writeFileSync(keys, "one\ntwo\n");
    const args = ["serve", model, "--port", "0", "--name", "tiny", "--api-key-file", keys, ...cpu];
    const running = main(args, { stdout, stderr, interrupts });
    let url: string | undefined;
    while (url === undefined) {
      await new Promise((resolve) => setTimeout(resolve, 5));
      url = /is served at (http:[^,\s]+)/.exec(stdout.text)?.[1];
    }
    expect((await fetch(`${url}/models`)).status).toBe(401);
    const headers = { authorization: "Bearer two" };
    const models = (await (await fetch(`${url}/models`, { headers })).json()) as { data: { id: string }[] };
    expect(models.data.map(({ id }) => id)).toEqual(["tiny"]);
    const body = JSON.stringify({ model: "tiny", prompt: "A bit", max_tokens: 4, temperature: 0 });
    const answer = (await (await fetch(`${url}/completions`, { method: "POST", body, headers })).json()) as object;
    expect(answer).toMatchObject({ choices: [{ index: 0 }], usage: { completion_tokens: 4 } });
    const { port } = new URL(url);
    const other = await bnb("serve", model, "--port", port, ...cpu);
    expect(other).toMatchObject({ code: 1, stderr: expect.stringContaining(`127.0.0.1:${port}: listen EADDRINUSE`) });
    interrupts.fire();
    expect(await running).toBe(0);
    expect(memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  });

  it("tells of a chat page only where the model has a template, and its help of all that texts are asked by", async () => {
    const plain = join(root, "plain");
    cpSync(model, plain, { recursive: true });
    writeFileSync(join(plain, "tokenizer_config.json"), "{}");
    for (const [folder, chats] of [
      [model, true],
      [plain, false],
    ] as const) {
      const [interrupts, stdout, stderr] = [new Interrupts(), new Sink(), new Sink()];
      stdout.write = (text) => {
        stdout.text += text;
        if (text.includes("is served at")) setImmediate(() => interrupts.fire());
        return true;
      };
      const args = ["serve", folder, "--port", "0", ...cpu];
      expect(await main(args, { stdout, stderr, interrupts })).toBe(0);
      expect(stdout.text.includes("a chat page at http:")).toBe(chats);
    }
    const help = (await bnb("serve", "--help")).stdout;
    for (const path of ["chat/completions", "completions", "responses", "embeddings", "models"]) {
      expect(help).toContain(`/v1/${path}`);
    }
  });

  it("says what is wrong", async () => {
    expect((await bnb("serve", model, "--port", "99999")).stderr).toContain("--port must be at most 65535, got 99999");
    expect((await bnb("serve", model, "--port", "x")).stderr).toContain("--port must be a whole number of at least 0");
    const keys = join(root, "keys");
    writeFileSync(keys, "\n \n");
    expect((await bnb("serve", model, "--api-key-file", keys)).stderr).toContain(
      "must hold a key a line, and has none",
    );
    expect((await bnb("serve", model, "--api-key-file", `${keys}x`)).stderr).toContain("--api-key-file: ENOENT");
    for (const option of ["--api-key", "--admin-key"]) {
      for (const key of ["", " "]) {
        const { code, stderr } = await bnb("serve", model, "--port", "0", option, "good", option, key);
        expect([code, stderr]).toEqual([2, expect.stringContaining(`${option} must be a key that is not empty`)]);
      }
    }
    expect((await bnb("serve", model, "--tool-format", "xml")).stderr).toContain(
      "--tool-format must be one of hermes, llama3, mistral, qwen3-coder, got xml",
    );
    expect((await bnb("serve", model, "--name", " ")).stderr).toContain("--name must not be empty");
    expect((await bnb("serve", model, "--kv-tokens", "0")).stderr).toContain("--kv-tokens must be a whole number");
  });
});
