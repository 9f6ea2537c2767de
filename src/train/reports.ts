// Where the numbers of a run go: the console, a file of JSON lines, a function.
import { appendFile } from "node:fs/promises";
import { dirname } from "node:path";
import { makeFolders } from "../hub/make-folders.js";
import { BnbError } from "../tensor/errors.js";

/** One report: of some steps, or of an evaluation. */
export interface LogEntry {
  readonly step: number;
  /** Epochs done, with fraction. */
  readonly epoch: number;
  /** Mean loss of a token since the last report. */
  readonly loss?: number;
  readonly learningRate?: number;
  /** Norm of the gradients of the last step, before clipping. */
  readonly gradNorm?: number;
  /** Tokens that count, per second. */
  readonly tokensPerSecond?: number;
  readonly evalLoss?: number;
  readonly evalPerplexity?: number;
  /** Further numbers of a trainer. */
  readonly [name: string]: number | undefined;
}

/** "console", the path of a file that gets a line of JSON for each report, or a function. */
export type ReportTarget = string | ((entry: LogEntry) => void);

/** Gives a report to all targets. */
export async function report(targets: readonly ReportTarget[], entry: LogEntry): Promise<void> {
  for (const target of targets) {
    if (typeof target === "function") target(entry);
    else if (target === "console") process.stdout.write(`${lineOf(entry)}\n`);
    else {
      try {
        await makeFolders(dirname(target));
        await appendFile(target, `${JSON.stringify(entry)}\n`);
      } catch (cause) {
        throw new BnbError("ERR_BNB_FILE", `${target}: could not be written: ${(cause as Error).message}`, { cause });
      }
    }
  }
}

function lineOf(entry: LogEntry): string {
  const numbers = Object.entries(entry).flatMap(([key, value]) =>
    value === undefined ? [] : [`${key} ${Number.isInteger(value) ? value : value.toPrecision(5)}`],
  );
  return numbers.join("  ");
}
