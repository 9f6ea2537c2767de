// The page of a fine-tuning: one self-contained file.
import type { LogEntry } from "../../train/index.js";
import type { Series } from "../chart.js";
import { chartFigure } from "../chart.js";
import { escapeHtml, page, section, table, tile } from "../page.js";
import { bytes, count } from "../terminal.js";
import type { BeforeAndAfter } from "./samples.js";
import type { Task } from "./task.js";

/** What the page tells. */
export interface FinetuneReport {
  readonly task: Pick<Task<unknown>, "noun" | "lossUnit" | "charts" | "words">;
  readonly model: string;
  readonly base: string;
  readonly data: string;
  readonly samples: number;
  /** Tokens that count in an epoch. */
  readonly tokens: number;
  readonly trainable: number;
  readonly parameters: number;
  readonly steps: number;
  readonly loss: number;
  /** The evaluation that counts. */
  readonly evaluation: LogEntry | null;
  readonly seconds: number;
  readonly peakBytes: number;
  readonly history: readonly LogEntry[];
  readonly texts: readonly BeforeAndAfter[];
  /** Names and values of what the run was told. */
  readonly settings: readonly (readonly [string, string])[];
  readonly commands: readonly string[];
  readonly version: string;
}

/** The whole HTML document. */
export function finetunePage(report: FinetuneReport): string {
  const { task, model, base, data, samples, tokens, trainable, parameters, steps, loss, evaluation } = report;
  const { seconds, peakBytes, history, texts, settings, commands, version } = report;
  const lead =
    `<p>${escapeHtml(data)}: ${count(samples)} ${task.noun} with ${count(tokens)} tokens to learn, by adapters over a base in` +
    ` ${escapeHtml(base)}, in ${count(seconds)} seconds.</p>`;
  const tiles = [
    tile(loss.toFixed(3), "training loss", `${task.lossUnit}, of the last report`),
    evaluation === null
      ? tile(count(steps), "steps", "of the optimizer")
      : tile((evaluation.evalLoss as number).toFixed(3), "evaluation loss", task.words(evaluation)),
    tile(count(trainable), "parameters learned", `${((100 * trainable) / parameters).toFixed(2)} % of the model`),
    tile(bytes(peakBytes), "memory", "at its most, on the device"),
  ];
  const losses = [seriesOf(history, "loss", "training"), seriesOf(history, "evalLoss", "evaluation")];
  const charts = [
    figureOf(losses, "Loss", task.lossUnit),
    ...task.charts.map(({ title, label, curves }) =>
      figureOf(
        curves.map(([key, name]) => seriesOf(history, key, name)),
        title,
        label,
      ),
    ),
    figureOf([seriesOf(history, "learningRate", "rate")], "Learning rate", "rate"),
    figureOf([seriesOf(history, "gradNorm", "norm")], "Gradient norm before clipping", "norm"),
  ];
  const body = [
    `<header><h1>${escapeHtml(model)}, fine-tuned</h1>${lead}</header>`,
    `<section class="tiles">${tiles.join("")}</section>`,
    section("Training", charts.join("")),
    section("Samples before and after", texts.map(sampleOf).join("") || "<p>None.</p>"),
    section(
      "Settings",
      table(
        ["setting", "value"],
        settings.map((row) => row.map(escapeHtml)),
      ),
    ),
    section("Use it", `<pre>${commands.map(escapeHtml).join("\n")}</pre>`),
    `<footer>bitsandbytes-node ${escapeHtml(version)}</footer>`,
  ];
  return page(`${model}, fine-tuned`, body.join(""));
}

function seriesOf(history: readonly LogEntry[], key: string, name: string): Series {
  const points = history.filter((entry) => entry[key] !== undefined);
  return { name, values: points.map((entry) => entry[key] as number), steps: points.map(({ step }) => step) };
}

function figureOf(series: readonly Series[], title: string, label: string): string {
  const drawn = series.filter(({ values }) => values.length > 0 && values.every(Number.isFinite));
  return drawn.length === 0 ? "" : chartFigure(drawn, title, label);
}

function sampleOf({ prompt, before, after, wanted }: BeforeAndAfter): string {
  const text = (title: string, words: string): string =>
    `<figure class="sample"><figcaption>${title}</figcaption><pre><b>${escapeHtml(prompt)}</b>${escapeHtml(words)}</pre></figure>`;
  return text("before", before) + text("after", after) + (wanted === null ? "" : text("in the data", wanted));
}
