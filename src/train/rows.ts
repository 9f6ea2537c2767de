// Rows of training data, one by one: files of JSON lines, CSV, Parquet or plain text, arrays and async iterables. Each row knows where
// it came from, so that whoever refuses it can say so.
import { isUtf8 } from "node:buffer";
import type { FileHandle } from "node:fs/promises";
import { open } from "node:fs/promises";
import { basename, extname } from "node:path";
import { isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { splitCsv } from "./csv.js";
import { parquetRows } from "./parquet.js";

/** The forms of a data file. */
export const dataFormats = ["jsonl", "csv", "parquet", "text"] as const;
/** What a file of samples is written in; a name's ending says it where nobody does. */
export type DataFormat = (typeof dataFormats)[number];

/** Where rows come from: a file, or whatever gives objects. */
export type DataSource = string | Iterable<object> | AsyncIterable<object>;

/** One row: its fields, or why it has none. */
export interface Row {
  /** Such as "chat.jsonl:12", or "row 12" where there is no file. */
  readonly place: string;
  readonly fields?: Readonly<Record<string, unknown>>;
  readonly problem?: string;
}

/** The format that the name of a file tells. Throws ERR_BNB_OPTION for other names. */
export function formatOf(path: string): DataFormat {
  const ending = extname(path).toLowerCase();
  if (ending === ".jsonl" || ending === ".ndjson" || ending === ".json") return "jsonl";
  if (ending === ".csv") return "csv";
  if (ending === ".parquet") return "parquet";
  if (ending === ".txt" || ending === ".md") return "text";
  const rule = "loadDataset: a data file must end in .jsonl, .csv, .parquet or .txt, or its format be given";
  throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${path}`);
}

/** Reads the rows of a source in order; a file is never in memory as a whole, unless it is plain text. */
export async function* readRows(source: DataSource, format?: DataFormat): AsyncGenerator<Row> {
  if (typeof source !== "string") {
    let count = 0;
    for await (const fields of source) {
      const place = `row ${++count}`;
      if (isPlainObject(fields)) yield { place, fields: fields as Record<string, unknown> };
      else yield { place, problem: "is no object" };
    }
    return;
  }
  const file = await open(source, "r").catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${source}: could not be opened: ${cause.message}`, { cause });
  });
  const name = basename(source);
  try {
    const kind = format ?? formatOf(source);
    if (kind === "jsonl") yield* jsonLines(name, linesOf(file));
    else if (kind === "csv") yield* csvRows(name, linesOf(file));
    else if (kind === "parquet") yield* parquetTable(name, file);
    else {
      const bytes = await file.readFile();
      if (isUtf8(bytes)) yield { place: name, fields: { text: withoutMark(bytes.toString("utf8")) } };
      else yield { place: name, problem: NOT_UTF8 };
    }
  } catch (cause) {
    if (cause instanceof BnbError) throw cause;
    throw new BnbError("ERR_BNB_FILE", `${source}: could not be read: ${(cause as Error).message}`, { cause });
  } finally {
    await file.close();
  }
}

const NOT_UTF8 = "is not UTF-8";
/** No UTF-8 gives half of a pair, so one at the end of a line marks bytes that are none. */
const MARK = "\ud800";
const isMarked = (text: string): boolean => /\ud800/u.test(text);

function decoded(bytes: Buffer): string {
  const text = bytes.toString("utf8");
  return isUtf8(bytes) ? text : text.replace(/\n?$/, `${MARK}$&`);
}

// Lines with their ends. Not by readline, which from some version of Node on ends a line at U+2028, too: JSON has that within
// texts.
async function* linesOf(file: FileHandle): AsyncGenerator<string> {
  let waiting: Buffer[] = [];
  for await (const piece of file.createReadStream({ autoClose: false }) as AsyncIterable<Buffer>) {
    let start = 0;
    for (let end = piece.indexOf(10); end >= 0; end = piece.indexOf(10, start)) {
      yield decoded(Buffer.concat([...waiting, piece.subarray(start, end + 1)]));
      waiting = [];
      start = end + 1;
    }
    waiting.push(piece.subarray(start));
  }
  yield decoded(Buffer.concat(waiting));
}

async function* jsonLines(name: string, lines: AsyncIterable<string>): AsyncGenerator<Row> {
  let number = 0;
  for await (const line of lines) {
    number++;
    const text = (number === 1 ? withoutMark(line) : line).replace(/\n$/, "");
    if (text.trim() === "") continue;
    const place = `${name}:${number}`;
    if (isMarked(text)) {
      yield { place, problem: NOT_UTF8 };
      continue;
    }
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (error) {
      yield { place, problem: `is no JSON: ${(error as Error).message}` };
      continue;
    }
    if (isPlainObject(value)) yield { place, fields: value as Record<string, unknown> };
    else yield { place, problem: "is no JSON object" };
  }
}

async function* csvRows(name: string, pieces: AsyncIterable<string>): AsyncGenerator<Row> {
  let header: readonly string[] | null = null;
  for await (const { line, cells, problem } of splitCsv(pieces)) {
    const place = `${name}:${line}`;
    if (problem !== undefined) yield { place, problem };
    else if (header !== null && cells.some(isMarked)) yield { place, problem: NOT_UTF8 };
    else if (header === null) {
      header = cells.map((cell, i) => (i === 0 ? withoutMark(cell) : cell).trim());
      if (header.some(isMarked)) yield { place, problem: NOT_UTF8 };
    } else if (cells.length !== header.length) {
      yield { place, problem: `has ${cells.length} cells, where the first line has ${header.length}` };
    } else yield { place, fields: Object.fromEntries(header.map((key, i) => [key, cells[i]])) };
  }
}

async function* parquetTable(name: string, file: FileHandle): AsyncGenerator<Row> {
  let number = 0;
  for await (const fields of parquetRows(file)) yield { place: `${name}, row ${++number}`, fields };
}

const withoutMark = (text: string): string => (text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
