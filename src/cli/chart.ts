// A line chart as inline SVG: curves of several runs over the steps, with grid, ticks and direct labels.
import { escapeHtml } from "./page.js";

/** One curve; its colour comes from the page's `--series-<index>`. */
export interface Series {
  name: string;
  values: readonly number[];
  /** The step of each value, ascending; default 1, 2, ... */
  steps?: readonly number[];
}

/** A chart with its title, and a legend where there are several curves. `label` is what the values are. */
export function chartFigure(series: readonly Series[], title: string, label: string): string {
  const window = Math.max(1, Math.round((series[0]?.values.length ?? 0) / 25));
  const legend = series.map(({ name }, i) => `<li class="s${i}">${escapeHtml(name)}</li>`).join("");
  const key = series.length > 1 ? `<ul class="legend">${legend}</ul>` : "";
  return `<figure><figcaption>${escapeHtml(title)}</figcaption>${key}${lineChart(series, title, label, window)}</figure>`;
}

const width = 720;
const height = 300;
const margin = { top: 16, right: 20, bottom: 44, left: 52 };

/** Draws curves over steps 1..n. Values are smoothed for the eye by `window` values; the raw ones of the first stay faint. */
function lineChart(series: readonly Series[], title: string, label: string, window: number): string {
  const steps = Math.max(1, ...series.map(({ values, steps }) => steps?.at(-1) ?? values.length));
  const all = series.flatMap(({ values }) => values);
  const ticks = niceTicks(Math.min(...all), Math.max(...all));
  const [low, high] = [ticks[0] as number, ticks.at(-1) as number];
  const x = (step: number) =>
    margin.left + ((step - 1) / Math.max(steps - 1, 1)) * (width - margin.left - margin.right);
  const y = (value: number) =>
    margin.top + ((high - value) / (high - low || 1)) * (height - margin.top - margin.bottom);
  const path = (values: readonly number[], at: readonly number[] | undefined) =>
    values.map((value, i) => `${i === 0 ? "M" : "L"}${x(at?.[i] ?? i + 1).toFixed(1)} ${y(value).toFixed(1)}`).join("");

  const grid = ticks.map(
    (tick) =>
      `<line class="grid" x1="${margin.left}" x2="${width - margin.right}" y1="${y(tick)}" y2="${y(tick)}"/>` +
      `<text class="tick" x="${margin.left - 8}" y="${y(tick)}" dy="0.32em" text-anchor="end">${round(tick)}</text>`,
  );
  const stepTicks = niceTicks(0, steps).filter((step) => step <= steps);
  const bottom = height - margin.bottom;
  const axis = stepTicks.map((step) => {
    const at = x(Math.max(step, 1));
    return `<text class="tick" x="${at}" y="${bottom + 18}" text-anchor="middle">${Math.max(step, 1)}</text>`;
  });
  // The raw values of the first curve alone: those of a second one would only thicken the noise.
  const raw = series
    .slice(0, 1)
    .filter(({ values }) => values.length > 1)
    .map(({ values, steps }) => `<path class="raw s0" d="${path(values, steps)}"/>`);
  const curves = series.map(({ values, steps }, i) => {
    const [only] = values;
    if (values.length === 1 && only !== undefined) {
      return `<circle class="point s${i}" cx="${x(steps?.[0] ?? 1).toFixed(1)}" cy="${y(only).toFixed(1)}" r="4"/>`;
    }
    // A curve of few points has none to lose.
    const shown = values.length < 50 ? values : smooth(values, window);
    return `<path class="curve s${i}" d="${path(shown, steps)}"/>`;
  });
  return [
    `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeHtml(title)}">`,
    ...grid,
    `<line class="axis" x1="${margin.left}" x2="${width - margin.right}" y1="${bottom}" y2="${bottom}"/>`,
    ...axis,
    `<text class="label" x="${(margin.left + width - margin.right) / 2}" y="${height - 6}" text-anchor="middle">step</text>`,
    `<text class="label" x="14" y="${(margin.top + bottom) / 2}" text-anchor="middle"`,
    ` transform="rotate(-90 14 ${(margin.top + bottom) / 2})">${escapeHtml(label)}</text>`,
    ...raw,
    ...curves,
    "</svg>",
  ].join("");
}

/** Mean of the last `window` values at each step. */
function smooth(values: readonly number[], window: number): number[] {
  return values.map((_, i) => {
    const recent = values.slice(Math.max(0, i - window + 1), i + 1);
    return recent.reduce((sum, value) => sum + value, 0) / recent.length;
  });
}

/** About five round numbers that enclose low..high. */
function niceTicks(low: number, high: number): number[] {
  const rough = Math.max(high - low, 1e-9) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) as number) * power;
  const first = Math.floor(low / step);
  const last = Math.ceil(high / step);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

function round(value: number): string {
  const short = Number(value.toPrecision(4));
  // 0.00025 is wider than the margin: 2.5e-4.
  return short !== 0 && Math.abs(short) < 1e-3 ? short.toExponential() : String(short);
}
