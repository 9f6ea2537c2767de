// The page of `bnb eval`.
import type { EvalResult } from "./commands/eval.js";
import { escapeHtml, page, section, signedPercent, table } from "./page.js";
import { bytes, count } from "./terminal.js";

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
