// The demo's results as one self-contained page: no script, no font and no picture from anywhere else.

import { chartFigure } from "../chart.js";
import { escapeHtml, page, section, signedPercent, table, tile } from "../page.js";
import { count } from "../terminal.js";
import type { DemoResults, SampleResult } from "./results.js";

const LOSS = "loss (nats per byte)";

/** The whole HTML document. */
export function reportPage(results: DemoResults): string {
  const { finetune, checks, machine, parameters } = results;
  const float = results.variants[0];
  const nf4 = results.variants.find(({ name }) => name === "NF4");
  const factor = finetune.perplexityBefore / finetune.perplexityAfter;
  const failed = checks.filter(({ holds }) => !holds).length;
  const body = [
    "<header><h1>Trained, quantized, fine-tuned</h1>",
    `<p>A byte-level Llama of ${count(parameters)} parameters on ${escapeHtml(machine.processor)}, in`,
    ` ${results.seconds.toFixed(0)} seconds with bitsandbytes-node ${escapeHtml(results.version)}.</p></header>`,
    '<section class="tiles">',
    tile(
      `${(nf4?.ratio ?? 0).toFixed(1)}×`,
      "smaller as NF4",
      `${kilobytes(float?.bytes)} to ${kilobytes(nf4?.bytes)}`,
    ),
    tile(stateRatio(results), "smaller Adam state", "8 bit against 32 bit"),
    tile(`${factor.toFixed(2)}×`, "lower perplexity", "second style, by QLoRA"),
    tile(failed === 0 ? `${checks.length} of ${checks.length}` : `${failed} failed`, "claims hold", "listed below"),
    "</section>",
    section("Training from scratch", trainingPart(results)),
    section("The same weights in five formats", variantTable(results)),
    section("Fine-tuning over the frozen 4-bit base", finetunePart(results)),
    section("Samples", results.samples.map(sample).join("")),
    section("Claims", checkTable(results)),
    footer(results),
  ].join("");
  return page("bitsandbytes-node: trained, quantized, fine-tuned", body);
}

function trainingPart({ optimizers, text, settings }: DemoResults): string {
  const { steps, batchSize, sequenceLength } = settings.pretrain;
  const rows = optimizers.map((run) => [
    escapeHtml(run.name),
    kilobytes(run.stateBytes),
    run.finalLoss.toFixed(4),
    run.heldOutPerplexity.toFixed(3),
    count(run.tokensPerSecond),
  ]);
  return [
    `<p>${count(steps)} steps of ${count(batchSize * sequenceLength)} bytes from ${escapeHtml(text.source)}`,
    ` (${kilobytes(text.trainBytes)} to train on, ${kilobytes(text.heldOutBytes)} held out), twice from the same seed.</p>`,
    chartFigure(
      optimizers.map(({ name, losses }) => ({ name, values: losses })),
      "Training loss with both optimizers",
      LOSS,
    ),
    table(["optimizer", "state", "final loss", "held-out perplexity", "tokens/s"], rows),
  ].join("");
}

function variantTable({ variants }: DemoResults): string {
  const float = variants[0]?.perplexity ?? Number.NaN;
  const rows = variants.map((variant) => [
    escapeHtml(variant.name),
    kilobytes(variant.bytes),
    `${variant.ratio.toFixed(2)}×`,
    variant.bitsPerWeight.toFixed(2),
    variant.perplexity.toFixed(3),
    variant.perplexity === float ? "" : signedPercent(variant.perplexity / float - 1),
    count(variant.tokensPerSecond),
  ]);
  return (
    "<p>Bytes are those of the whole model with all statistics; the embedding, which is also the head, stays" +
    " float32. Bits per weight are those of the quantized layers alone. Perplexity is per byte of held-out text.</p>" +
    table(["format", "weights", "ratio", "bits per weight", "perplexity", "change", "generated tokens/s"], rows)
  );
}

function finetunePart({ finetune, style: text, settings }: DemoResults): string {
  const { r, loraAlpha, steps } = settings.finetune;
  return [
    `<p>LoRA of rank ${r} (alpha ${loraAlpha}, ${count(finetune.adapterParameters)} parameters) trained with AdamW8bit`,
    ` for ${count(steps)} steps on ${escapeHtml(text.source)}. Perplexity on held-out text of that style:`,
    ` <strong>${finetune.perplexityBefore.toFixed(2)}</strong> before,`,
    ` <strong>${finetune.perplexityAfter.toFixed(2)}</strong> after.</p>`,
    chartFigure([{ name: "QLoRA", values: finetune.losses }], "Training loss of the adapters", LOSS),
    `<p class="fine">Frozen base, sha256 before: <code>${finetune.baseHashBefore}</code><br>`,
    `after: <code>${finetune.baseHashAfter}</code></p>`,
  ].join("");
}

function sample({ title, prompt, text, tokensPerSecond, eventLoopP99Ms }: SampleResult): string {
  return (
    `<figure class="sample"><figcaption>${escapeHtml(title)}<span>${count(tokensPerSecond)} tokens/s, event loop p99` +
    ` ${eventLoopP99Ms.toFixed(1)} ms</span></figcaption><pre><b>${escapeHtml(prompt)}</b>${escapeHtml(text)}</pre></figure>`
  );
}

function checkTable({ checks }: DemoResults): string {
  const rows = checks.map(({ claim, measured, holds }) => [
    escapeHtml(claim),
    `<code>${escapeHtml(measured)}</code>`,
    `<span class="${holds ? "holds" : "fails"}">${holds ? "✓ holds" : "✗ fails"}</span>`,
  ]);
  return table(["claim", "measured", ""], rows);
}

function footer({ machine, seed, settings }: DemoResults): string {
  const { hiddenSize, numHiddenLayers, numAttentionHeads, numKeyValueHeads } = settings.model;
  const sizes = `${numHiddenLayers} layers of width ${hiddenSize}, ${numAttentionHeads} heads over ${numKeyValueHeads}`;
  const where = `${machine.processor}, ${machine.threads} threads, ${machine.isa || machine.device}, Node ${machine.node}`;
  return `<footer>${escapeHtml(`${sizes}. Seed ${seed}. ${where}.`)}</footer>`;
}

function stateRatio({ optimizers }: DemoResults): string {
  const [adamw32, adamw8] = optimizers;
  return `${((adamw32?.stateBytes ?? 0) / (adamw8?.stateBytes ?? 1)).toFixed(1)}×`;
}

function kilobytes(bytes = 0): string {
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(2)} MB` : `${(bytes / 1e3).toFixed(0)} kB`;
}
