// What becomes of benchmark results: a comparison by the figure that says how fast a case is, and a page whose roofline has each
// case where its speed and its bytes put it.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { compareReports, readReports, reportPage, roofline } from "../bench/report.mjs";

const host = { cpu: "A <CPU>", isa: "avx2", threads: 2, node: "v20" };
const report = (name: string, results: { case: string; [figure: string]: unknown }[], ceilings = {}) => ({
  name,
  date: "2026-01-01",
  commit: "abc",
  host,
  results,
  ceilings,
});

describe("compareReports", () => {
  it("says how many times as fast each case is that both have", () => {
    const before = [
      report("a", [
        { case: "one", ms: { median: 10, min: 1 } },
        { case: "two", tokensPerSecond: 30 },
        { case: "gone", ms: 1 },
      ]),
    ];
    const now = [
      report("a", [
        { case: "one", ms: { median: 4, min: 3 } },
        { case: "two", tokensPerSecond: 45 },
        { case: "new", ms: 1 },
      ]),
      report("b", [{ case: "one", ms: 1 }]),
    ];
    expect(compareReports(before, now)).toEqual([
      { case: "a: one", figure: "ms", before: 10, now: 4, timesFaster: 2.5 },
      { case: "a: two", figure: "tokensPerSecond", before: 30, now: 45, timesFaster: 1.5 },
    ]);
  });

  it("reads files of one benchmark and of several", () => {
    const folder = mkdtempSync(join(tmpdir(), "bnb-bench-"));
    try {
      const [one, all] = [join(folder, "one.json"), join(folder, "all.json")];
      writeFileSync(one, JSON.stringify(report("a", [])));
      writeFileSync(all, JSON.stringify({ schema: 1, benchmarks: [report("a", []), report("b", [])] }));
      expect([readReports(one), readReports(all)].map((list) => list.map(({ name }) => name))).toEqual([
        ["a"],
        ["a", "b"],
      ]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe("roofline", () => {
  // 1 GFLOP in 10 ms from 10 MB: 100 GFLOP/s at 100 FLOP a byte; the other 10 GFLOP/s at 1.
  const results = [
    { case: "big", ms: { median: 10 }, GFLOPs: 100, requiredBytes: 1e7 },
    { case: "small", ms: 1, GFLOPs: 10, requiredBytes: 1e7 },
    { case: "of no use", ms: 1 },
  ];
  const svg = roofline(report("a", results, { fmaGFLOPs: [90, 100], readGBs: [20, 10] }));
  const dots = [...svg.matchAll(/<circle cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>([^:]*)/g)].map(([, x, y, label]) => ({
    label,
    x: Number(x),
    y: Number(y),
  }));

  it("has each case where its speed and its bytes put it, on logarithmic axes", () => {
    // 1 to 100 FLOP a byte over 672 pixels from 64 on, 10 to 100 GFLOP/s over 316 from 16 on.
    expect(dots).toEqual([
      { label: "big", x: 736, y: 16 },
      { label: "small", x: 64, y: 332 },
    ]);
  });

  it("has a roof of the best bandwidth and the best peak", () => {
    expect(svg).toContain("the roof is 20.0 GB/s and 100 GFLOP/s");
    const roof = /class="roof" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"/
      .exec(svg)
      ?.slice(1)
      .map(Number);
    const ridge = 64 + (Math.log10(100 / 20) / 2) * 672;
    expect(roof?.[2]).toBeCloseTo(ridge, 3);
    expect(roof?.slice(3)).toEqual([16, 736, 16]);
  });

  it("is not drawn without ceilings", () => {
    expect(roofline(report("a", results))).toBe("");
  });

  it("stands in a page that loads nothing and shows names as they are", () => {
    const page = reportPage([report("a", results, { fmaGFLOPs: [100], readGBs: [10] })]);
    expect(page).toContain("A &lt;CPU&gt; (avx2), 2 threads");
    expect(page).toContain("<td>big</td><td>10</td><td>100</td>");
    expect(page).not.toMatch(/\b(src|href)=/);
  });
});
