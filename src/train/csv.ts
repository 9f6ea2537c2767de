// Comma-separated values as RFC 4180 has them: cells in quotes may hold commas, line ends and doubled quotes.

/** One record, and the line of the file on which it begins. */
export interface CsvRecord {
  readonly line: number;
  readonly cells: readonly string[];
  readonly problem?: string;
}

/** Splits text that comes in pieces; empty lines are no records. */
export async function* splitCsv(pieces: AsyncIterable<string>): AsyncGenerator<CsvRecord> {
  let [line, start] = [1, 1];
  let cells: string[] = [];
  let cell = "";
  // Behind a quote inside quotes one more character tells whether it ended the cell or stands for itself.
  let state: "bare" | "quoted" | "quote" = "bare";
  let wasQuoted = false;
  const record = function* (): Generator<CsvRecord> {
    const isEmpty = cells.length === 0 && cell === "" && !wasQuoted;
    cells.push(cell);
    if (!isEmpty) yield { line: start, cells };
    [cells, cell, wasQuoted, state] = [[], "", false, "bare"];
  };
  for await (const piece of pieces) {
    for (const c of piece) {
      if (c === "\n") line++;
      if (state === "quoted") {
        if (c === '"') state = "quote";
        else cell += c;
        continue;
      }
      if (state === "quote" && c === '"') {
        cell += c;
        state = "quoted";
        continue;
      }
      if (c === '"' && cell === "" && !wasQuoted) {
        state = "quoted";
        wasQuoted = true;
      } else if (c === ",") {
        cells.push(cell);
        [cell, wasQuoted, state] = ["", false, "bare"];
      } else if (c === "\n") {
        yield* record();
        start = line;
      } else if (c !== "\r") cell += c;
    }
  }
  if (state === "quoted") yield { line: start, cells: [], problem: "has a quote that is never closed" };
  else yield* record();
}
