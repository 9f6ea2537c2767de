// QuantState: what is needed to dequantize a blockwise quantized tensor, as bitsandbytes keeps it.
import { addon } from "../tensor/addon.js";
import { aBoolean, aDType, anInstance, aShape, aTensor, checkArgument, orNull, required } from "../tensor/checks.js";
import type { Device, DeviceLike } from "../tensor/device.js";
import { toDevice } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { dtypeCode } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { refuseJson } from "../tensor/native-only.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { BlockScales, Quantized4Bit } from "../tensor/quantized.js";
import { run } from "../tensor/run.js";
import type { Scoped } from "../tensor/scope.js";
import { enterScope, keep, leaveScope } from "../tensor/scope.js";
import { checkShape } from "../tensor/shape.js";
import type { Tensor } from "../tensor/tensor.js";
import type { ActivationQuant } from "./activation-quant.js";
import { activationQuants, anActivationQuant } from "./activation-quant.js";
import type { QuantType } from "./codebooks.js";
import { aliasMap, get4bitType, quantTypeCode } from "./codebooks.js";
import { aBlocksize, aQuantType } from "./quant-checks.js";
import type { PackedQuantState, QuantStateDict, StateDictValue } from "./quant-state-dict.js";
import { readStateDict, statePacked, stateUnpacked } from "./quant-state-dict.js";

export type { PackedQuantState, QuantStateDict } from "./quant-state-dict.js";

/** The parts of a QuantState. The state takes the tensors over: disposing it disposes them. */
export interface QuantStateInit {
  absmax: Tensor;
  blocksize: number;
  dtype: DType;
  shape?: readonly number[] | null;
  code?: Tensor | null;
  quantType?: QuantType | null;
  offset?: Tensor | null;
  state2?: QuantState | null;
}

/** @internal */
export const aQuantState = anInstance(() => QuantState, "a QuantState");
const stateOptions = optionTable<QuantStateInit>({
  absmax: required(aTensor),
  blocksize: required(aBlocksize),
  dtype: required(aDType),
  shape: orNull(aShape),
  code: orNull(aTensor),
  quantType: orNull(aQuantType),
  offset: orNull(aTensor),
  state2: orNull(aQuantState),
});
const dictOptions = optionTable<{ packed?: boolean }>({ packed: aBoolean });

/**
 * The statistics of a blockwise quantized tensor.
 *
 * It owns its tensors: `dispose()` frees them, a `tidy` that returns the state keeps them.
 */
export class QuantState implements Scoped {
  /** Scale of each block, float32; with double quantization their codes, uint8. */
  readonly absmax: Tensor;
  /** Shape of the unquantized tensor; null in 8 bits, where the codes have it. */
  readonly shape: readonly number[] | null;
  readonly blocksize: number;
  /** Null for an 8-bit state. */
  readonly quantType: QuantType | null;
  /** dtype of the unquantized tensor: what dequantizing gives by default. */
  readonly dtype: DType;
  /** Mean of the scales, subtracted before they were quantized. float32 []; null unless nested. */
  readonly offset: Tensor | null;
  /** Statistics of the quantized scales; null unless nested. */
  readonly state2: QuantState | null;
  #code: Tensor | null;
  #scales: BlockScales | null = null;

  constructor(init: QuantStateInit) {
    checkOptions("QuantState", init, stateOptions);
    this.absmax = keep(init.absmax);
    this.shape = init.shape ? checkShape("QuantState", init.shape) : null;
    this.blocksize = init.blocksize;
    this.quantType = init.quantType ?? null;
    this.dtype = init.dtype;
    this.offset = init.offset ? keep(init.offset) : null;
    this.state2 = init.state2 ?? null;
    if (this.state2) leaveScope(this.state2);
    this.#code = init.code ? keep(init.code) : null;
    if ((this.offset === null) !== (this.state2 === null)) {
      throw new BnbError("ERR_BNB_ARGUMENT", "QuantState: offset and state2 must be given together");
    }
    if (this.quantType === null && !this.#code) {
      throw new BnbError("ERR_BNB_ARGUMENT", "QuantState: an 8-bit state needs its code");
    }
    enterScope(this);
  }

  /** The codebook: float32 [16], made when first asked for, or [256]. */
  get code(): Tensor {
    this.#code ??= keep(get4bitType(this.quantType as QuantType, { device: this.device }));
    return this.#code;
  }

  /** Whether the scales are quantized themselves. */
  get nested(): boolean {
    return this.state2 !== null;
  }

  /** Bytes of the scales, and of their own statistics. */
  get nbytes(): number {
    return this.absmax.nbytes + (this.offset?.nbytes ?? 0) + (this.state2?.nbytes ?? 0);
  }

  get device(): Device {
    return this.absmax.device;
  }

  get disposed(): boolean {
    return this.absmax.disposed;
  }

  /** Throws ERR_BNB_UNSUPPORTED: JSON would hold no element. */
  toJSON(): never {
    refuseJson("a QuantState");
  }

  dispose(): void {
    leaveScope(this);
    for (const part of [this.absmax, this.offset, this.state2, this.#code, this.#scales]) part?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal Its tensors are in no scope already. */
  escape(): void {}

  /** @internal The scales and what expands them as one native handle, made when first asked for. */
  get scales(): BlockScales {
    // Also after the disposal, where making it says so.
    if (!this.#scales || this.disposed) {
      const { absmax, offset, state2, blocksize } = this;
      const { absmax: nestedAbsmax = null, code: nestedCode = null, blocksize: nestedBlocksize = 0 } = state2 ?? {};
      const [scales] = run(addon.blockScales, absmax, nestedAbsmax, nestedCode, offset, blocksize, nestedBlocksize);
      this.#scales = keep(scales);
    }
    return this.#scales;
  }

  /**
   * The native handle over a packed tensor and these statistics; it shares their memory and outlives both. Products with it
   * round activations as `activationQuant` allows.
   */
  quantized(packed: Tensor, activationQuant: ActivationQuant = "none"): Quantized4Bit {
    checkArgument("QuantState", "packed", packed, aTensor);
    checkArgument("QuantState", "activationQuant", activationQuant, anActivationQuant);
    if (this.quantType === null || this.shape === null) {
      throw new BnbError("ERR_BNB_ARGUMENT", "QuantState: a 4-bit state is needed, this one is for 8 bits");
    }
    const type = quantTypeCode("QuantState", this.quantType);
    const activations = activationQuants.indexOf(activationQuant);
    const [handle] = run(
      addon.quantized4bit,
      packed,
      this.scales,
      this.shape,
      type,
      dtypeCode(this.dtype),
      activations,
    );
    return handle;
  }

  /** A copy on a device; on its own device a second owner of the same memory. */
  to(device: DeviceLike): QuantState {
    const target = toDevice(device);
    const move = (t: Tensor): Tensor => (t.device === target ? t.detach() : run(addon.toDevice, t, target.index)[0]);
    return new QuantState({
      absmax: move(this.absmax),
      shape: this.shape,
      code: this.#code && (this.#code.device === target ? aliasMap(this.#code) : move(this.#code)),
      blocksize: this.blocksize,
      quantType: this.quantType,
      dtype: this.dtype,
      offset: this.offset && move(this.offset),
      state2: this.state2?.to(target) ?? null,
    });
  }

  /** @internal Another text when a statistic was changed in place. */
  get versions(): string {
    const { absmax, code, offset, state2 } = this;
    return `${absmax.version} ${code.version} ${offset?.version} ${state2?.versions}`;
  }

  /** Whether both dequantize alike: equal settings and bit-equal statistics. Waits for the device. */
  equals(other: QuantState): boolean {
    checkArgument("equals", "other", other, aQuantState);
    return (
      this.blocksize === other.blocksize &&
      this.quantType === other.quantType &&
      this.dtype === other.dtype &&
      String(this.shape) === String(other.shape) &&
      this.nested === other.nested &&
      sameBytes(this.absmax, other.absmax) &&
      sameBytes(this.code, other.code) &&
      (this.offset === null || sameBytes(this.offset, other.offset as Tensor)) &&
      (this.state2 === null || this.state2.equals(other.state2 as QuantState))
    );
  }

  /**
   * The state as a dictionary with Python's keys. `packed` is the form of checkpoints: only tensors, the rest as JSON
   * bytes under `quant_state.bitsandbytes__nf4`. Tensors are the state's own, except the JSON, which is new.
   * A nested state is read, which waits for the device.
   */
  asDict(options: { packed: true }): PackedQuantState;
  asDict(options?: { packed?: false }): QuantStateDict;
  asDict(options: { packed?: boolean }): PackedQuantState | QuantStateDict;
  asDict(options: { packed?: boolean } = {}): PackedQuantState | QuantStateDict {
    checkOptions("asDict", options, dictOptions);
    return options.packed ? statePacked(this) : stateUnpacked(this);
  }

  /**
   * The inverse of `asDict`, in both forms; keys may carry a prefix such as `weight.`. The state gets owners of its
   * own, so the tensors given may be disposed. Everything is checked: ERR_BNB_FORMAT says what is wrong.
   */
  static fromDict(dict: Readonly<Record<string, StateDictValue>>, device?: DeviceLike): QuantState {
    const parts = readStateDict(dict);
    const target = device === undefined ? parts.absmax.device : toDevice(device);
    const own = (t: Tensor): Tensor => (t.device === target ? t.detach() : run(addon.toDevice, t, target.index)[0]);
    const { nested } = parts;
    return new QuantState({
      absmax: own(parts.absmax),
      shape: parts.shape,
      code: own(parts.code),
      blocksize: parts.blocksize,
      quantType: parts.quantType,
      dtype: parts.dtype,
      offset: nested?.offset(target) ?? null,
      state2:
        nested &&
        new QuantState({
          absmax: own(nested.absmax),
          code: own(nested.code),
          blocksize: nested.blocksize,
          dtype: "float32",
        }),
    });
  }
}

function sameBytes(a: Tensor, b: Tensor): boolean {
  const bytes = (t: Tensor): Buffer => {
    const data = t.dataSync();
    return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  };
  return a.dtype === b.dtype && a.size === b.size && bytes(a).equals(bytes(b));
}
