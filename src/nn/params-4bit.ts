// Params4bit: the weight of a 4-bit layer, float until it is quantized, then packed codes with their statistics.
import { noGrad } from "../autograd/no-grad.js";
import type { ActivationQuant } from "../ops/activation-quant.js";
import type { QuantType } from "../ops/codebooks.js";
import { aBlocksize, aQuantStorage, aQuantType } from "../ops/quant-checks.js";
import type { PackedQuantState } from "../ops/quant-state.js";
import { aQuantState, QuantState } from "../ops/quant-state.js";
import type { QuantStorage } from "../ops/quantize-4bit.js";
import { quantize4bit } from "../ops/quantize-4bit.js";
import { to } from "../ops/to-device.js";
import { aBoolean, aDevice, anObject, checkTensor, orNull } from "../tensor/checks.js";
import type { DeviceLike } from "../tensor/device.js";
import { toDevice } from "../tensor/device.js";
import { isFloat } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Quantized4Bit } from "../tensor/quantized.js";
import { keep, tidy } from "../tensor/scope.js";
import { sameShape } from "../tensor/shape.js";
import type { Tensor } from "../tensor/tensor.js";
import { checkFinite } from "./finite.js";
import type { StateDict, StateSource } from "./module.js";
import { Parameter } from "./parameter.js";

/** How a weight is quantized. */
export interface Quantization {
  /** 32, 64, ... 4096; default 64. */
  blocksize: number;
  /** Whether the scales are quantized, too; default true. */
  compressStatistics: boolean;
  /** Default "fp4". */
  quantType: QuantType;
  /** What the packed bytes are declared as; default "uint8". */
  quantStorage: QuantStorage;
}

/** @internal For layers, which take these among their own. */
export const quantizationChecks = {
  blocksize: aBlocksize,
  compressStatistics: aBoolean,
  quantType: aQuantType,
  quantStorage: aQuantStorage,
};

/** What holds a Params4bit and takes its successor when it is quantized or moved. */
export interface WeightHolder {
  weight: Params4bit;
  /** How activations may be rounded before they meet the weight; default "none". */
  readonly activationQuant?: ActivationQuant;
}

/** Options of `new Params4bit`, the weight of `Linear4bit`. */
export interface Params4bitOptions extends Partial<Quantization> {
  /** Default false; a quantized weight is always frozen. */
  requiresGrad?: boolean;
  /** Statistics of packed data; the parameter takes them over. */
  quantState?: QuantState | null;
  /** The layer whose `weight` this is; default null. */
  module?: WeightHolder | null;
  /** Whether `data` is packed already; then quantState must be given. Default false. */
  bnbQuantized?: boolean;
}
const paramsOptions = optionTable<Params4bitOptions>({
  ...quantizationChecks,
  requiresGrad: aBoolean,
  quantState: orNull(aQuantState),
  module: orNull(anObject),
  bnbQuantized: aBoolean,
});

/** Options of `Params4bit.fromPrequantized`. */
export interface PrequantizedOptions {
  /** Only false is accepted: the weight is frozen. */
  requiresGrad?: boolean;
  /** Default: that of the data. */
  device?: DeviceLike;
  module?: WeightHolder | null;
}
const prequantizedOptions = optionTable<PrequantizedOptions>({
  requiresGrad: aBoolean,
  device: aDevice,
  module: orNull(anObject),
});

/**
 * The frozen weight of a 4-bit layer. It starts as a float tensor or as packed codes with a QuantState;
 * `quantize()` and `moveTo()` turn the first into the second and free the float memory.
 */
export class Params4bit extends Parameter implements Quantization {
  readonly blocksize: number;
  readonly compressStatistics: boolean;
  readonly quantType: QuantType;
  readonly quantStorage: QuantStorage;
  readonly quantState: QuantState | null;
  readonly module: WeightHolder | null;
  readonly #weights = new Map<ActivationQuant, Quantized4Bit>();
  #packedState: { parts: PackedQuantState; versions: string } | null = null;

  constructor(data: Tensor, options: Params4bitOptions = {}) {
    checkTensor("Params4bit", "data", data);
    checkOptions("Params4bit", options, paramsOptions);
    const { quantState = null } = options;
    if (options.bnbQuantized && !quantState) {
      throw new BnbError("ERR_BNB_ARGUMENT", "Params4bit: bnbQuantized data needs its quantState");
    }
    if (!quantState && !isFloat(data.dtype)) {
      const rule = "Params4bit: data without a quantState must be float32, float16 or bfloat16";
      throw new BnbError("ERR_BNB_DTYPE", `${rule}, got ${data.dtype}`);
    }
    super(data, { requiresGrad: quantState === null && (options.requiresGrad ?? false) });
    this.blocksize = quantState?.blocksize ?? options.blocksize ?? 64;
    this.compressStatistics = quantState?.nested ?? options.compressStatistics ?? true;
    this.quantType = quantState?.quantType ?? options.quantType ?? "fp4";
    this.quantStorage = quantState ? (data.dtype as QuantStorage) : (options.quantStorage ?? "uint8");
    this.quantState = quantState && keep(quantState);
    this.module = options.module ?? null;
  }

  override get statistics(): readonly Tensor[] {
    const { absmax, state2 = null } = this.quantState ?? {};
    return [absmax, state2?.absmax].filter((t) => t !== undefined);
  }

  override get statisticsBytes(): number {
    return this.quantState?.nbytes ?? 0;
  }

  override get trainable(): boolean {
    return !this.bnbQuantized && super.trainable;
  }

  /** Whether the data are packed codes. */
  get bnbQuantized(): boolean {
    return this.quantState !== null;
  }

  /** A parameter over packed codes and the tensors that a checkpoint keeps beside them. Shares their memory. */
  static fromPrequantized(
    data: Tensor,
    quantizedStats: Readonly<Record<string, Tensor>>,
    options: PrequantizedOptions = {},
  ): Params4bit {
    checkTensor("fromPrequantized", "data", data);
    checkOptions("fromPrequantized", options, prequantizedOptions);
    if (options.requiresGrad) {
      throw new BnbError("ERR_BNB_OPTION", "fromPrequantized: requiresGrad must be false, the weight is frozen");
    }
    const device = toDevice(options.device ?? data.device);
    const quantState = QuantState.fromDict(quantizedStats, device);
    const packed = data.device === device ? data.detach() : to(data, device);
    return new Params4bit(packed, { quantState, module: options.module ?? null });
  }

  /**
   * The quantized successor of a float weight, which is disposed and replaced in `module`; the weight itself if it
   * is quantized already.
   */
  quantize(): Params4bit {
    return this.bnbQuantized ? this : this.#succeed(packedFrom(this, this));
  }

  /** The weight, quantized, on a device. The old one is disposed and replaced in `module` unless it stays. */
  moveTo(device: DeviceLike): Params4bit {
    const target = toDevice(device);
    const next = this.quantize();
    if (next.device === target) return next;
    const data = noGrad(() => tidy(() => to(next, target)));
    return next.#succeed({ data, quantState: (next.quantState as QuantState).to(target) });
  }

  /** @internal What `linear4bit` takes. */
  get quantized(): Quantized4Bit {
    if (!this.quantState) throw new BnbError("ERR_BNB_ARGUMENT", "Params4bit: the weight must be quantized first");
    const { activationQuant = "none" } = this.module ?? {};
    const made = this.#weights.get(activationQuant) ?? keep(this.quantState.quantized(this, activationQuant));
    this.#weights.set(activationQuant, made);
    return made;
  }

  /**
   * @internal Adds the statistics to a state dict under the name of the weight; nothing while it is float. Throws what
   * loading would: ERR_BNB_NONFINITE for a weight, or a scale of it, that is not finite.
   */
  saveStatisticsTo(dict: StateDict, name: string): void {
    const { quantState } = this;
    if (!quantState) {
      checkFinite(this, name);
      return;
    }
    const versions = quantState.versions;
    if (this.#packedState?.versions !== versions) {
      // An earlier one is left to the garbage collector: a dict may have it.
      const parts = readable(name, () => tidy(() => quantState.asDict({ packed: true })));
      for (const part of Object.values(parts)) keep(part);
      this.#packedState = { parts, versions };
    }
    for (const [key, part] of Object.entries(this.#packedState.parts)) dict.set(`${name}.${key}`, part);
  }

  override dispose(): void {
    super.dispose();
    for (const weight of this.#weights.values()) weight.dispose();
    for (const part of Object.values(this.#packedState?.parts ?? {})) part.dispose();
    this.quantState?.dispose();
  }

  #succeed({ data, quantState }: Packed): Params4bit {
    const next = new Params4bit(data, { quantState, module: this.module });
    if (this.module) this.module.weight = next;
    this.dispose();
    return next;
  }
}

interface Packed {
  data: Tensor;
  quantState: QuantState;
}

function packedFrom(weight: Tensor, how: Quantization): Packed {
  const { blocksize, compressStatistics, quantType, quantStorage } = how;
  return noGrad(() =>
    tidy(() => {
      const [data, quantState] = quantize4bit(weight, { blocksize, compressStatistics, quantType, quantStorage });
      keep(quantState);
      return { data, quantState };
    }),
  );
}

/**
 * @internal Plans the loading of a weight of `shape` under `key`, and of its statistics beside it, into a layer: a quantized checkpoint
 * is taken as it is, float values are copied into a float weight and quantized for a quantized one.
 */
export function planWeight4bit(source: StateSource, key: string, shape: readonly number[], layer: WeightHolder): void {
  const current = layer.weight;
  const adopt = (next: Params4bit): void => {
    layer.weight = next;
    current.dispose();
  };
  const statistics = source.keys(`${key}.`);
  if (statistics.length === 0 && !current.bnbQuantized) {
    if (source.takeFinite(key, shape, current.dtype)) source.copy(key, current);
    return;
  }
  if (statistics.length === 0) {
    const data = source.takeFinite(key, shape);
    if (data) {
      source.plan(() => {
        const here = data.device === current.device ? data : to(data, current.device);
        const { data: packed, quantState } = packedFrom(here, current);
        if (here !== data) here.dispose();
        adopt(new Params4bit(packed, { quantState, module: current.module }));
      });
    }
    return;
  }
  const data = source.take(key);
  const parts = Object.fromEntries(statistics.map((name) => [name.slice(key.length + 1), source.take(name) as Tensor]));
  if (!data) return;
  try {
    const next = Params4bit.fromPrequantized(data, parts, { device: current.device, module: current.module });
    const found = (next.quantState as QuantState).shape ?? [];
    if (!sameShape(found, shape)) {
      const rule = `the shape of "${key}" must be [${shape.join(", ")}]`;
      source.reject("ERR_BNB_SHAPE", `${rule}, got [${found.join(", ")}]`);
    } else if (next.nbytes !== Math.ceil(shape.reduce((n, dim) => n * dim, 1) / 2)) {
      const bytes = Math.ceil(shape.reduce((n, dim) => n * dim, 1) / 2);
      source.reject("ERR_BNB_SHAPE", `"${key}" must have ${bytes} bytes, got ${next.nbytes}`);
    }
    source.plan(
      () => adopt(next),
      () => next.dispose(),
    );
  } catch (error) {
    if (!(error instanceof BnbError)) throw error;
    source.reject(error.code, `"${key}" cannot be read: ${error.message}`);
  }
}

function readable<T>(name: string, save: () => T): T {
  try {
    return save();
  } catch (error) {
    if (!(error instanceof BnbError)) throw error;
    throw new BnbError(error.code, `stateDict: "${name}" cannot be saved: ${error.message}`, { cause: error });
  }
}
