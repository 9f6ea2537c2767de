// A safetensors file, opened: its header is read and checked, its tensors wait to be asked for.
import { open } from "node:fs/promises";
import { basename } from "node:path";
import { aString, checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { formatError, headerLength, parseHeader } from "./safetensors-header.js";
import { readBytes, TensorFile } from "./tensor-file.js";

const GIT_LFS = "version https://git-lfs.github.com/spec/";

/**
 * Opens a file and checks its header: types, shapes and places of all tensors, which must fill the file exactly.
 * Throws ERR_BNB_FORMAT naming the file and, where there is one, the tensor; ERR_BNB_FILE when it cannot be opened.
 */
export async function openSafetensors(path: string): Promise<TensorFile> {
  checkArgument("openSafetensors", "path", path, aString);
  const name = basename(path);
  const file = await open(path, "r").catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be opened: ${cause.message}`, { cause });
  });
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw formatError(name, "is not a file");
    const first = await readBytes(file, 0, Math.min(stat.size, 200), name);
    refuseOthers(first, name, stat.size);
    const length = headerLength(first, name, stat.size);
    return new TensorFile(path, file, parseHeader(await readBytes(file, 8, length, name), name, stat.size));
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Files that people meet in the place of a safetensors file, each with what to do. */
function refuseOthers(first: Uint8Array, name: string, size: number): void {
  if (first[8] === 0x7b) return; // where the JSON of a safetensors file begins
  const text = Buffer.from(first).toString("latin1");
  if (text.startsWith(GIT_LFS)) {
    const expected = /^size (\d+)$/m.exec(text)?.[1] ?? "an unknown number of";
    const advice = '"git lfs pull" fetches it, or download it from the hub';
    throw formatError(name, `is a Git LFS pointer of ${size} bytes; the file itself has ${expected} bytes: ${advice}`);
  }
  if (text.startsWith("GGUF")) {
    const advice = "use the model's safetensors files, quantized while they load";
    throw formatError(name, `is a GGUF file, whose block formats are llama.cpp's own: ${advice}`);
  }
  if (text.startsWith("PK\u0003\u0004") || text.startsWith("\u0080")) {
    throw formatError(name, "is a PyTorch pickle or an archive, not safetensors");
  }
  if (/^\s*</.test(text)) throw formatError(name, "is a web page, as from a download that needed a login");
}
