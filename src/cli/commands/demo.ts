// `bnb demo`: the whole line on real text, from training to generation, with a report to look at.
import { accessSync, constants, existsSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { parseArgs } from "node:util";
import { toDevice } from "../../tensor/device.js";
import { BnbError } from "../../tensor/errors.js";
import type { Command } from "../command.js";
import type { Corpus, CorpusOptions } from "../demo/corpus.js";
import { fileCorpus, packageCorpus } from "../demo/corpus.js";
import { reportPage } from "../demo/report.js";
import { runDemo } from "../demo/run.js";
import type { DemoSettings } from "../demo/settings.js";
import { fullSettings, quickSettings } from "../demo/settings.js";
import { Terminal } from "../demo/terminal.js";

const help = `Usage: bnb demo [options]

Trains a byte-level Llama from scratch with 32-bit and 8-bit AdamW, quantizes it to INT8, FP4 and NF4, fine-tunes
adapters over the frozen NF4 weights, generates text from both, and writes a report. Exits with 1 when one of the
claims that it prints does not hold.

Options:
  --quick          the same with fewer steps
  --seed N         seed of weights, batches and samples (default 1)
  --text FILE      text to train on (default: the Markdown files of the installed packages)
  --style FILE     text to fine-tune on (default: the TypeScript declarations of the installed packages)
  --device NAME    where to compute: cpu, cuda, cuda:N or auto (default auto: the first GPU, else the CPU)
  --report FILE    where the page goes (default report/index.html)
  --json FILE      write every measurement to a file
  -h, --help       show this help
`;

const markdown: CorpusOptions = {
  name: "Markdown files",
  extension: ".md",
  minBytes: 100_000,
  maxBytes: 3_000_000,
  maxFileBytes: 65_536,
};
const declarations: CorpusOptions = {
  name: "TypeScript declaration files",
  extension: ".d.ts",
  minBytes: 100_000,
  maxBytes: 2_000_000,
  maxFileBytes: 65_536,
};

/** The command, at sizes other than the usual ones where a test wants them. */
export function demoCommand(sizes?: DemoSettings): Command {
  return {
    help,
    async run(args, { stdout, version }) {
      const { values } = parseArgs({
        args,
        options: {
          quick: { type: "boolean", default: false },
          seed: { type: "string", default: "1" },
          text: { type: "string" },
          style: { type: "string" },
          device: { type: "string", default: "auto" },
          report: { type: "string", default: join("report", "index.html") },
          json: { type: "string" },
        },
      });
      const settings = sizes ?? (values.quick ? quickSettings : fullSettings);
      // Before the work, which takes a minute or more.
      checkWritable("--report", values.report);
      if (values.json !== undefined) checkWritable("--json", values.json);
      const terminal = new Terminal(stdout);
      const results = await runDemo({
        settings,
        seed: seedFrom(values.seed),
        device: toDevice(values.device),
        text: corpus(values.text, markdown),
        style: corpus(values.style, declarations),
        version,
        terminal,
      });

      writeFileSync(values.report, reportPage(results));
      terminal.line(`\nReport: ${relative(process.cwd(), values.report)} (${results.seconds.toFixed(1)} s in all)`);
      if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(results, null, 2)}\n`);
      const failed = results.checks.filter(({ holds }) => !holds).length;
      if (failed > 0) terminal.line(terminal.paint("red", `${failed} of ${results.checks.length} claims do not hold`));
      return failed > 0 ? 1 : 0;
    },
  };
}

/** `bnb demo` as it is called. */
export const demo: Command = demoCommand();

function corpus(path: string | undefined, options: CorpusOptions): Corpus {
  return path === undefined ? packageCorpus(options) : fileCorpus(path, options);
}

function seedFrom(text: string): number {
  const seed = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(seed)) return seed;
  throw new BnbError("ERR_BNB_OPTION", `demo: --seed must be a whole number of at least 0, got ${text}`);
}

/** Makes the folder of a file that will be written; throws ERR_BNB_OPTION where that cannot be. */
function checkWritable(option: string, path: string): void {
  try {
    mkdirSync(dirname(path), { recursive: true });
    if (existsSync(path) && statSync(path).isDirectory()) throw new Error("it is a folder");
    accessSync(existsSync(path) ? path : dirname(path), constants.W_OK);
  } catch (cause) {
    const message = `demo: ${option} must name a file that can be written, got ${path}: ${(cause as Error).message}`;
    throw new BnbError("ERR_BNB_OPTION", message, { cause });
  }
}
