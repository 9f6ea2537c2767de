// `bnb demo`: the whole line on real text, from training to generation, with a report to look at.
import { dirname, join, relative } from "node:path";
import { toDevice } from "../../tensor/device.js";
import type { Command } from "../command.js";
import { command, deviceOption, wholeNumber } from "../command.js";
import type { Corpus, CorpusOptions } from "../demo/corpus.js";
import { fileCorpus, packageCorpus } from "../demo/corpus.js";
import { reportPage } from "../demo/report.js";
import { runDemo } from "../demo/run.js";
import type { DemoSettings } from "../demo/settings.js";
import { fullSettings, quickSettings } from "../demo/settings.js";
import { checkWritable, writePage } from "../new-folder.js";

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
  return command({
    about: `Trains a byte-level Llama from scratch with 32-bit and 8-bit AdamW, quantizes it to INT8, FP4 and NF4, fine-tunes
adapters over the frozen NF4 weights, generates text from both, and writes a report. Exits with 1 when one of the
claims that it prints does not hold. The trained model stays as a checkpoint in the folder of the report.`,
    options: {
      quick: { type: "boolean", help: "the same with fewer steps" },
      seed: { type: "string", value: "N", default: "1", help: "seed of weights, batches and samples" },
      text: {
        type: "string",
        value: "FILE",
        help: "text to train on (default: Markdown files of installed packages)",
      },
      style: {
        type: "string",
        value: "FILE",
        help: "text to fine-tune on (default: their TypeScript declarations)",
      },
      device: deviceOption,
      report: { type: "string", value: "FILE", default: join("report", "index.html"), help: "where the page goes" },
    },
    async run({ values, terminal, version, signal }) {
      const settings = sizes ?? (values.quick ? quickSettings : fullSettings);
      // Before the work, which takes a minute or more.
      await checkWritable("--report", values.report);
      const results = await runDemo({
        settings,
        seed: wholeNumber("--seed", values.seed, 0),
        device: toDevice(values.device),
        text: corpus(values.text, markdown),
        style: corpus(values.style, declarations),
        version,
        terminal,
        checkpoint: join(dirname(values.report), "model"),
        signal,
      });

      await writePage(values.report, reportPage(results));
      terminal.line(`\nReport: ${relative(process.cwd(), values.report)} (${results.seconds.toFixed(1)} s in all)`);
      const failed = results.checks.filter(({ holds }) => !holds).length;
      if (failed > 0) terminal.line(`${failed} of ${results.checks.length} claims do not hold`, "red");
      return { json: results, code: failed > 0 ? 1 : 0 };
    },
  });
}

/** `bnb demo` as it is called. */
export const demo: Command = demoCommand();

function corpus(path: string | undefined, options: CorpusOptions): Corpus {
  return path === undefined ? packageCorpus(options) : fileCorpus(path, options);
}
