// The claims of the demo and the figures they rest on. One that does not hold makes the command fail.
import { signedPercent } from "../page.js";
import { count } from "../terminal.js";
import type { CheckResult, DemoResults } from "./results.js";

/** Judges the measurements: one entry per claim, in the order they are printed. */
export function checkClaims(results: Omit<DemoResults, "checks">): CheckResult[] {
  const [adamw32, adamw8] = results.optimizers;
  const perplexity = new Map(results.variants.map((variant) => [variant.name, variant.perplexity]));
  const rise = (name: string) => ratio(perplexity.get(name), perplexity.get("float32")) - 1;
  const lossGap = ratio(adamw8?.finalLoss, adamw32?.finalLoss) - 1;
  const { perplexityBefore, perplexityAfter, baseHashBefore, baseHashAfter } = results.finetune;
  const { checkpoint } = results;
  const factor = ratio(perplexityBefore, perplexityAfter);

  return [
    {
      claim: "AdamW8bit ends within 2 % of the loss of 32-bit AdamW",
      measured: signedPercent(lossGap),
      holds: Math.abs(lossGap) <= 0.02,
    },
    {
      claim: "INT8 perplexity is within 1 % of float32",
      measured: signedPercent(rise("INT8")),
      holds: rise("INT8") <= 0.01,
    },
    {
      claim: "NF4 perplexity is within 12 % of float32",
      measured: signedPercent(rise("NF4")),
      holds: rise("NF4") <= 0.12,
    },
    {
      claim: "NF4 with double quantization is within 12 % too",
      measured: signedPercent(rise("NF4 + DQ")),
      holds: rise("NF4 + DQ") <= 0.12,
    },
    {
      claim: "saved as a checkpoint and loaded in NF4, the model is the one quantized in memory, to the bit",
      measured: `largest difference of ${count(checkpoint.logits)} logits ${checkpoint.largestDifference}`,
      holds: checkpoint.logits > 0 && checkpoint.largestDifference === 0,
    },
    {
      claim: "fine-tuning left the 4-bit base untouched",
      measured: `sha256 ${baseHashBefore.slice(0, 8)} before, ${baseHashAfter.slice(0, 8)} after`,
      holds: baseHashBefore === baseHashAfter,
    },
    {
      claim: "fine-tuning divides the perplexity of the second style by more than 1.5",
      measured: `${factor.toFixed(2)} times`,
      holds: factor > 1.5,
    },
  ];
}

/** NaN when a figure is missing, so that its claim fails. */
function ratio(a: number | undefined, b: number | undefined): number {
  return (a ?? Number.NaN) / (b ?? Number.NaN);
}
