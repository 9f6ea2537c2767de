// Rows of Parquet files, one group of rows in memory at a time.
import type { FileHandle } from "node:fs/promises";
import { brotliDecompressSync, gunzipSync } from "node:zlib";

/** The rows of an open file in order. Throws an Error that says what is wrong with the file. */
export async function* parquetRows(file: FileHandle): AsyncGenerator<Record<string, unknown>> {
  // An ES module, which a CommonJS one can only import so.
  const { parquetMetadataAsync, parquetReadObjects } = await import("hyparquet");
  const { size: byteLength } = await file.stat();
  const buffer = {
    byteLength,
    async slice(start: number, end = byteLength): Promise<ArrayBuffer> {
      const bytes = new Uint8Array(Math.max(0, end - start));
      const { bytesRead } = await file.read(bytes, 0, bytes.length, start);
      if (bytesRead < bytes.length) throw new Error(`it ends at byte ${start + bytesRead}`);
      return bytes.buffer;
    },
  };
  const compressors = {
    GZIP: (input: Uint8Array) => gunzipSync(input),
    BROTLI: (input: Uint8Array) => brotliDecompressSync(input),
  };
  const metadata = await parquetMetadataAsync(buffer);
  let rowStart = 0;
  for (const group of metadata.row_groups) {
    const rowEnd = rowStart + Number(group.num_rows);
    yield* await parquetReadObjects({ file: buffer, metadata, rowStart, rowEnd, compressors });
    rowStart = rowEnd;
  }
}
