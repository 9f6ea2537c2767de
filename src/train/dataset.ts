// A data set: the samples of a source as token ids, and the rows that gave none, each with the reason.
import { realpath } from "node:fs/promises";
import { resolve } from "node:path";
import type { Tokenizer } from "../hub/index.js";
import { anAbortSignal, anInteger, anObjectWith, aString, checkArgument, oneOf, required } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { DataFormat, DataSource, Row } from "./rows.js";
import { dataFormats, formatOf, readRows } from "./rows.js";
import type { PreferencePair, Sample } from "./sample.js";
import { countedTokens, SampleMaker } from "./sample.js";
import type { SampleForm, SampleList } from "./stored-samples.js";
import { StoredSamples } from "./stored-samples.js";

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
export interface Dataset<S = Sample, L extends SampleList<S> = readonly S[]> {
  readonly samples: L;
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
 * The end of each is learned, too. A text is tokenized in one piece; a token astride the beginning of what is learned is learned,
 * one astride its end is not. A .txt file is one text, cut into samples of `maxLength` tokens.
 *
 * Rejects with ERR_BNB_FORMAT for a row that cannot be used, naming file, line and reason, unless `onBadRow` is "skip"; with
 * ERR_BNB_FILE for a file that cannot be read.
 *
 * @example
 * const { samples } = await train.loadDataset("chat.jsonl", { tokenizer, maxLength: 2048 });
 */
export async function loadDataset(source: DataSource, options: DatasetOptions): Promise<Dataset> {
  return inMemory("loadDataset", source, options, supervised);
}

/**
 * Reads preference pairs: rows with `prompt`, `chosen` and `rejected`, texts or messages. As `loadDataset`
 * otherwise; a pair of which one side is too long is cut, left out or refused as a whole.
 */
export async function loadPreferences(source: DataSource, options: DatasetOptions): Promise<Dataset<PreferencePair>> {
  return inMemory("loadPreferences", source, options, preferences);
}

/**
 * `loadDataset` for data larger than memory: the samples go into the file `path`, which takes the place of what is there when it
 * is complete, and are read from there one by one; dispose them when training is over. Of a .jsonl, .csv or .parquet file only
 * some rows are in memory at a time. A program that is killed meanwhile leaves a file beside it: ".", the name, and ".part" at
 * the end.
 *
 * @example
 * const { samples } = await train.storeDataset("large.jsonl", "large.tokens", { tokenizer, maxLength: 2048 });
 */
export async function storeDataset(
  source: DataSource,
  path: string,
  options: DatasetOptions,
): Promise<Dataset<Sample, StoredSamples<Sample>>> {
  return stored("storeDataset", source, path, options, supervised);
}

/** `loadPreferences` for data larger than memory, as `storeDataset`. */
export async function storePreferences(
  source: DataSource,
  path: string,
  options: DatasetOptions,
): Promise<Dataset<PreferencePair, StoredSamples<PreferencePair>>> {
  return stored("storePreferences", source, path, options, preferences);
}

/** What rows are made into. */
interface Kind<S> extends SampleForm<S> {
  make(maker: SampleMaker, row: Row, isText: boolean, maxLength: number): Promise<S[]>;
  cut(sample: S, maxLength: number): S;
}

const supervised: Kind<Sample> = {
  make: async (maker, row, isText, maxLength) => {
    const sample = await maker.sample(row.fields ?? {});
    return isText ? pieces(sample, maxLength) : [sample];
  },
  parts: (sample) => [sample],
  whole: ([sample]) => sample as Sample,
  cut: shortened,
};

const preferences: Kind<PreferencePair> = {
  make: async (maker, row) => [await maker.pair(row.fields ?? {})],
  parts: ({ chosen, rejected }) => [chosen, rejected],
  whole: ([chosen, rejected]) => ({ chosen: chosen as Sample, rejected: rejected as Sample }),
  cut: ({ chosen, rejected }, maxLength) => ({
    chosen: shortened(chosen, maxLength),
    rejected: shortened(rejected, maxLength),
  }),
};

async function inMemory<S>(
  op: string,
  source: DataSource,
  options: DatasetOptions,
  kind: Kind<S>,
): Promise<Dataset<S>> {
  checkReading(op, source, options);
  const samples: S[] = [];
  return { samples, ...(await read(op, source, options, kind, samples)) };
}

async function stored<S>(
  op: string,
  source: DataSource,
  path: string,
  options: DatasetOptions,
  kind: Kind<S>,
): Promise<Dataset<S, StoredSamples<S>>> {
  checkArgument(op, "path", path, aString);
  checkReading(op, source, options);
  if (typeof source === "string" && (await placeOf(source)) === (await placeOf(path))) {
    throw new BnbError("ERR_BNB_ARGUMENT", `${op}: path must be another file than the source, got ${path}`);
  }
  const samples = await StoredSamples.make(path, kind);
  try {
    const found = await read(op, source, options, kind, samples);
    samples.finish();
    return { samples, ...found };
  } catch (error) {
    samples.dispose();
    throw error;
  }
}

const placeOf = (path: string): Promise<string> => realpath(path).catch(() => resolve(path));

function checkReading(op: string, source: DataSource, options: DatasetOptions): void {
  checkArgument(op, "source", source, aSource);
  checkOptions(op, options, datasetOptions);
  if (typeof source === "string" && options.format === undefined) formatOf(source);
}

/** Where samples go. */
interface Sink<S> {
  readonly length: number;
  push(sample: S): void;
}

async function read<S>(
  op: string,
  source: DataSource,
  options: DatasetOptions,
  kind: Kind<S>,
  samples: Sink<S>,
): Promise<Pick<Dataset<S>, "truncated" | "skipped">> {
  const { tokenizer, maxLength, format, chatTemplate, onBadRow = "error", onTooLong = "truncate", signal } = options;
  const maker = await SampleMaker.for(tokenizer, chatTemplate);
  const isText = typeof source === "string" && (format ?? formatOf(source)) === "text";
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
      if (row.problem === undefined) made = await kind.make(maker, row, isText, maxLength);
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
      const fitting = longest > maxLength ? kind.cut(sample, maxLength) : sample;
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
  return { truncated, skipped };
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
