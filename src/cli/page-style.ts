// The look of the pages, in light and dark.

/** CSS. */
export const style = `
:root {
  --page: #f6f5f1; --card: #ffffff; --ink: #1c1b19; --soft: #5f5c55; --line: #e2dfd6; --grid: #eceae3;
  --series-0: #2a6fbb; --series-1: #c2570c; --good: #1d7a43; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #151617; --card: #1d1f21; --ink: #ecebe7; --soft: #a5a29a; --line: #33363a; --grid: #2a2d30;
    --series-0: #6aaaf0; --series-1: #f0965a; --good: #6fcf97; --bad: #ff8a80;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 48px 20px 64px; }
header h1 { margin: 0 0 8px; font-size: 2.1rem; line-height: 1.15; letter-spacing: -0.02em; text-wrap: balance; }
header p { margin: 0 0 28px; color: var(--soft); max-width: 62ch; }
section { margin: 0 0 24px; padding: 24px; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
section h2 { margin: 0 0 10px; font-size: 1.2rem; letter-spacing: -0.01em; }
section p { margin: 0 0 14px; max-width: 72ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  padding: 0; background: none; border: 0; }
.tile { display: flex; flex-direction: column; padding: 16px 18px; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; }
.tile strong { font-size: 1.75rem; line-height: 1.2; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.tile span { font-weight: 600; }
.tile small { color: var(--soft); }
figure { margin: 18px 0; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 4px 16px; font-weight: 600; }
figcaption span { color: var(--soft); font-weight: 400; font-size: 0.9rem; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--grid); }
.axis { stroke: var(--soft); }
.tick, .label { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.raw { fill: none; stroke-width: 1; opacity: 0.22; }
path.s0 { stroke: var(--series-0); }
path.s1 { stroke: var(--series-1); }
.point.s0 { fill: var(--series-0); }
.point.s1 { fill: var(--series-1); }
.curve.s0 { stroke-width: 3; }
.curve.s1 { stroke-width: 2; stroke-dasharray: 9 9; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; margin: 8px 0; padding: 0; font-size: 0.9rem; }
.legend li::before { content: ""; display: inline-block; width: 22px; margin-right: 8px; vertical-align: middle;
  border-top: 3px solid var(--series-0); }
.legend li.s1::before { border-top: 3px dashed var(--series-1); }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 0.95rem; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; font-size: 0.85rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; }
td:last-child, th:last-child { padding-right: 0; }
tbody tr:last-child td { border-bottom: 0; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 0.85rem; }
.sample pre { margin: 8px 0 0; padding: 14px 16px; background: var(--page); border: 1px solid var(--line);
  border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample b { color: var(--series-0); font-weight: 600; }
.fine { color: var(--soft); font-size: 0.85rem; overflow-wrap: anywhere; }
.holds { color: var(--good); font-weight: 600; }
.fails { color: var(--bad); font-weight: 600; }
footer { color: var(--soft); font-size: 0.85rem; }
`;
