// pytorch_model.bin: the zip container of torch.save as a lazy source of tensors. For older checkpoints that exist in no
// other form; saving is always safetensors.
import { open } from "node:fs/promises";
import { basename } from "node:path";
import { aString, checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import type { FileDType } from "./file-dtype.js";
import { byteLengthOf, fileTypes } from "./file-dtype.js";
import type { Pickled } from "./pickle.js";
import { PickledTensor, readPickle } from "./pickle.js";
import type { TensorEntry } from "./safetensors-header.js";
import { formatError } from "./safetensors-header.js";
import { TensorFile } from "./tensor-file.js";
import type { ZipEntry } from "./zip.js";
import { dataOffset, readExactly, readZip } from "./zip.js";

const storageTypes: Readonly<Record<string, FileDType>> = {
  DoubleStorage: "F64",
  FloatStorage: "F32",
  HalfStorage: "F16",
  BFloat16Storage: "BF16",
  LongStorage: "I64",
  IntStorage: "I32",
  ShortStorage: "I16",
  CharStorage: "I8",
  ByteStorage: "U8",
  BoolStorage: "BOOL",
};
const MAX_PICKLE = 64 << 20;
const MAX_DEPTH = 8;
const MAX_VALUES = 1_000_000;

/**
 * Opens a file of torch.save that holds a state dict, whose pickle is read through a whitelist: nothing in it is executed.
 * Dicts in dicts give names with dots; what is no tensor is left out. Throws ERR_BNB_FORMAT for anything else.
 */
export async function openPickle(path: string): Promise<TensorFile> {
  checkArgument("openPickle", "path", path, aString);
  const name = basename(path);
  const file = await open(path, "r").catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be opened: ${cause.message}`, { cause });
  });
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw formatError(name, "is not a file");
    const first = await readExactly(file, 0, Math.min(stat.size, 4), name);
    if (!first.equals(Buffer.from("PK\x03\x04"))) {
      const what = first[0] === 0x80 ? "is a bare pickle, as torch before 1.6 wrote it" : "is no file of torch.save";
      throw formatError(name, `${what}: load and save it with a newer torch, or as safetensors`);
    }
    const zip = await readZip(file, name, stat.size);
    const pickle = [...zip.values()].find((entry) => /^[^/]+\/data\.pkl$/.test(entry.name));
    if (!pickle) throw formatError(name, "holds no data.pkl, so it is no file of torch.save");
    const folder = pickle.name.slice(0, -"data.pkl".length);
    const bytesOf = async (entry: ZipEntry): Promise<Buffer> =>
      readExactly(file, await dataOffset(file, name, entry, stat.size), entry.size, name);
    const order = zip.get(`${folder}byteorder`);
    if (order && order.size <= 16 && (await bytesOf(order)).toString() !== "little") {
      throw formatError(name, "was written on a machine with another byte order");
    }
    if (pickle.size > MAX_PICKLE) throw formatError(name, `its pickle has ${pickle.size} bytes, too many for names`);
    const tensors = new Map<string, TensorEntry>();
    for (const [key, tensor] of flatten(readPickle(await bytesOf(pickle), name), name)) {
      const entry = zip.get(`${folder}data/${tensor.storage.key}`);
      if (!entry) throw formatError(name, `tensor ${JSON.stringify(key)} has no storage in the file`);
      tensors.set(key, place(key, tensor, entry.size, await dataOffset(file, name, entry, stat.size), name));
    }
    return new TensorFile(path, file, { tensors, metadata: new Map() });
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Tensors by name, in the order of the dict. */
function flatten(root: Pickled, file: string): Map<string, PickledTensor> {
  const found = new Map<string, PickledTensor>();
  let visits = 0;
  const visit = (prefix: string, value: Pickled, depth: number): void => {
    if (++visits > MAX_VALUES) throw formatError(file, `has more than ${MAX_VALUES} values`);
    if (value instanceof PickledTensor) {
      if (found.has(prefix)) throw formatError(file, `has two tensors ${JSON.stringify(prefix)}`);
      found.set(prefix, value);
    } else if (value instanceof Map) {
      if (depth > MAX_DEPTH) throw formatError(file, `its dicts nest more than ${MAX_DEPTH} deep`);
      for (const [key, item] of value) visit(prefix === "" ? String(key) : `${prefix}.${key}`, item, depth + 1);
    }
  };
  if (!(root instanceof Map)) throw formatError(file, "must hold a dict of tensors");
  visit("", root, 1);
  return found;
}

function place(
  name: string,
  { storage, offset, shape, strides }: PickledTensor,
  available: number,
  begin: number,
  file: string,
): TensorEntry {
  const fail = (what: string): never => {
    throw formatError(file, `tensor ${JSON.stringify(name.slice(0, 200))} ${what}`);
  };
  const dtype = storageTypes[storage.type] as FileDType;
  const nbytes = byteLengthOf(dtype, shape) ?? fail(`of [${shape.join(", ")}] has too many elements`);
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const size = shape[axis] as number;
    if (size > 1 && strides[axis] !== step && nbytes > 0) fail("is not contiguous: save it as safetensors");
    step *= size;
  }
  const skipped = (offset * fileTypes[dtype].bits) / 8;
  if (!(skipped + nbytes <= available)) {
    fail(`needs ${skipped + nbytes} bytes of a storage that has ${available}`);
  }
  return { dtype, shape, offset: begin + skipped, nbytes };
}
