// What `bnb eval` measures, and its page.
import { escapeHtml, page, section, signedPercent, table } from "./page.js";
import { bytes, count } from "./terminal.js";

/** A model in one format. */
export interface FormatResult {
  format: string;
  /** Bytes of the weights with their statistics. */
  bytes: number;
  perplexity: number;
  /** How much larger it is than that of the first format, as a share. */
  change: number;
  /** Cross-entropy in bits for each byte of the text, which does not depend on the tokenizer. */
  bitsPerByte: number;
  tokensPerSecond: number;
}

/** What `--json` prints. */
export interface EvalResult {
  model: string;
  text: string;
  /** Tokens that were predicted. */
  tokens: number;
  context: number;
  formats: FormatResult[];
}

/** The whole HTML document. */
export function evalPage({ model, text, tokens, context, formats }: EvalResult, version: string): string {
  const largest = Math.max(...formats.map((format) => format.bytes));
  const rows = formats.map((format, i) => [
    escapeHtml(format.format),
    bytes(format.bytes),
    `${(largest / format.bytes).toFixed(2)}×`,
    format.perplexity.toFixed(3),
    i === 0 ? "" : signedPercent(format.change),
    format.bitsPerByte.toFixed(3),
    count(format.tokensPerSecond),
  ]);
  const about =
    `<header><h1>Perplexity of ${escapeHtml(model)}</h1><p>On ${escapeHtml(text)}: ${count(tokens)} tokens in windows of` +
    ` ${count(context)}, each predicted once from those before it in its window.</p></header>`;
  const header = ["format", "weights", "smaller", "perplexity", "change", "bits a byte", "tokens/s"];
  const footer = `<footer>bitsandbytes-node ${escapeHtml(version)}</footer>`;
  return page(`Perplexity of ${model}`, about + section("Formats", table(header, rows)) + footer);
}
