// Loads a checkpoint into a model, layer by layer: one tensor is read, converted or quantized, and released before the
// next, so that beside the model at most two of its largest tensors are in memory.
import { noGrad } from "../autograd/no-grad.js";
import { Module } from "../nn/index.js";
import { StateLoader } from "../nn/state-loader.js";
import { aBlocksize } from "../ops/quant-checks.js";
import {
  aFunction,
  anAbortSignal,
  anInstance,
  anObjectWith,
  aPlainObject,
  aString,
  checkArgument,
  orNull,
} from "../tensor/checks.js";
import { synchronize } from "../tensor/device.js";
import { isFloat } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { Tensor } from "../tensor/tensor.js";
import { BitsAndBytesConfig } from "./bits-and-bytes-config.js";
import { sameDType } from "./file-dtype.js";
import { isFloat8 } from "./float8.js";
import type { QuantizationLoss } from "./quantization-loss.js";
import { isQuantizable, quantizeMeasured } from "./quantization-loss.js";
import { quantizeLinears } from "./quantize-linears.js";
import { RenamedSource } from "./renamed-source.js";
import { formatError } from "./safetensors-header.js";
import type { TensorSource } from "./source.js";

/** How far a load is. */
export interface LoadProgress {
  /** The tensor that was read last. */
  readonly name: string;
  /** How many were read, of how many. */
  readonly tensors: number;
  readonly totalTensors: number;
  /** The same in bytes of the files. */
  readonly bytes: number;
  readonly totalBytes: number;
}

/** Options of `loadCheckpoint`. */
export interface LoadCheckpointOptions {
  /** How linear layers are quantized as they load; beside a quantized checkpoint, what its files do not hold. */
  readonly quantizationConfig?: BitsAndBytesConfig | null;
  /** Weights that share a scale in layers quantized to 4 bits here; files say their own. Default 64. */
  readonly blocksize?: number;
  /** Path of the output embedding, which stays as it is by default. Default "lm_head". */
  readonly head?: string;
  /** Names of weights that are other weights, such as `{ "lm_head.weight": "model.embed_tokens.weight" }`. */
  readonly tied?: Readonly<Record<string, string>>;
  readonly onProgress?: (progress: LoadProgress) => void;
  /** Called with what each linear layer lost as it was quantized; measuring it decodes the layer once. */
  readonly onQuantized?: (loss: QuantizationLoss) => void;
  /** Called with the path of each module whose own tensors are complete, which the next one waits for. */
  readonly onModule?: (path: string) => Promise<void>;
  readonly signal?: AbortSignal | undefined;
}
const loadOptions = optionTable<LoadCheckpointOptions>({
  quantizationConfig: orNull(anInstance(() => BitsAndBytesConfig, "a BitsAndBytesConfig")),
  blocksize: aBlocksize,
  head: aString,
  tied: aPlainObject,
  onProgress: aFunction,
  onQuantized: aFunction,
  onModule: aFunction,
  signal: anAbortSignal,
});
const aModule = anInstance(() => Module, "a Module");
const aSource = anObjectWith("a source of tensors", "names", "has", "info", "load", "bytes");

/**
 * Loads every weight of `model` from `source`; floats are converted to the model's dtypes. Linear layers become
 * `Linear4bit` or `Linear8bitLt` where the checkpoint holds them quantized, or the config wants it. Make the model by
 * `uninitialized`, and its weights take no memory before they come. Resolves with the names in the checkpoint that the
 * model does not have.
 *
 * Rejects with ERR_BNB_FORMAT for what is missing or contradicts the config, ERR_BNB_SHAPE and ERR_BNB_DTYPE for what
 * does not fit (integers never become floats), ERR_BNB_NONFINITE for weights that cannot be quantized, ERR_BNB_ABORTED.
 * The model then is partly loaded: dispose it.
 */
export async function loadCheckpoint(
  model: Module,
  source: TensorSource,
  options: LoadCheckpointOptions = {},
): Promise<{ unexpected: string[] }> {
  checkArgument("loadCheckpoint", "model", model, aModule);
  checkArgument("loadCheckpoint", "source", source, aSource);
  checkOptions("loadCheckpoint", options, loadOptions);
  const {
    quantizationConfig = null,
    blocksize,
    head = "lm_head",
    tied = {},
    onProgress,
    onQuantized,
    onModule,
    signal,
  } = options;
  const tensors = await withoutTies(source, tied);
  quantizeLinears(model, tensors, quantizationConfig, { head, tied }, blocksize);

  const units = unitsOf(model);
  const names = [...tensors.names()];
  const totalBytes = names.reduce((sum, name) => sum + tensors.info(name).nbytes, 0);
  const total = { totalTensors: names.length, totalBytes };
  let done = { tensors: 0, bytes: 0 };
  const unexpected = new Set(names);
  const missing: string[] = [];
  const load = async (name: string, into: ReadonlyMap<string, Tensor>): Promise<Tensor> => {
    if (signal?.aborted) {
      throw new BnbError("ERR_BNB_ABORTED", "loadCheckpoint: aborted by its signal", { cause: signal.reason });
    }
    const loaded = await tensors.load(name, placeOf(tensors, name, into.get(name)));
    done = { tensors: done.tensors + 1, bytes: done.bytes + tensors.info(name).nbytes };
    onProgress?.({ name, ...done, ...total });
    return loaded;
  };
  const owned = grouped(names, units);
  for (const [path, unit] of units) {
    const own = owned.get(path) ?? [];
    const left = await loadUnit(unit, path, own, load, onQuantized);
    for (const name of own) if (!left.unexpected.includes(name)) unexpected.delete(name);
    missing.push(...left.missing);
    await onModule?.(path);
  }
  if (missing.length > 0) {
    const [more, some] = [missing.length - 5, missing.slice(0, 5).map((name) => JSON.stringify(name))];
    const rest = more > 0 ? ` and ${more} more` : "";
    throw new BnbError("ERR_BNB_FORMAT", `loadCheckpoint: the checkpoint lacks ${some.join(", ")}${rest}`);
  }
  for (const name of unexpected) refuseStrayCodes(tensors, name);
  return { unexpected: [...unexpected] };
}

type Load = (name: string, into: ReadonlyMap<string, Tensor>) => Promise<Tensor>;

async function loadUnit(
  unit: Module,
  path: string,
  names: readonly string[],
  load: Load,
  onQuantized?: (loss: QuantizationLoss) => void,
): Promise<{ missing: string[]; unexpected: string[] }> {
  const into = tensorsOf(unit, path);
  const loaded = new Map<string, Tensor>();
  try {
    await eachTwo(names, async (name) => void loaded.set(name, await load(name, into)));
    const loader = new StateLoader(loaded, true);
    // Checks read values, and so wait for the device: it must have nothing else to do then.
    await synchronize(into.values().next().value?.device);
    unit.loadFrom(loader, path === "" ? "" : `${path}.`);
    const left = noGrad(() => loader.finish(false, "loadCheckpoint: the checkpoint must fit the model"));
    if (left.missing.length === 0 && isQuantizable(unit)) {
      if (onQuantized) await quantizeMeasured(unit, path, onQuantized);
      else unit.quantize();
    }
    return left;
  } finally {
    for (const tensor of loaded.values()) tensor.dispose();
  }
}

/** Two at a time: a device that reads one has the next already. Rejects with the first error, when both have ended. */
async function eachTwo<T>(items: readonly T[], visit: (item: T) => Promise<void>): Promise<void> {
  const rest = items.values();
  let failed = false;
  const lane = async (): Promise<void> => {
    try {
      for (let { value, done } = rest.next(); !done && !failed; { value, done } = rest.next()) await visit(value as T);
    } catch (error) {
      failed = true;
      throw error;
    }
  };
  for (const end of await Promise.allSettled([lane(), lane()])) if (end.status === "rejected") throw end.reason;
}

/** The topmost modules that hold tensors themselves, each once, with their paths. */
function unitsOf(model: Module): Map<string, Module> {
  const units = new Map<string, Module>();
  for (const [path, module] of model.namedModules()) {
    if (ownerOf(path, units) !== undefined) continue;
    if (module.members().some(({ value, name }) => value instanceof Tensor && name !== null)) units.set(path, module);
  }
  return units;
}

/** The path of the unit at or above `path`, if there is one. */
function ownerOf(path: string, units: ReadonlyMap<string, Module>): string | undefined {
  for (let at = path; ; at = at.slice(0, Math.max(at.lastIndexOf("."), 0))) {
    if (units.has(at)) return at;
    if (at === "") return undefined;
  }
}

function grouped(names: readonly string[], units: ReadonlyMap<string, Module>): Map<string, string[]> {
  const groups = new Map<string, string[]>();
  for (const name of names) {
    const owner = ownerOf(name, units);
    if (owner === undefined) continue;
    const group = groups.get(owner);
    if (group) group.push(name);
    else groups.set(owner, [name]);
  }
  return groups;
}

/** The tensors of a module by their names on disk. */
function tensorsOf(unit: Module, path: string): Map<string, Tensor> {
  const found = new Map<string, Tensor>();
  for (const [prefix, module] of unit.namedModules(path)) {
    for (const { name, value } of module.members()) {
      if (value instanceof Tensor && name !== null) found.set(prefix === "" ? name : `${prefix}.${name}`, value);
    }
  }
  return found;
}

/** Floats are read in the dtype that the model wants; codes and statistics as they are. */
function placeOf(source: TensorSource, name: string, into: Tensor | undefined) {
  if (!into) return {};
  const { device, dtype } = into;
  const type = source.info(name).dtype;
  const own = sameDType(type);
  const isPacked = [...packedEndings].some((ending) => source.has(`${name}.${ending}`));
  const converts = isFloat(dtype) && !isPacked && (isFloat8(type) || (own !== undefined && isFloat(own)));
  return converts ? { device, dtype } : { device };
}

const packedEndings = ["absmax", "quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4"];

/** Statistics of a weight that no layer took would leave its codes behind as if they were floats. */
function refuseStrayCodes(source: TensorSource, name: string): void {
  if (!/\.quant_state\.bitsandbytes__\w+$|\.SCB$/.test(name)) return;
  const what = `tensor ${JSON.stringify(name)} belongs to a quantized weight, and the model has no linear layer there`;
  throw formatError(source.info(name).file, what);
}

/**
 * The tensors without those that are others of the model. A checkpoint may hold both ends of a tie if they agree, or
 * only the other one.
 */
async function withoutTies(source: TensorSource, tied: Readonly<Record<string, string>>): Promise<TensorSource> {
  const renames = new Map<string, string | null>();
  for (const [alias, kept] of Object.entries(tied)) {
    if (!source.has(alias)) continue;
    renames.set(alias, source.has(kept) ? null : kept);
    if (source.has(kept)) await checkEqual(source, alias, kept);
  }
  if (renames.size === 0) return source;
  return new RenamedSource(source, (name) => {
    const renamed = renames.get(name);
    return renamed === undefined ? name : renamed;
  });
}

const PIECE = 4 << 20;

async function checkEqual(source: TensorSource, alias: string, kept: string): Promise<void> {
  const [a, b] = [source.info(alias), source.info(kept)];
  const fail = (): never => {
    const both = `${JSON.stringify(alias)} and ${JSON.stringify(kept)}`;
    throw formatError(a.file, `tensors ${both} must agree, as the config ties them (tie_word_embeddings)`);
  };
  if (a.dtype !== b.dtype || a.shape.join() !== b.shape.join()) fail();
  for (let at = 0; at < a.nbytes; at += PIECE) {
    const end = Math.min(at + PIECE, a.nbytes);
    const [x, y] = [await source.bytes(alias, at, end), await source.bytes(kept, at, end)];
    if (!Buffer.from(x.buffer, x.byteOffset, x.byteLength).equals(y)) fail();
  }
}
