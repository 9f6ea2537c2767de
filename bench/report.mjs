// What becomes of recorded figures: one file of several benchmarks, a comparison with an earlier one, and a page with a roofline
// plot (Williams, Waterman and Patterson 2009): speed over multiply-adds a byte, below what memory and arithmetic allow.
import { readFileSync } from "node:fs";

/** @typedef {{ case: string, [figure: string]: unknown }} Result */
/**
 * @typedef {object} Report One benchmark as `record()` writes it.
 * @property {string} name
 * @property {string} date
 * @property {string} commit
 * @property {{ cpu: string, isa: string, threads: number, node: string }} host
 * @property {Result[]} results
 * @property {{ fmaGFLOPs?: number[], readGBs?: number[] }} [ceilings]
 */

/** Figures of which less is better, and of which more is; the first that a case has is what it is compared by. */
const lower = ["ms", "msPerStep", "us", "rssMB"];
const higher = ["tokensPerSecond", "GBs", "Gelements", "gigaParametersPerSecond", "GFLOPs"];

/** @type {(value: unknown) => number | undefined} */
const numberOf = (value) =>
  typeof value === "number" ? value : /** @type {{ median?: number } | undefined} */ (value)?.median;

/**
 * The reports in a file of one, or of several.
 * @type {(path: string) => Report[]}
 */
export function readReports(path) {
  const file = JSON.parse(readFileSync(path, "utf8"));
  return file.benchmarks ?? [file];
}

/**
 * How many times as fast each case is now, for those that both have.
 * @type {(before: readonly Report[], now: readonly Report[]) => { case: string, figure: string, before: number, now: number, timesFaster: number }[]}
 */
export function compareReports(before, now) {
  return now.flatMap(({ name, results }) => {
    const old = before.find((report) => report.name === name)?.results ?? [];
    return results.flatMap((result) => {
      const earlier = old.find((other) => other.case === result.case);
      const figure = [...lower, ...higher].find((key) => earlier && numberOf(earlier[key]) && numberOf(result[key]));
      if (!earlier || !figure) return [];
      const [was, is] = [
        /** @type {number} */ (numberOf(earlier[figure])),
        /** @type {number} */ (numberOf(result[figure])),
      ];
      const timesFaster = Number((lower.includes(figure) ? was / is : is / was).toPrecision(3));
      return [{ case: `${name}: ${result.case}`, figure, before: was, now: is, timesFaster }];
    });
  });
}

/** @type {(text: unknown) => string} */
const escaped = (text) =>
  String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

const width = 760;
const height = 380;
const margin = { top: 16, right: 24, bottom: 48, left: 64 };

/**
 * The roofline of one report: its cases that say GFLOPs and the bytes they need, below the ceilings of the machine in the same
 * run. "" where there is none.
 * @type {(report: Report) => string}
 */
export function roofline({ name, results, ceilings }) {
  const peak = Math.max(...(ceilings?.fmaGFLOPs ?? [0]));
  const bandwidth = Math.max(...(ceilings?.readGBs ?? [0]));
  const points = results.flatMap((result) => {
    const [speed, bytes, ms] = [numberOf(result["GFLOPs"]), numberOf(result["requiredBytes"]), numberOf(result["ms"])];
    return speed && bytes && ms ? [{ label: result.case, speed, intensity: (speed * ms * 1e6) / bytes }] : [];
  });
  if (!(peak > 0) || !(bandwidth > 0) || points.length === 0) return "";
  const decade = (/** @type {number} */ v, /** @type {(x: number) => number} */ to) => to(Math.log10(v));
  const xs = [...points.map(({ intensity }) => intensity), peak / bandwidth];
  const ys = [...points.map(({ speed }) => speed), peak];
  const [left, right] = [decade(Math.min(...xs), Math.floor), decade(Math.max(...xs), Math.ceil)];
  const [low, high] = [decade(Math.min(...ys), Math.floor), decade(Math.max(...ys), Math.ceil)];
  const x = (/** @type {number} */ v) =>
    margin.left + ((Math.log10(v) - left) / (right - left || 1)) * (width - margin.left - margin.right);
  const y = (/** @type {number} */ v) =>
    margin.top + ((high - Math.log10(v)) / (high - low || 1)) * (height - margin.top - margin.bottom);
  const ticks = (/** @type {number} */ from, /** @type {number} */ to) =>
    Array.from({ length: to - from + 1 }, (_, i) => 10 ** (from + i));
  const grid = [
    ...ticks(left, right).map(
      (v) =>
        `<line class="grid" x1="${x(v)}" x2="${x(v)}" y1="${margin.top}" y2="${height - margin.bottom}"/>` +
        `<text x="${x(v)}" y="${height - margin.bottom + 18}" text-anchor="middle">${v}</text>`,
    ),
    ...ticks(low, high).map(
      (v) =>
        `<line class="grid" x1="${margin.left}" x2="${width - margin.right}" y1="${y(v)}" y2="${y(v)}"/>` +
        `<text x="${margin.left - 8}" y="${y(v)}" dy="0.32em" text-anchor="end">${v}</text>`,
    ),
  ];
  // From where memory is the limit to where arithmetic is.
  const start = Math.max(10 ** left, 10 ** low / bandwidth);
  const roof = `M${x(start)} ${y(bandwidth * start)}L${x(peak / bandwidth)} ${y(peak)}L${x(10 ** right)} ${y(peak)}`;
  const dots = points.map(
    ({ label, speed, intensity }) =>
      `<circle cx="${x(intensity).toFixed(1)}" cy="${y(speed).toFixed(1)}" r="4"><title>${escaped(label)}: ` +
      `${speed.toPrecision(3)} GFLOP/s at ${intensity.toPrecision(3)} FLOP a byte</title></circle>`,
  );
  const caption = `${name}: GFLOP/s over FLOP a byte; the roof is ${bandwidth.toPrecision(3)} GB/s and ${peak.toPrecision(3)} GFLOP/s of float32`;
  return (
    `<figure><svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(caption)}">${grid.join("")}` +
    `<path class="roof" d="${roof}"/>${dots.join("")}</svg><figcaption>${escaped(caption)}</figcaption></figure>`
  );
}

/** @type {(report: Report) => string} */
function table({ results }) {
  const figures = [...new Set(results.flatMap((result) => Object.keys(result)))].filter((key) => key !== "case");
  const shown = (/** @type {unknown} */ value) => {
    const number = numberOf(value);
    return number === undefined ? escaped(value ?? "") : Number(number.toPrecision(4)).toString();
  };
  const head = ["case", ...figures].map((key) => `<th>${escaped(key)}</th>`).join("");
  const rows = results.map(
    (result) =>
      `<tr><td>${escaped(result.case)}</td>${figures.map((key) => `<td>${shown(result[key])}</td>`).join("")}</tr>`,
  );
  return `<table><thead><tr>${head}</tr></thead><tbody>${rows.join("")}</tbody></table>`;
}

/**
 * A page that needs nothing else: machine, roofline and figures of each benchmark.
 * @type {(reports: readonly Report[]) => string}
 */
export function reportPage(reports) {
  const sections = reports.map((report) => {
    const { cpu, isa, threads, node } = report.host;
    const where = `${cpu} (${isa}), ${threads} threads, Node ${node}, ${report.date}, commit ${report.commit}`;
    return `<section><h2>${escaped(report.name)}</h2><p>${escaped(where)}</p>${roofline(report)}${table(report)}</section>`;
  });
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Benchmarks of bitsandbytes-node</title>
<style>
:root { color-scheme: light dark; --ink: #1d2433; --soft: #667; --line: #d5d9e2; --mark: #2563c9; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9f0; --soft: #9aa3b5; --line: #39414f; --mark: #7ab0ff; --page: #14181f; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }
figure { margin: 1rem 0; } figcaption, p { color: var(--soft); }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); } .roof { stroke: var(--ink); stroke-width: 2; fill: none; } circle { fill: var(--mark); }
section { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
</style>
</head>
<body>
<h1>Benchmarks of bitsandbytes-node</h1>
${sections.join("\n")}
</body>
</html>
`;
}
