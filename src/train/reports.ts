// Where the numbers of a run go: the console, a file of JSON lines, event files of TensorBoard, a function.
import { appendFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { makeFolders } from "../hub/make-folders.js";
import { BnbError } from "../tensor/errors.js";
import type { LogEntry } from "./log-entry.js";
import { EventFile } from "./tensorboard.js";

/**
 * "console"; "tensorboard", for event files in runs/ of the output folder; the path of a file that gets a line of JSON for each
 * report; a function; or "none".
 */
export type ReportTarget = string | ((entry: LogEntry) => void);

/** Gives the reports of a run to all its targets. */
export class Reporter {
  readonly #targets: readonly ReportTarget[];
  readonly #events: EventFile;

  constructor(targets: readonly ReportTarget[], outputDir: string) {
    this.#targets = targets.filter((target) => target !== "none");
    this.#events = new EventFile(join(outputDir, "runs"));
  }

  /** Throws ERR_BNB_FILE where one cannot be written. */
  async add(entry: LogEntry): Promise<void> {
    for (const target of this.#targets) {
      if (typeof target === "function") target(entry);
      else if (target === "console") process.stdout.write(`${lineOf(entry)}\n`);
      else if (target === "tensorboard") await written(this.#events.path, () => this.#events.add(entry));
      else await written(target, () => appendLine(target, entry));
    }
  }
}

async function appendLine(path: string, entry: LogEntry): Promise<void> {
  await makeFolders(dirname(path));
  await appendFile(path, `${JSON.stringify(entry)}\n`);
}

async function written(path: string, write: () => Promise<void>): Promise<void> {
  await write().catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be written: ${cause.message}`, { cause });
  });
}

function lineOf(entry: LogEntry): string {
  const numbers = Object.entries(entry).flatMap(([key, value]) =>
    value === undefined ? [] : [`${key} ${Number.isInteger(value) ? value : value.toPrecision(5)}`],
  );
  return numbers.join("  ");
}
