// bnb serve under load, as its clients see it: a process of its own with a small random model, and clients here who read
// events. `--quick` tries everything once, in seconds, and records nothing; `--long` tries the long prompt alone, three times.
import type { ChildProcess } from "node:child_process";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Result } from "./timing.js";
import { quantile, record } from "./timing.js";

const isQuick = process.argv.includes("--quick");
const isLong = process.argv.includes("--long");
const program = "dist/cli/main.js";
const sizes = isQuick
  ? { hidden: 32, intermediate: 64, layers: 1, positions: 2048, prompt: 1500, seconds: 3, tokens: 8 }
  : { hidden: 512, intermediate: 1408, layers: 8, positions: 8192, prompt: 4096, seconds: 60, tokens: 64 };
/** What a step may take on a CPU. */
const stepMs = 200;
const root = mkdtempSync(join(tmpdir(), "bnb-bench-serve-"));

interface Server {
  readonly child: ChildProcess;
  readonly url: string;
}

/** Event times of one answer in milliseconds, and what it was made of. */
interface Answer {
  readonly firstMs: number;
  readonly betweenMs: readonly number[];
  /** When each text came. */
  readonly times: readonly number[];
  readonly text: string;
  readonly finish: string | null;
  readonly usage: Usage | null;
}
interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
}
interface AskOptions {
  /** Leaves after so many texts. */
  leaveAfter?: number;
  /** Milliseconds between two looks at what has come. */
  readEveryMs?: number;
}
interface Event {
  choices: { text?: string; delta?: { content?: string }; finish_reason: string | null }[];
  usage?: Usage | null;
  error?: { message: string };
}

/** Of bytes, as they are the tokens: printable, so that an answer that goes back is what it was. */
const textOf = (tokens: number, seed: number): string => {
  let state = seed >>> 0;
  return Array.from({ length: tokens }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return String.fromCharCode(97 + ((state >>> 16) % 26));
  }).join("");
};
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const p = (values: readonly number[], q: number): number => (values.length === 0 ? Number.NaN : quantile(values, q));

async function start(): Promise<Server> {
  const folder = join(root, "model");
  const { hidden, intermediate, layers, positions } = sizes;
  const own = ["--hidden-size", hidden, "--intermediate-size", intermediate, "--layers", layers, "--heads", 8];
  const made = ["make-model", folder, ...own, "--positions", positions, "--dtype", "float32", "--device", "cpu"];
  const { status } = spawnSync(process.execPath, [program, ...made.map(String)], { stdio: "inherit" });
  if (status !== 0) throw new Error("bnb make-model failed");
  const args = ["serve", folder, "--port", "0", "--name", "bench", "--no-log", "--kv-tokens", "65536"];
  const child = spawn(process.execPath, [program, ...args], { stdio: ["ignore", "pipe", "inherit"] });
  let out = "";
  child.stdout?.on("data", (piece) => {
    out += String(piece);
  });
  for (;;) {
    const url = /is served at (http:[^;\s]+)\/v1/.exec(out)?.[1];
    if (url) return { child, url };
    if (child.exitCode !== null) throw new Error("bnb serve ended");
    await sleep(20);
  }
}

/** One streamed answer. A client who left early gets what he had. */
async function ask({ url }: Server, path: string, body: object, options: AskOptions = {}): Promise<Answer> {
  const began = performance.now();
  const sent = { model: "bench", stream: true, stream_options: { include_usage: true }, ignore_eos: true, ...body };
  const response = await fetch(`${url}${path}`, {
    method: "POST",
    body: JSON.stringify(sent),
  });
  if (response.status !== 200 || !response.body) throw new Error(`${response.status}: ${await response.text()}`);
  const times: number[] = [];
  let [text, pending] = ["", ""];
  let finish: string | null = null;
  let usage: Usage | null = null;
  const decoder = new TextDecoder();
  for await (const piece of response.body as unknown as AsyncIterable<Uint8Array>) {
    const lines = (pending + decoder.decode(piece, { stream: true })).split("\n\n");
    pending = lines.pop() as string;
    for (const line of lines) {
      const data = line.slice("data: ".length);
      if (data === "[DONE]") continue;
      const event = JSON.parse(data) as Event;
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const [choice] = event.choices;
      const more = choice?.text ?? choice?.delta?.content ?? "";
      if (more !== "") times.push(performance.now());
      text += more;
      finish = choice?.finish_reason ?? finish;
    }
    // Leaving the loop closes the connection.
    if (options.leaveAfter !== undefined && times.length >= options.leaveAfter) break;
    if (options.readEveryMs !== undefined) await sleep(options.readEveryMs);
  }
  const betweenMs = times.slice(1).map((time, i) => time - (times[i] as number));
  return { firstMs: (times[0] ?? Number.NaN) - began, betweenMs, times, text, finish, usage };
}

async function metric({ url }: Server, name: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const line = text.split("\n").find((one) => one.startsWith(`bnb:${name} `));
  return Number(line?.split(" ")[1]);
}

/** Megabytes of the server's process; NaN where the system does not say. */
function memoryMB({ child }: Server): number {
  try {
    const status = readFileSync(`/proc/${child.pid}/status`, "utf8");
    return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
  } catch {
    return Number.NaN;
  }
}

/** A line or a greedy token that is no character has no event of its own: times are between events, tokens are counted. */
async function clients(server: Server, count: number): Promise<Result> {
  const rounds = isQuick ? 1 : Math.max(1, Math.floor(64 / count));
  const answers: Answer[] = [];
  const began = performance.now();
  await Promise.all(
    Array.from({ length: count }, async (_, client) => {
      for (let round = 0; round < rounds; round++) {
        const prompt = textOf(64, 1 + client * 1000 + round);
        const max_tokens = sizes.tokens;
        answers.push(await ask(server, "/v1/completions", { prompt, max_tokens, temperature: 0.8, seed: client }));
      }
    }),
  );
  const seconds = (performance.now() - began) / 1000;
  const tokens = answers.reduce((sum, { usage }) => sum + (usage?.completion_tokens ?? 0), 0);
  const firsts = answers.map(({ firstMs }) => firstMs);
  const betweens = answers.flatMap(({ betweenMs }) => betweenMs);
  return {
    case: `${count} client${count === 1 ? "" : "s"}`,
    tokensPerSecond: tokens / seconds,
    firstTokenMsMedian: p(firsts, 0.5),
    firstTokenMsP99: p(firsts, 0.99),
    betweenTokensMsMedian: p(betweens, 0.5),
    betweenTokensMsP99: p(betweens, 0.99),
  };
}

/** 8 chats of 5 turns, a turn of each after the other: how much of a prompt has been computed, and what that saves. */
async function chats(server: Server): Promise<Result> {
  const history = isQuick ? 600 : 2000;
  const all = Array.from({ length: 8 }, (_, i) => [{ role: "user", content: textOf(history, 77 + i) }]);
  const firsts: number[] = [];
  const laters: number[] = [];
  let [prompt, cached] = [0, 0];
  for (let turn = 0; turn < 5; turn++) {
    for (const [i, messages] of all.entries()) {
      const body = { messages, max_tokens: 8, temperature: 0 };
      const answer = await ask(server, "/v1/chat/completions", body);
      (turn === 0 ? firsts : laters).push(answer.firstMs);
      if (turn > 0) {
        prompt += answer.usage?.prompt_tokens ?? 0;
        cached += answer.usage?.prompt_tokens_details.cached_tokens ?? 0;
      }
      messages.push({ role: "assistant", content: answer.text }, { role: "user", content: textOf(8, turn * 8 + i) });
    }
  }
  return {
    case: "turns 2 to 5 of 8 chats",
    cachedShare: cached / prompt,
    firstTurnFirstTokenMs: p(firsts, 0.5),
    laterFirstTokenMs: p(laters, 0.5),
    ofFirstTurn: p(laters, 0.5) / p(firsts, 0.5),
  };
}

/** 64 clients with texts of any length, some of whom leave and some of whom read slowly. */
async function soak(server: Server): Promise<Result> {
  const until = performance.now() + sizes.seconds * 1000;
  const memories: number[] = [];
  const lags: number[] = [];
  let [asked, whole, left, lost] = [0, 0, 0, 0];
  await metric(server, "eventloop_lag_seconds");
  const watch = (async () => {
    while (performance.now() < until) {
      await sleep(sizes.seconds * 20);
      memories.push(memoryMB(server));
      lags.push((await metric(server, "eventloop_lag_seconds")) * 1000);
    }
  })();
  const clientsDone = Array.from({ length: 64 }, async (_, client) => {
    for (let round = 0; performance.now() < until; round++) {
      const chance = (client * 7919 + round * 104_729) % 100;
      const max_tokens = 1 + ((client * 31 + round * 17) % sizes.tokens);
      const prompt = textOf(1 + ((client * 131 + round * 71) % 300), client + 64 * round);
      const options = chance < 20 ? { leaveAfter: 1 + (chance % 5) } : chance < 30 ? { readEveryMs: 20 } : {};
      asked++;
      const answer = await ask(server, "/v1/completions", { prompt, max_tokens, temperature: 1 }, options).catch(
        (error: Error) => error,
      );
      if (answer instanceof Error) lost++;
      else if (answer.finish === null && "leaveAfter" in options) left++;
      else if (answer.finish === "length" && answer.usage?.completion_tokens === max_tokens) whole++;
      else lost++;
    }
  });
  await Promise.all(clientsDone);
  await watch;
  const began = performance.now();
  const after = await ask(server, "/v1/completions", { prompt: "After all that", max_tokens: 1, temperature: 0 });
  const afterMs = performance.now() - began;
  if (after.finish !== "length") lost++;
  const [running, waiting, usage] = await Promise.all(
    ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"].map((name) => metric(server, name)),
  );
  // Of the second half: what a process takes to warm up is no leak.
  const half = memories.slice(Math.floor(memories.length / 2));
  return {
    case: `64 clients for ${sizes.seconds} s`,
    asked,
    whole,
    left,
    lost,
    leftBehind: (running as number) + (waiting as number) + (usage as number),
    eventLoopMsP99: Math.max(...lags),
    memoryMB: half.at(-1),
    memoryGrowth: (half.at(-1) as number) / (half[0] as number) - 1,
    nextRequestMs: afterMs,
  };
}

/** Texts of ASCII alone: a token is a byte here, and part of a character would wait for its rest. */
const ascii = Object.fromEntries(Array.from({ length: 128 }, (_, i) => [128 + i, -100]));

/** A long prompt arrives while 8 have a token in each step. */
async function longPrompt(server: Server, seed = 9): Promise<Result> {
  const busy = Array.from({ length: 8 }, (_, i) =>
    ask(server, "/v1/completions", {
      prompt: textOf(32, 500 + i),
      max_tokens: isQuick ? 200 : 900,
      temperature: 1,
      seed: i,
      logit_bias: ascii,
    }),
  );
  await sleep(isQuick ? 100 : 2000);
  const began = performance.now();
  const long = await ask(server, "/v1/completions", { prompt: textOf(sizes.prompt, seed), max_tokens: 1 });
  const end = performance.now();
  const answers = await Promise.all(busy);
  const during = answers.flatMap(({ times }) =>
    times.slice(1).flatMap((time, i) => {
      const before = times[i] as number;
      return time > began && before < end ? [time - before] : [];
    }),
  );
  return {
    case: `a prompt of ${sizes.prompt} tokens beside 8 clients`,
    firstTokenMs: long.firstMs,
    othersBetweenTokensMsP99: p(during, 0.99),
    ofStepBudget: p(during, 0.99) / stepMs,
  };
}

/** Everything, one after the other. */
async function all(server: Server): Promise<void> {
  const results: Result[] = [];
  for (const count of isQuick ? [1, 8] : [1, 8, 64]) results.push(await clients(server, count));
  const [one, many] = [results[0] as Result, results.at(-1) as Result];
  many["timesOneClient"] = (many["tokensPerSecond"] as number) / (one["tokensPerSecond"] as number);
  results.push(await longPrompt(server), await chats(server), await soak(server));
  const soaked = results.at(-1) as Result;
  if (soaked["lost"] !== 0 || soaked["leftBehind"] !== 0) process.exitCode = 1;
  if (isQuick) console.log(results);
  else record("serve", results, { model: sizes });
}

let server: Server | null = null;
try {
  server = await start();
  if (isLong) for (const seed of [9, 10, 11]) console.log(await longPrompt(server, seed));
  else await all(server);
} finally {
  if (server) {
    server.child.kill("SIGTERM");
    if (server.child.exitCode === null) await once(server.child, "close");
  }
  rmSync(root, { recursive: true });
}
