// One safetensors file as a lazy source of tensors.
import type { FileHandle } from "node:fs/promises";
import { open } from "node:fs/promises";
import { basename } from "node:path";
import { runtime } from "../native/runtime.js";
import { empty, tensor } from "../tensor/create.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";
import { sameDType } from "./file-dtype.js";
import type { SafetensorsHeader, TensorEntry } from "./safetensors-header.js";
import { formatError, headerLength, parseHeader } from "./safetensors-header.js";
import type { LoadOptions, TensorInfo, TensorSource } from "./source.js";

const GIT_LFS = "version https://git-lfs.github.com/spec/";

/** An open safetensors file. Only the header is read at first; tensors are read when they are asked for. */
export class SafetensorsFile implements TensorSource {
  readonly path: string;
  readonly metadata: ReadonlyMap<string, string>;
  readonly #file: FileHandle;
  readonly #tensors: ReadonlyMap<string, TensorEntry>;

  private constructor(path: string, file: FileHandle, header: SafetensorsHeader) {
    this.path = path;
    this.metadata = header.metadata;
    this.#file = file;
    this.#tensors = header.tensors;
  }

  /**
   * Opens a file and checks its header: types, shapes and places of all tensors, which must fill the file exactly.
   * Throws ERR_BNB_FORMAT naming the file and, where there is one, the tensor; ERR_BNB_FILE when it cannot be opened.
   */
  static async open(path: string): Promise<SafetensorsFile> {
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
      return new SafetensorsFile(path, file, parseHeader(await readBytes(file, 8, length, name), name, stat.size));
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  names(): IterableIterator<string> {
    return this.#tensors.keys();
  }

  has(name: string): boolean {
    return this.#tensors.has(name);
  }

  info(name: string): TensorInfo {
    const { dtype, shape, nbytes } = this.#entry(name);
    return { dtype, shape, nbytes, file: basename(this.path) };
  }

  async load(name: string, { device }: LoadOptions = {}): Promise<Tensor> {
    const { dtype, shape, offset } = this.#entry(name);
    const same: DType | undefined = dtype === "BOOL" ? "uint8" : sameDType(dtype);
    if (same !== undefined) {
      const result = empty(shape, { dtype: same, ...(device !== undefined && { device }) });
      try {
        await runtime.readFile(result.slot, this.#file.fd, offset, new ArrayBuffer(0));
        return result;
      } catch (error) {
        result.dispose();
        throw error;
      }
    }
    if (dtype === "I64") {
      const bytes = await this.bytes(name);
      return tensor(new BigInt64Array(bytes.buffer), { shape, ...(device !== undefined && { device }) });
    }
    const rule = "has no dtype among tensors; bytes() reads it as it is";
    throw new BnbError("ERR_BNB_DTYPE", `${basename(this.path)}: tensor "${name}" of ${dtype} ${rule}`);
  }

  async bytes(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const { offset, nbytes } = this.#entry(name);
    return readBytes(this.#file, offset, nbytes, basename(this.path));
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  #entry(name: string): TensorEntry {
    const entry = this.#tensors.get(name);
    if (entry === undefined) throw formatError(basename(this.path), `has no tensor ${JSON.stringify(name)}`);
    return entry;
  }
}

/** Reads exactly `nbytes`; a file that became shorter since it was opened is ERR_BNB_FILE. */
async function readBytes(
  file: FileHandle,
  offset: number,
  nbytes: number,
  name: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(nbytes);
  for (let at = 0; at < nbytes; ) {
    const { bytesRead } = await file.read(bytes, at, Math.min(nbytes - at, 1 << 30), offset + at);
    if (bytesRead === 0) {
      const what = `ended at byte ${offset + at}, ${offset + nbytes} must be there: it changed while it was read`;
      throw new BnbError("ERR_BNB_FILE", `${name}: ${what}`);
    }
    at += bytesRead;
  }
  return bytes;
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
