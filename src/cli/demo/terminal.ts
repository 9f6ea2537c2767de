// What the demo writes to a terminal: headings, a progress line that rewrites itself, aligned tables. Into a pipe
// or a file it writes plain lines and only some of the progress.
import { styleText } from "node:util";
import type { StepReport } from "../../train/index.js";
import type { Output } from "../command.js";

type Style = Parameters<typeof styleText>[0];

/** Writes the demo's output in one look. */
export class Terminal {
  readonly #out: Output;
  readonly #isLive: boolean;
  #hasLine = false;

  constructor(out: Output) {
    this.#out = out;
    this.#isLive = out.isTTY === true && !process.env.CI;
  }

  /** Text in a colour, where colours show. */
  paint(style: Style, text: string): string {
    return this.#out.isTTY && !process.env.NO_COLOR ? styleText(style, text) : text;
  }

  write(text: string): void {
    this.#out.write(text);
  }

  line(text = ""): void {
    this.#endProgress();
    this.#out.write(`${text}\n`);
  }

  heading(text: string): void {
    this.line();
    this.line(this.paint("bold", text));
  }

  /** Shows a step; off a terminal, about ten of a run. */
  progress(label: string, { step, steps, loss, tokensPerSecond, secondsLeft }: StepReport): void {
    const text =
      `  ${label.padEnd(12)} step ${String(step).padStart(String(steps).length)}/${steps}` +
      `  loss ${loss.toFixed(3)}  ${Math.round(tokensPerSecond).toLocaleString("en")} tokens/s` +
      `  ${Math.ceil(secondsLeft)} s left`;
    if (this.#isLive) {
      this.#out.write(`\r\x1b[2K${text}`);
      this.#hasLine = true;
      if (step === steps) this.#endProgress();
    } else if (step === 1 || step === steps || step % Math.ceil(steps / 10) === 0) {
      this.#out.write(`${text}\n`);
    }
  }

  /** Columns padded to their widest cell: the first to the left, the others to the right. */
  table(header: string[], rows: string[][]): void {
    const widths = header.map((cell, i) => Math.max(cell.length, ...rows.map((row) => (row[i] ?? "").length)));
    const format = (row: string[]) =>
      `  ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join("   ")}`;
    this.line(this.paint("dim", format(header)));
    this.line(
      this.paint("dim", `  ${"─".repeat(widths.reduce((sum, width) => sum + width, 3 * (widths.length - 1)))}`),
    );
    for (const row of rows) this.line(format(row));
  }

  #endProgress(): void {
    if (this.#hasLine) this.#out.write("\n");
    this.#hasLine = false;
  }
}

/** 1234567 as "1,234,567". */
export function count(n: number): string {
  return Math.round(n).toLocaleString("en");
}
