// `bnb eval`: the perplexity of a text, for a model in several formats side by side.
import { readFileSync } from "node:fs";
import { BitsAndBytesConfig } from "../../hub/index.js";
import type { CausalLM } from "../../models/index.js";
import { tensor } from "../../tensor/create.js";
import { BnbError } from "../../tensor/errors.js";
import type { Batch } from "../../train/index.js";
import { evaluate } from "../../train/index.js";
import { choice, command, usageError, wholeNumber } from "../command.js";
import type { EvalResult, FormatResult } from "../eval-page.js";
import { evalPage } from "../eval-page.js";
import { loadModel, loadOptions, placementOptions, tokenizerOf } from "../load-model.js";
import { modelBytes, quantizedLayers } from "../measure.js";
import { checkWritable, writePage } from "../new-folder.js";
import { signedPercent } from "../page.js";
import { bytes, count } from "../terminal.js";

const configs = {
  float: null,
  int8: { loadIn8bit: true },
  fp4: { loadIn4bit: true, bnb4bitQuantType: "fp4" },
  nf4: { loadIn4bit: true, bnb4bitQuantType: "nf4" },
  "nf4-dq": { loadIn4bit: true, bnb4bitQuantType: "nf4", bnb4bitUseDoubleQuant: true },
} as const;
const names = Object.keys(configs) as (keyof typeof configs)[];

/** `bnb eval` as it is called. */
export const evaluation = command({
  words: ["model"],
  about: `Measures the perplexity of a text: how many tokens the model on average finds as likely as the right one. Every
token but the first is predicted once, from those before it in its window of --context tokens. A model that is
quantized already is measured as it is.`,
  options: {
    text: { type: "string", value: "FILE", help: "the text, UTF-8" },
    formats: {
      type: "string",
      value: "LIST",
      help: `what to compare, of ${names.join(",")} (default float,int8,nf4)`,
    },
    context: {
      type: "string",
      value: "N",
      help: "tokens of a window (default 512, or the longest that the model takes)",
    },
    "max-tokens": { type: "string", value: "N", help: "the first N tokens of the text only" },
    html: { type: "string", value: "FILE", help: "write the result as a page, too" },
    ...loadOptions,
    ...placementOptions,
  },
  async run(call) {
    const { values, words, terminal, signal, version } = call;
    const [name = ""] = words;
    const { text: path } = values;
    if (path === undefined) throw usageError("--text FILE is missing: the text to measure on");
    const text = readText(path);
    if (values.html !== undefined) await checkWritable("--html", values.html);
    const asked = values.formats?.split(",").map((format) => choice("--formats", format.trim(), names));
    const given = values.context === undefined ? undefined : wholeNumber("--context", values.context);
    const most = values["max-tokens"] === undefined ? Infinity : wholeNumber("--max-tokens", values["max-tokens"], 2);

    const results: FormatResult[] = [];
    let [tokens, context] = [0, 0];
    const measure = async (format: string, config: (typeof configs)[keyof typeof configs]): Promise<boolean> => {
      const quantizationConfig = config && new BitsAndBytesConfig(config);
      const model = await loadModel(name, call, { quantizationConfig });
      try {
        const isQuantized = quantizedLayers(model) > 0;
        if (!config && isQuantized && (asked?.length ?? 0) > 1) {
          throw usageError(`--formats: ${name} is quantized already, and can only be measured as it is: float`);
        }
        context = contextOf(model, given);
        const ids = (await tokensOf(model, text)).slice(0, Math.min(most, Number.MAX_SAFE_INTEGER));
        tokens = ids.length - 1;
        const began = performance.now();
        const onWindow = (done: number): void => {
          if (signal.aborted) throw new BnbError("ERR_BNB_ABORTED", "eval: aborted by its signal");
          terminal.progress(`Eval ${format}`, done, tokens, `${count(done)} of ${count(tokens)} tokens`);
        };
        const loss = await evaluate(model, windows(model, ids, context, onWindow));
        const perplexity = Math.exp(loss);
        const ofText = (await sizeOfText(model, ids)) || 1;
        results.push({
          format,
          bytes: modelBytes(model),
          perplexity,
          change: results[0] ? perplexity / results[0].perplexity - 1 : 0,
          bitsPerByte: (loss * tokens) / Math.LN2 / ofText,
          tokensPerSecond: (tokens * 1000) / (performance.now() - began),
        });
        return !config && isQuantized;
      } finally {
        model.dispose();
      }
    };

    const [first = "float", ...others] = asked ?? ["float", "int8", "nf4"];
    const wasQuantized = await measure(first, configs[first as keyof typeof configs]);
    if (wasQuantized) (results[0] as FormatResult).format = "as it is";
    else for (const format of others) await measure(format, configs[format as keyof typeof configs]);

    const result: EvalResult = { model: name, text: path, tokens, context, formats: results };
    terminal.line(`${path}: ${count(tokens)} tokens in windows of ${count(context)}`, "bold");
    terminal.line();
    terminal.table(
      ["format", "weights", "perplexity", "change", "bits a byte", "tokens/s"],
      results.map((row, i) => [
        row.format,
        bytes(row.bytes),
        row.perplexity.toFixed(3),
        i === 0 ? "" : signedPercent(row.change),
        row.bitsPerByte.toFixed(3),
        count(row.tokensPerSecond),
      ]),
    );
    if (values.html !== undefined) {
      await writePage(values.html, evalPage(result, version));
      terminal.line(`\nReport: ${values.html}`);
    }
    return { json: result };
  },
});

function readText(path: string): string {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    throw usageError(`--text must be a file that can be read, got ${path}: ${(cause as Error).message}`);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw usageError(`--text must be UTF-8, and ${path} is not`);
  }
}

async function tokensOf(model: CausalLM, text: string): Promise<Int32Array> {
  const ids = await tokenizerOf(model).encode(text);
  if (ids.length >= 2) return ids;
  throw usageError(`--text must have at least 2 tokens, has ${ids.length}`);
}

function contextOf({ config }: CausalLM, given: number | undefined): number {
  const most = config.maxPositionEmbeddings;
  if (given === undefined) return Math.min(512, most);
  if (given <= most) return given;
  throw usageError(`--context must be at most ${most}, as the model says, got ${given}`);
}

/** Windows that follow each other; the last token of one is the first that the next one reads. */
function* windows(
  model: CausalLM,
  ids: Int32Array,
  context: number,
  onWindow: (done: number) => void,
): Generator<Batch> {
  const { device } = model;
  for (let at = 0; at + 1 < ids.length; at += context) {
    onWindow(at);
    const length = Math.min(context, ids.length - 1 - at);
    const part = (from: number) => tensor(ids.slice(from, from + length), { shape: [1, length], device });
    yield { ids: part(at), targets: part(at + 1) };
  }
}

/** Bytes of the text that the predicted tokens stand for. */
async function sizeOfText(model: CausalLM, ids: Int32Array): Promise<number> {
  return Buffer.byteLength((await model.tokenizer?.decode(ids.subarray(1), { skipSpecialTokens: true })) ?? "");
}
