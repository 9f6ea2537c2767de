// Codebooks: the built-in 4-bit tables, and the makers of 8-bit maps, bit for bit as bitsandbytes makes them.
import { addon } from "../tensor/addon.js";
import type { Check } from "../tensor/checks.js";
import { aBoolean, aDevice, aNumber, anInteger, checkArgument } from "../tensor/checks.js";
import { tensor } from "../tensor/create.js";
import { shown } from "../tensor/describe.js";
import type { DeviceLike } from "../tensor/device.js";
import { toDevice } from "../tensor/device.js";
import { codebooks } from "../tensor/enums.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

/** In the order of QuantType in csrc/core/dtype.h: the index is what crosses to the addon. */
export const quantTypes = codebooks.slice(0, 4) as ["nf4", "fp4", "af4", "int4"];

/** The 4-bit codebooks. Only nf4 and fp4 have a file format; af4 is defined for blocks of 64 alone. */
export type QuantType = (typeof quantTypes)[number];

/** @internal The number of a 4-bit type. Throws ERR_BNB_OPTION for an unknown name. */
export function quantTypeCode(op: string, type: QuantType): number {
  const code = quantTypes.indexOf(type);
  if (code < 0) {
    throw new BnbError(
      "ERR_BNB_OPTION",
      `${op}: quantType must be one of ${quantTypes.join(", ")}, got ${shown(type)}`,
    );
  }
  return code;
}

/** Where a codebook is made; default "cpu". */
export interface CodebookOptions {
  device?: DeviceLike;
}
const codebookOptions = optionTable<CodebookOptions>({ device: aDevice });
const typeOptions = optionTable<CodebookOptions & { blocksize?: number }>({ device: aDevice, blocksize: anInteger(1) });

/**
 * The 16 values of a 4-bit type, float32, in the order of the stored codes.
 *
 * @example
 * get4bitType("nf4"); // -1, -0.696, ... 1
 */
export function get4bitType(name: QuantType, options: CodebookOptions & { blocksize?: number } = {}): Tensor {
  checkOptions("get4bitType", options, typeOptions);
  const code = quantTypeCode("get4bitType", name);
  if (name === "af4" && (options.blocksize ?? 64) !== 64) {
    throw new BnbError("ERR_BNB_OPTION", `get4bitType: af4 needs blocksize 64, got ${options.blocksize}`);
  }
  return run(addon.codebook, code, toDevice(options.device).index)[0];
}

/** How the 8-bit kernels search a map: the two built-in dynamic maps directly, any other by halving. */
type MapKind = "signed" | "unsigned" | "custom";

// A map is read and checked once; these remember the result for as long as the tensor lives and is not changed.
const kinds = new WeakMap<Tensor, { kind: MapKind; version: number }>();
const remember = (map: Tensor, kind: MapKind): unknown => kinds.set(map, { kind, version: map.version });
function remembered(map: Tensor): MapKind | undefined {
  const found = kinds.get(map);
  return found?.version === map.version ? found.kind : undefined;
}
const words: Partial<Record<MapKind, Uint32Array>> = {};

/** @internal The built-in dynamic map, as the addon holds it. */
export function dynamicMap(signed: boolean, device: DeviceLike): Tensor {
  const which = codebooks.indexOf(signed ? "dynamic_signed" : "dynamic_unsigned");
  const map = run(addon.codebook, which, toDevice(device).index)[0];
  remember(map, signed ? "signed" : "unsigned");
  return map;
}

/**
 * @internal What kind of map a code tensor is. One that this module did not make is read, which waits for the device,
 * and must hold 256 finite ascending values: ERR_BNB_OPTION otherwise.
 */
export function mapKind(op: string, code: Tensor): MapKind {
  let kind = remembered(code);
  if (kind === undefined) {
    if (code.dtype !== "float32") {
      throw new BnbError("ERR_BNB_DTYPE", `${op}: code must be float32, got ${code.dtype}`);
    }
    const values = code.floatsSync();
    const problem = mapProblem(values);
    if (problem) throw new BnbError("ERR_BNB_OPTION", `${op}: code ${problem}`);
    kind = isDynamic(values, "signed") ? "signed" : isDynamic(values, "unsigned") ? "unsigned" : "custom";
    remember(code, kind);
  }
  return kind;
}

/** @internal A tensor of its own on the same map. */
export function aliasMap(code: Tensor): Tensor {
  const alias = code.detach();
  const kind = remembered(code);
  if (kind) remember(alias, kind);
  return alias;
}

/** @internal What is wrong with the values of an 8-bit map; null when nothing is. */
export function mapProblem(values: Float32Array): string | null {
  if (values.length !== 256) return `must have 256 values, got ${values.length}`;
  for (let i = 0; i < 256; i++) {
    const value = values[i] as number;
    if (!Number.isFinite(value)) return `must be finite, got ${value} at ${i}`;
    if (i > 0 && value < (values[i - 1] as number)) return `must be ascending, got ${value} at ${i}`;
  }
  return null;
}

function isDynamic(values: Float32Array, kind: "signed" | "unsigned"): boolean {
  words[kind] ??= new Uint32Array(Float32Array.from(dynamicValues(kind === "signed", 7, 8)).buffer);
  const builtIn = words[kind];
  return new Uint32Array(values.buffer, values.byteOffset, 256).every((word, i) => word === builtIn[i]);
}

/**
 * The dynamic map of 8-bit states: `maxExponentBits` decades of evenly spaced values, more of them in the larger
 * decades, with 0 and 1. float32 [256], ascending.
 *
 * @throws ERR_BNB_OPTION when the parameters do not give 2^totalBits values.
 */
export function createDynamicMap(
  signed = true,
  maxExponentBits = 7,
  totalBits = 8,
  options: CodebookOptions = {},
): Tensor {
  checkMaker("createDynamicMap", signed, options, { maxExponentBits, totalBits });
  const map = tensor(Float32Array.from(dynamicValues(signed, maxExponentBits, totalBits)), options);
  if (maxExponentBits === 7 && totalBits === 8) remember(map, signed ? "signed" : "unsigned");
  return map;
}

function dynamicValues(signed: boolean, exponentBits: number, totalBits: number): number[] {
  const fraction = totalBits - 1;
  const values: number[] = [];
  const add = (cells: number, power: number): void => {
    const edges = linspace(0.1, 1, cells + 1);
    const scale = Math.fround(10 ** power);
    for (let j = 0; j < cells; j++) {
      const centre = Math.fround(Math.fround((edges[j] as number) + (edges[j + 1] as number)) / 2);
      const value = Math.fround(scale * centre);
      values.push(value);
      if (signed) values.push(-value);
    }
  };
  for (let i = 0; i < exponentBits; i++) {
    add(Math.floor(2 ** (i + fraction - exponentBits + (signed ? 0 : 1))), i - exponentBits + 1);
  }
  const extra = Math.floor(2 ** (fraction - exponentBits)) - 1;
  if (extra > 0) add(extra, 0);
  values.push(0, 1);
  if (!(totalBits <= 8 && values.length === 2 ** totalBits)) {
    const given = `signed ${signed}, maxExponentBits ${exponentBits}, totalBits ${totalBits}`;
    const rule = "createDynamicMap: the parameters must give 2^totalBits values, at most 256";
    throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${values.length} from ${given}`);
  }
  while (values.length < 256) values.push(0);
  return values.sort((a, b) => a - b);
}

/**
 * Evenly spaced values from -1 (or 0) to 1. float32 [256], ascending. A signed map has an odd number of them and an
 * extra 0 in the middle, unless `addZero` is false.
 */
export function createLinearMap(signed = true, totalBits = 8, addZero = true, options: CodebookOptions = {}): Tensor {
  checkMaker("createLinearMap", signed, options, { totalBits });
  checkArgument("createLinearMap", "addZero", addZero, aBoolean);
  const count = 2 ** totalBits - (signed && (addZero || totalBits < 8) ? 1 : 0);
  const values = linspace(signed ? -1 : 0, 1, count);
  const half = Math.floor(count / 2);
  const zeros = new Array<number>(256 - count).fill(0);
  return tensor(Float32Array.from([...values.slice(0, half), ...zeros, ...values.slice(half)]), options);
}

/**
 * The values of a small floating-point format, divided by the largest. float32 [256], ascending.
 *
 * @throws ERR_BNB_OPTION when the sign, exponent and precision bits do not add up to `totalBits`.
 */
export function createFp8Map(
  signed = true,
  exponentBits = 5,
  precisionBits = 2,
  totalBits = 8,
  options: CodebookOptions = {},
): Tensor {
  checkMaker("createFp8Map", signed, options, { exponentBits, precisionBits, totalBits });
  const sum = (signed ? 1 : 0) + exponentBits + precisionBits;
  if (sum !== totalBits || exponentBits < 1 || precisionBits < 0) {
    const rule = "createFp8Map: sign, exponentBits and precisionBits must add up to totalBits";
    throw new BnbError("ERR_BNB_OPTION", `${rule} ${totalBits}, got ${sum}`);
  }
  const bias = 2 ** (exponentBits - 1);
  const fractions = 2 ** precisionBits;
  const values: number[] = [];
  for (let exponent = 0; exponent < 2 ** exponentBits; exponent++) {
    for (let f = 0; f < fractions; f++) {
      const value = exponent === 0 ? (f / fractions) * 2 ** -bias : (1 + f / fractions) * 2 ** (bias + 1 - exponent);
      values.push(value);
      if (signed) values.push(-value);
    }
  }
  while (values.length < 256) values.push(0);
  return normalized(values, options);
}

/**
 * Quantiles of the normal distribution, padded with zeros: the map whose ends are the NF4 values. float32 [256],
 * ascending. `useExtraValue` gives the positive side one value more than the negative.
 */
export function createNormalMap(offset = 0.9677083, useExtraValue = true, options: CodebookOptions = {}): Tensor {
  checkMaker("createNormalMap", useExtraValue, options, {});
  checkArgument("createNormalMap", "offset", offset, aNumber);
  if (!(offset > 0.5 && offset < 1)) {
    throw new BnbError("ERR_BNB_OPTION", `createNormalMap: offset must be between 0.5 and 1, got ${offset}`);
  }
  const quantiles = (points: number): number[] =>
    linspace(offset, 0.5, points)
      .slice(0, -1)
      .map((p) => Math.fround(normalQuantile(p)));
  const positive = quantiles(useExtraValue ? 9 : 8);
  const negative = quantiles(8).map((x) => -x);
  const zeros = new Array<number>(256 - positive.length - negative.length).fill(0);
  return normalized([...positive, ...zeros, ...negative], options);
}

// A map has at most 256 values, so no count of bits is above 8.
function checkMaker(op: string, flag: boolean, options: CodebookOptions, bits: Record<string, number>): void {
  checkArgument(op, op === "createNormalMap" ? "useExtraValue" : "signed", flag, aBoolean);
  for (const [name, value] of Object.entries(bits)) checkArgument(op, name, value, someBits[name] as Check);
  checkOptions(op, options, codebookOptions);
}
const someBits: Readonly<Record<string, Check>> = {
  totalBits: { ...anInteger(1, 8), code: "ERR_BNB_OPTION" },
  maxExponentBits: { ...anInteger(0, 8), code: "ERR_BNB_OPTION" },
  exponentBits: { ...anInteger(1, 8), code: "ERR_BNB_OPTION" },
  precisionBits: { ...anInteger(0, 8), code: "ERR_BNB_OPTION" },
};

// Sorted (stable, so that +0 stays before -0), as float32, divided by the largest in float32.
function normalized(values: number[], options: CodebookOptions): Tensor {
  const sorted = Float32Array.from(values.sort((a, b) => a - b));
  const largest = sorted[255] as number;
  return tensor(
    sorted.map((value) => value / largest),
    options,
  );
}

// As torch.linspace on float32: from the nearer end, the step fused into the sum. In float64 the product is exact, so
// one rounding at the end is that of the fused operation.
function linspace(first: number, last: number, points: number): number[] {
  const a = Math.fround(first);
  const b = Math.fround(last);
  const step = points > 1 ? Math.fround(Math.fround(b - a) / (points - 1)) : 0;
  const half = Math.floor(points / 2);
  return Array.from({ length: points }, (_, i) => Math.fround(i < half ? a + step * i : b - step * (points - 1 - i)));
}

// Newton's method on the series Phi(x) = 1/2 + phi(x) (x + x^3/3 + x^5/(3 5) + ...), good to float64 for |x| < 5.
function normalQuantile(p: number): number {
  let x = 0;
  for (let step = 0; step < 60; step++) {
    const density = Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI);
    let term = x;
    let sum = x;
    for (let k = 3; Math.abs(term) > 1e-18 * Math.abs(sum); k += 2) {
      term *= (x * x) / k;
      sum += term;
    }
    const change = (0.5 + density * sum - p) / density;
    x -= change;
    if (Math.abs(change) < 1e-15) break;
  }
  return x;
}
