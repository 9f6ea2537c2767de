// One open file as a lazy source of tensors.
import type { FileHandle } from "node:fs/promises";
import { basename } from "node:path";
import { runtime } from "../native/runtime.js";
import { cast, copyInto, reshape } from "../ops/index.js";
import { anInteger, aString, checkArgument } from "../tensor/checks.js";
import { empty, tensor } from "../tensor/create.js";
import type { DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { isFloat } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions } from "../tensor/options.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { sameDType } from "./file-dtype.js";
import type { Float8 } from "./float8.js";
import { isFloat8, widenFloat8 } from "./float8.js";
import type { SafetensorsHeader, TensorEntry } from "./safetensors-header.js";
import { formatError } from "./safetensors-header.js";
import type { LoadOptions, TensorInfo, TensorSource } from "./source.js";
import { loadChecks } from "./source.js";

/** Bytes of 8-bit floats that are widened at once: about a millisecond. */
const PIECE = 1 << 20;

/** An open file of which the place of every tensor is known; tensors are read when they are asked for. */
export class TensorFile implements TensorSource {
  readonly path: string;
  readonly metadata: ReadonlyMap<string, string>;
  readonly #file: FileHandle;
  readonly #tensors: ReadonlyMap<string, TensorEntry>;

  /** Takes over the open file. */
  constructor(path: string, file: FileHandle, header: SafetensorsHeader) {
    this.path = path;
    this.metadata = header.metadata;
    this.#file = file;
    this.#tensors = header.tensors;
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

  async load(name: string, options: LoadOptions = {}): Promise<Tensor> {
    checkOptions("load", options, loadChecks);
    const { dtype: type, shape, offset } = this.#entry(name);
    const place = options.device === undefined ? {} : { device: options.device };
    if (isFloat8(type)) return this.#loadFloat8(name, type, { ...place, dtype: options.dtype ?? "float32" });
    const own: DType | undefined = type === "BOOL" ? "uint8" : type === "I64" ? "int32" : sameDType(type);
    if (own === undefined) this.#refuseDType(name, "has no dtype among tensors; bytes() reads it as it is");
    const { dtype = own } = options;
    if (dtype !== own && !isFloat(own)) this.#refuseDType(name, `cannot become ${dtype}: its integers may be codes`);
    if (type === "I64") {
      const bytes = await this.bytes(name);
      return tensor(new BigInt64Array(bytes.buffer), { shape, ...place });
    }
    const result = empty(shape, { dtype: own, ...place });
    try {
      await runtime.readFile(result.slot, this.#file.fd, offset, new ArrayBuffer(0));
    } catch (error) {
      result.dispose();
      throw error;
    }
    if (dtype === own) return result;
    const converted = cast(result, dtype);
    result.dispose();
    return converted;
  }

  async bytes(name: string, begin = 0, end?: number): Promise<Uint8Array<ArrayBuffer>> {
    const { offset, nbytes } = this.#entry(name);
    checkArgument("bytes", "begin", begin, anInteger(0, nbytes));
    if (end !== undefined) checkArgument("bytes", "end", end, anInteger(begin, nbytes));
    return readBytes(this.#file, offset + begin, (end ?? nbytes) - begin, basename(this.path));
  }

  /** Piece by piece, so that neither codes nor values are in memory of JavaScript as a whole. */
  async #loadFloat8(name: string, type: Float8, place: { device?: DeviceLike; dtype: DType }): Promise<Tensor> {
    const { shape, nbytes } = this.#entry(name);
    const result = empty(shape, place);
    try {
      for (let at = 0; at < nbytes; at += PIECE) {
        const codes = await this.bytes(name, at, Math.min(at + PIECE, nbytes));
        const values = widenFloat8(codes, type, place.dtype);
        tidy(() => copyInto(reshape(result, [nbytes]), tensor(values, place), { start: at }));
      }
      return result;
    } catch (error) {
      result.dispose();
      throw error;
    }
  }

  #refuseDType(name: string, rule: string): never {
    const what = `tensor "${name}" of ${this.#entry(name).dtype} ${rule}`;
    throw new BnbError("ERR_BNB_DTYPE", `${basename(this.path)}: ${what}`);
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  #entry(name: string): TensorEntry {
    checkArgument(basename(this.path), "name", name, aString);
    const entry = this.#tensors.get(name);
    if (entry === undefined) throw formatError(basename(this.path), `has no tensor ${JSON.stringify(name)}`);
    return entry;
  }
}

/** Reads exactly `nbytes`; a file that became shorter since it was opened is ERR_BNB_FILE. */
export async function readBytes(
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
