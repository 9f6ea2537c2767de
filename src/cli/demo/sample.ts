// A text streamed from a model, byte by byte, while a timer of the same process watches the event loop.
import { monitorEventLoopDelay } from "node:perf_hooks";
import { generate } from "../../generation/index.js";
import type { LlamaForCausalLM } from "../../models/index.js";
import { printable } from "../terminal.js";
import type { SampleResult } from "./results.js";

/** What to generate and where to show it. */
export interface SampleOptions {
  title: string;
  prompt: string;
  maxNewTokens: number;
  seed: number;
  write: (text: string) => void;
}

/** Streams one sample. Bytes that are not UTF-8 become U+FFFD, control characters a dot. */
export async function streamSample(model: LlamaForCausalLM, options: SampleOptions): Promise<SampleResult> {
  const { title, prompt, maxNewTokens, seed, write } = options;
  const decoder = new TextDecoder("utf-8");
  const delay = monitorEventLoopDelay({ resolution: 1 });
  let text = "";
  let tokens = 0;
  const show = (piece: string) => {
    const shown = printable(piece);
    text += shown;
    write(shown);
  };

  model.eval();
  delay.enable();
  const started = performance.now();
  for await (const byte of generate(model, Buffer.from(prompt), {
    maxNewTokens,
    seed,
    doSample: true,
    temperature: 0.7,
    topK: 40,
    topP: 0.95,
  })) {
    show(decoder.decode(Uint8Array.of(byte), { stream: true }));
    tokens++;
  }
  const seconds = (performance.now() - started) / 1000;
  delay.disable();
  show(decoder.decode());
  return { title, prompt, text, tokensPerSecond: tokens / seconds, eventLoopP99Ms: delay.percentile(99) / 1e6 };
}

/** Tokens per second after the first one, greedy, the better of two runs. */
export async function generationSpeed(model: LlamaForCausalLM, prompt: string, tokens: number): Promise<number> {
  let best = 0;
  model.eval();
  for (let run = 0; run < 2; run++) {
    let started = 0;
    let made = 0;
    for await (const _ of generate(model, Buffer.from(prompt), { maxNewTokens: tokens + 1 })) {
      if (made++ === 0) started = performance.now();
    }
    best = Math.max(best, ((made - 1) * 1000) / (performance.now() - started));
  }
  return best;
}
