// Files of the reference writer, read and written again byte for byte; and headers that must be refused.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { headerLength, parseHeader } from "../../src/hub/safetensors-header.js";
import { saveSafetensors } from "../../src/hub/safetensors-writer.js";

const folder = mkdtempSync(join(tmpdir(), "bnb-safetensors-"));
afterAll(() => rmSync(folder, { recursive: true }));

function headerOf(file: Buffer, name = "x.safetensors") {
  const length = headerLength(file.subarray(0, 8), name, file.byteLength);
  return parseHeader(file.subarray(8, 8 + length), name, file.byteLength);
}
/** A file with this JSON as header and `bytes` zeros after it. */
function fileOf(json: string, bytes = 0): Buffer {
  const header = Buffer.from(json);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(header.byteLength));
  return Buffer.concat([size, header, Buffer.alloc(bytes)]);
}
const refused = (json: string, bytes = 0) => expect(() => headerOf(fileOf(json, bytes)));

const fixtures = (readdirSync("test/fixtures", { recursive: true }) as string[]).filter((path) =>
  path.endsWith(".safetensors"),
);

describe("files of the reference writer", () => {
  it.each(fixtures)("%s is written again byte for byte", async (path) => {
    const file = readFileSync(join("test/fixtures", path));
    const { tensors, metadata } = headerOf(file, path);
    // In another order than the file's.
    const raw = [...tensors]
      .reverse()
      .map(([name, { dtype, shape, offset, nbytes }]) => [name, { dtype, shape, bytes: file.subarray(offset, offset + nbytes) }]);
    const copy = join(folder, "copy.safetensors");
    await saveSafetensors(copy, Object.fromEntries(raw), { metadata: Object.fromEntries(metadata) });
    expect(readFileSync(copy).equals(file)).toBe(true);
  });
});
