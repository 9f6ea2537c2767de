// What commands write for people: headings, aligned tables, and progress in a line that rewrites itself. Results go to
// the standard output and progress to that of errors, so that a pipe gets results only. Colours and the line that
// rewrites itself are for terminals.
import { styleText } from "node:util";

type Style = Parameters<typeof styleText>[0];

/** A place to write text to; `process.stdout` is one. */
export interface Output {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

/** Off a terminal, progress is told this often. */
const PLAIN_MS = 5000;
/** On one, this often. */
const LIVE_MS = 50;

/** Writes a command's output in one look. */
export class Terminal {
  readonly #out: Output;
  readonly #err: Output | null;
  #hasLine = false;
  #told = Number.NEGATIVE_INFINITY;
  #label = "";

  /** `err` takes progress; null: there is none. */
  constructor(out: Output, err: Output | null) {
    this.#out = out;
    this.#err = err;
  }

  /** Text in a colour, where colours show. */
  paint(style: Style, text: string): string {
    return this.#out.isTTY && !process.env.NO_COLOR ? styleText(style, text) : text;
  }

  /** Writes text, whatever it comes from: of its control characters only tabs and ends of lines get through. */
  write(text: string, style?: Style): void {
    this.#print(text, style, "");
  }

  line(text = "", style?: Style): void {
    this.#print(text, style, "\n");
  }

  #print(text: string, style: Style | undefined, end: string): void {
    this.end();
    const shown = printable(text);
    this.#out.write(`${style === undefined ? shown : this.paint(style, shown)}${end}`);
  }

  heading(text: string): void {
    this.line();
    this.line(text, "bold");
  }

  /** Shows how much of `total` is done. The line goes with the next other output, or with `end`. */
  progress(label: string, done: number, total: number, detail = ""): void {
    const err = this.#err;
    const shown = printable(detail);
    const now = performance.now();
    const isFirst = label !== this.#label;
    this.#label = label;
    if (!err) return;
    const share = total > 0 ? Math.min(done / total, 1) : 1;
    const percent = `${String(Math.floor(share * 100)).padStart(3)} %`;
    if (err.isTTY && !process.env.CI) {
      if (!isFirst && done < total && now - this.#told < LIVE_MS) return;
      const full = Math.round(share * 24);
      const text = `  ${label.padEnd(12)} ${"━".repeat(full)}${"─".repeat(24 - full)} ${percent}  ${shown}`;
      err.write(`\r\x1b[2K${text.slice(0, (err.columns ?? 80) - 1)}`);
      this.#hasLine = true;
      this.#told = now;
    } else if (isFirst) this.#told = now;
    else if (now - this.#told >= PLAIN_MS) {
      err.write(`  ${label.padEnd(12)} ${percent}  ${shown}\n`);
      this.#told = now;
    }
  }

  /** Takes the line of progress away. */
  end(): void {
    if (this.#hasLine) this.#err?.write("\r\x1b[2K");
    this.#hasLine = false;
  }

  /** Columns padded to their widest cell: the first to the left, the others to the right, or as `align` says. */
  table(
    header: readonly string[],
    rows: readonly (readonly string[])[],
    align: readonly ("left" | "right")[] = [],
  ): void {
    const widths = header.map((cell, i) => Math.max(cell.length, ...rows.map((row) => (row[i] ?? "").length)));
    const format = (row: readonly string[]) =>
      `  ${row
        .map((cell, i) => {
          const isLeft = (align[i] ?? (i === 0 ? "left" : "right")) === "left";
          return isLeft ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0);
        })
        .join("   ")
        .trimEnd()}`;
    this.line(format(header), "dim");
    const rule = widths.reduce((sum, width) => sum + width, 3 * (widths.length - 1));
    this.line(`  ${"─".repeat(rule)}`, "dim");
    for (const row of rows) this.line(format(row).replace(/[\t\n]/g, "·"));
  }
}

/** 1234567 as "1,234,567". */
export function count(n: number): string {
  return Math.round(n).toLocaleString("en");
}

/** Bytes as people read them: "117.4 MiB". */
export function bytes(n: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  let value = n;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return unit === 0
    ? `${n} B`
    : `${value < 9.95 ? value.toFixed(2) : value < 99.95 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** What may reach a terminal of a text that a model or a file brought: control characters become a dot. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not reach a terminal
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, "·");
}
