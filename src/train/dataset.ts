// A data set: the samples of a source as token ids, and the rows that gave none, each with the reason.
import type { Tokenizer } from "../hub/index.js";
import { anAbortSignal, anInteger, anObjectWith, aString, checkArgument, oneOf, required } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { DataFormat, DataSource, Row } from "./rows.js";
import { dataFormats, formatOf, readRows } from "./rows.js";
import type { PreferencePair, Sample } from "./sample.js";
import { countedTokens, SampleMaker } from "./sample.js";

/** Options of `loadDataset`. */
export interface DatasetOptions {
  tokenizer: Tokenizer;
  /** Tokens that a sample may have: at most the model's context. */
  maxLength: number;
  /** Default: by the ending of the file. */
  format?: DataFormat;
  /** A template, or the name of one of the tokenizer's. Default its own. */
  chatTemplate?: string;
  /** What a row that cannot be used does. Default "error". */
  onBadRow?: "error" | "skip";
  /** What a sample longer than `maxLength` does: it loses its end, is left out, or is an error. Default "truncate". */
  onTooLong?: "truncate" | "skip" | "error";
  /** Ends the work with `ERR_BNB_ABORTED`. */
  signal?: AbortSignal;
}
const datasetOptions = optionTable<DatasetOptions>({
  tokenizer: required(anObjectWith("a Tokenizer", "encode", "applyChatTemplate")),
  maxLength: required(anInteger(2)),
  format: oneOf(dataFormats),
  chatTemplate: aString,
  onBadRow: oneOf(["error", "skip"]),
  onTooLong: oneOf(["truncate", "skip", "error"]),
  signal: anAbortSignal,
});

const aSource = {
  rule: "the path of a file or an iterable of objects",
  holds: (v: unknown): boolean =>
    typeof v === "string" ||
    (typeof v === "object" && v !== null && (Symbol.iterator in v || Symbol.asyncIterator in v)),
};

/** Samples, and what was left out. */
export interface Dataset<S = Sample> {
  readonly samples: readonly S[];
  /** Samples that lost their end. */
  readonly truncated: number;
  /** Rows that gave no sample. */
  readonly skipped: readonly { readonly place: string; readonly reason: string }[];
}

/**
 * Reads training data: a .jsonl, .csv, .parquet or .txt file, an array or an async iterable of objects. A row has
 * - `text`: every token is learned;
 * - `prompt` and `completion` (texts, or messages): the completion is learned;
 * - `messages`: what the assistant says is learned, as the chat template writes it.
 *
 * The end of each is learned, too. A .txt file is one text, cut into samples of `maxLength` tokens.
 *
 * Rejects with ERR_BNB_FORMAT for a row that cannot be used, naming file, line and reason, unless `onBadRow` is "skip"; with
 * ERR_BNB_FILE for a file that cannot be read.
 *
 * @example
 * const { samples } = await train.loadDataset("chat.jsonl", { tokenizer, maxLength: 2048 });
 */
export async function loadDataset(source: DataSource, options: DatasetOptions): Promise<Dataset> {
  return load("loadDataset", source, options, {
    make: async (maker, row) => {
      const sample = await maker.sample(row.fields ?? {});
      return typeof source === "string" && (options.format ?? formatOf(source)) === "text"
        ? pieces(sample, options.maxLength)
        : [sample];
    },
    parts: (sample) => [sample],
    cut: (sample) => shortened(sample, options.maxLength),
  });
}

/**
 * Reads preference pairs: rows with `prompt`, `chosen` and `rejected`, texts or messages. As `loadDataset`
 * otherwise; a pair of which one side is too long is cut, left out or refused as a whole.
 */
export async function loadPreferences(source: DataSource, options: DatasetOptions): Promise<Dataset<PreferencePair>> {
  return load("loadPreferences", source, options, {
    make: async (maker, row) => [await maker.pair(row.fields ?? {})],
    parts: ({ chosen, rejected }) => [chosen, rejected],
    cut: ({ chosen, rejected }) => ({
      chosen: shortened(chosen, options.maxLength),
      rejected: shortened(rejected, options.maxLength),
    }),
  });
}

interface Kind<S> {
  make(maker: SampleMaker, row: Row): Promise<S[]>;
  parts(sample: S): readonly Sample[];
  cut(sample: S): S;
}

async function load<S>(op: string, source: DataSource, options: DatasetOptions, kind: Kind<S>): Promise<Dataset<S>> {
  checkArgument(op, "source", source, aSource);
  checkOptions(op, options, datasetOptions);
  const { tokenizer, maxLength, format, chatTemplate, onBadRow = "error", onTooLong = "truncate", signal } = options;
  const maker = await SampleMaker.for(tokenizer, chatTemplate);
  const samples: S[] = [];
  const skipped: { place: string; reason: string }[] = [];
  let truncated = 0;
  const leaveOut = (place: string, reason: string, isError: boolean): void => {
    if (isError) throw new BnbError("ERR_BNB_FORMAT", `${op}: ${place}: ${reason}`);
    skipped.push({ place, reason });
  };
  for await (const row of readRows(source, format)) {
    if (signal?.aborted) {
      throw new BnbError("ERR_BNB_ABORTED", `${op}: aborted by its signal`, { cause: signal.reason });
    }
    const { place } = row;
    let made: S[] = [];
    try {
      if (row.problem === undefined) made = await kind.make(maker, row);
      else leaveOut(place, row.problem, onBadRow === "error");
    } catch (error) {
      // What is wrong with the tokenizer is wrong with every row.
      const isRow = error instanceof BnbError && (error.code === "ERR_BNB_FORMAT" || error.code === "ERR_BNB_ARGUMENT");
      if (!isRow || error.message.startsWith(`${op}: `)) throw error;
      leaveOut(place, error.message, onBadRow === "error");
    }
    for (const sample of made) {
      const longest = Math.max(...kind.parts(sample).map(({ ids }) => ids.length));
      if (longest > maxLength && onTooLong !== "truncate") {
        const reason = `has ${longest} tokens, more than maxLength ${maxLength}`;
        leaveOut(place, reason, onTooLong === "error");
        continue;
      }
      const fitting = longest > maxLength ? kind.cut(sample) : sample;
      if (kind.parts(fitting).every((part) => countedTokens(part) > 0)) {
        samples.push(fitting);
        if (fitting !== sample) truncated++;
      } else {
        const where = longest > maxLength ? ` within the first ${maxLength} tokens` : "";
        leaveOut(place, `has no token to learn${where}`, onBadRow === "error" && longest <= maxLength);
      }
    }
  }
  if (samples.length === 0) {
    const first = skipped[0];
    const why = first ? `; the first row left out is ${first.place}: ${first.reason}` : "";
    throw new BnbError("ERR_BNB_FORMAT", `${op}: the data must hold a sample, got none${why}`);
  }
  return { samples, truncated, skipped };
}

function shortened({ ids, labels }: Sample, most: number): Sample {
  return { ids: ids.slice(0, most), labels: labels.slice(0, most) };
}

/** A long text in pieces, each with the last token of the one before it, so that every token is predicted once. */
function pieces({ ids, labels }: Sample, most: number): Sample[] {
  const made: Sample[] = [];
  for (let at = 0; at === 0 || at < ids.length - 1; at += most - 1) {
    made.push({ ids: ids.slice(at, at + most), labels: labels.slice(at, at + most) });
  }
  return made;
}
