// What npm run test:package found: one row for each thing that was tried, and the table of them for the README.
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";

/** @typedef {{ where: string, what: string, note: string, ok: boolean }} Row */
/** @type {Row[]} */
export const rows = [];

/**
 * What a program prints. Throws with its output when it fails.
 * @param {string} command
 * @param {string[]} args
 * @param {{ cwd: string, env?: NodeJS.ProcessEnv, timeout?: number }} options
 */
export function output(command, args, { cwd, env = {}, timeout = 600_000 }) {
  /** @type {NodeJS.ProcessEnv} */
  const settings = { ...process.env, NODE_OPTIONS: "", NO_COLOR: "1", ...env };
  // The clone's own settings and binary must not reach what is tried.
  for (const name of Object.keys(settings)) if (/^npm_/i.test(name)) delete settings[name];
  delete settings.BNB_BINARY;
  const ran = spawnSync(command, args, { cwd, env: { ...settings, ...env }, encoding: "utf8", timeout });
  if (ran.error) throw ran.error;
  if (ran.status !== 0)
    throw new Error(`${command} ${args.join(" ")} ended with ${ran.status ?? ran.signal}:\n${ran.stdout}${ran.stderr}`);
  return ran.stdout.trim();
}

/**
 * Tries something and notes how it went; what `use` gives is the note.
 * @param {string} where
 * @param {string} what
 * @param {() => string | void | Promise<string | void>} use
 */
export async function row(where, what, use) {
  const start = performance.now();
  let note = "";
  let ok = true;
  try {
    note = (await use()) ?? "";
  } catch (error) {
    ok = false;
    console.error(`FAILED ${where}, ${what}: ${error instanceof Error ? error.message : error}`);
  }
  rows.push({ where, what, note, ok });
  console.log(
    `${ok ? "ok    " : "FAILED"} ${where}: ${what}${note && ` (${note})`}, ${((performance.now() - start) / 1000).toFixed(1)} s`,
  );
}

/** The rows as Markdown, those of one place together. */
export function table() {
  const places = [...new Set(rows.map((row) => row.where))];
  const lines = places.map((where) => {
    const here = rows.filter((row) => row.where === where);
    const text = here
      .map(({ what, note, ok }) => `${ok ? "" : "**fails:** "}${what}${note && ` (${note})`}`)
      .join(", ");
    return [where, text];
  });
  const width = [0, 1].map((i) => Math.max(...lines.map((line) => line[i]?.length ?? 0), i === 0 ? 5 : 12));
  /** @type {(cells: string[], fill?: string) => string} */
  const format = (cells, fill = " ") => `| ${cells.map((cell, i) => cell.padEnd(width[i] ?? 0, fill)).join(" | ")} |`;
  return [format(["Where", "What was run"]), format(["", ""], "-"), ...lines.map((line) => format(line))].join("\n");
}

/** Puts the table between its marks in the README. */
export function writeTable() {
  const text = readFileSync("README.md", "utf8");
  const marks = /(<!-- npm run test:package -- --all -->\n)[\s\S]*?(<!-- end -->)/;
  if (!marks.test(text)) throw new Error("README.md has no place for the table");
  writeFileSync(
    "README.md",
    text.replace(marks, (_, from, to) => `${from}\n${table()}\n\n${to}`),
  );
}
