// The plain rules of blockwise quantization, element by element. Thresholds are the published numbers, and every
// operation is rounded to float32 once with Math.fround: float64 has more than twice the digits, so that is exact.

const { fround } = Math;

export type Type = "nf4" | "fp4" | "af4" | "int4";

const nf4Thresholds = [
  -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984,
  -0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668,
  0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
].map(fround);
const fp4Thresholds = [0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333].map(fround);
const af4 = [
  1.0, 0.7242486476898193, 0.5549623370170593, 0.4256388247013092, 0.3167566657066345, 0.2196127474308014,
  0.12934483587741852, 0.0427316389977932, 0.0, -0.049348119646310806, -0.14982478320598602, -0.25607553124427795,
  -0.37369510531425476, -0.5124374032020569, -0.6944100856781006, -1.0,
].map(fround);
const int4Thresholds = [
  0.0714285746216774, 0.2142857313156128, 0.3571428656578064, 0.5, 0.6428571939468384, 0.7857142686843872,
  0.9285714626312256,
].map(fround);

const nf4 = [
  -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
  -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
].map(fround);
const magnitudes = [0, 0.0625, 8, 12, 4, 6, 2, 3].map((m) => fround(m / 12));
const sevenths = Array.from({ length: 8 }, (_, k) => fround(k / 7));

/** What each code decodes to; -0 where the sign bit of a zero counts. */
export const tables: Record<Type, readonly number[]> = {
  nf4,
  fp4: [...magnitudes, ...magnitudes.map((m) => -m)],
  af4,
  int4: [...[...sevenths].reverse(), ...sevenths.map((m) => -m)],
};

const middle = (a: number, b: number): number => fround(fround(a + b) * 0.5);
const count = (thresholds: readonly number[], x: number): number => thresholds.filter((t) => x > t).length;

/** The 4-bit code of a normalized value. */
export function code4(type: Type, x: number): number {
  switch (type) {
    case "nf4":
      return count(nf4Thresholds, x);
    case "fp4":
      return ([0, 1, 6, 7, 4, 5, 2, 3][count(fp4Thresholds, Math.abs(x))] as number) + (x < 0 ? 8 : 0);
    case "af4": {
      const ascending = [...af4].reverse();
      const thresholds = ascending.slice(1).map((value, i) => middle(ascending[i] as number, value));
      return 15 - count(thresholds, x);
    }
    case "int4": {
      const k = count(int4Thresholds, Math.abs(x));
      return x >= 0 || k === 0 ? 7 - k : 8 + k;
    }
  }
}

/** The 8-bit code: even thresholds are exceeded, odd ones reached. */
export function code8(map: ArrayLike<number>, x: number): number {
  let code = 0;
  for (let i = 0; i < 255; i++) {
    const t = middle(map[i] as number, map[i + 1] as number);
    if (i % 2 ? x >= t : x > t) code++;
  }
  return code;
}

/** An element divided by the scale of its block. */
export function normalize(a: number, scale: number): number {
  return scale >= 2 ** -126 ? fround(a * fround(1 / scale)) : fround(a / scale);
}

/** The scale and the normalized elements of each block; a bad block has the scale NaN and zeros. */
export function blocks(x: ArrayLike<number>, blocksize: number): { scales: number[]; normalized: number[] } {
  const scales: number[] = [];
  const normalized: number[] = [];
  for (let start = 0; start < x.length; start += blocksize) {
    const block = Array.from({ length: Math.min(blocksize, x.length - start) }, (_, i) => x[start + i] as number);
    const scale = block.every(Number.isFinite) ? block.reduce((m, a) => Math.max(m, Math.abs(a)), 0) : NaN;
    scales.push(scale);
    normalized.push(...block.map((a) => (scale > 0 ? normalize(a, scale) : 0)));
  }
  return { scales, normalized };
}

export function quantize4(
  x: ArrayLike<number>,
  blocksize: number,
  type: Type,
): { packed: Uint8Array; codes: number[]; absmax: number[] } {
  const { scales, normalized } = blocks(x, blocksize);
  const codes = normalized.map((value) => code4(type, value));
  const padded = codes.length % 2 ? [...codes, code4(type, 0)] : codes;
  const packed = Uint8Array.from({ length: padded.length / 2 }, (_, i) => {
    return ((padded[2 * i] as number) << 4) | (padded[2 * i + 1] as number);
  });
  return { packed, codes, absmax: scales };
}

export function dequantize4(
  codes: readonly number[],
  absmax: ArrayLike<number>,
  blocksize: number,
  type: Type,
): number[] {
  return codes.map((code, i) => fround((tables[type][code] as number) * (absmax[Math.floor(i / blocksize)] as number)));
}

export function quantize8(
  x: ArrayLike<number>,
  blocksize: number,
  map: ArrayLike<number>,
): { codes: number[]; absmax: number[] } {
  const { scales, normalized } = blocks(x, blocksize);
  return { codes: normalized.map((value) => code8(map, value)), absmax: scales };
}

export function dequantize8(
  codes: ArrayLike<number>,
  absmax: ArrayLike<number>,
  blocksize: number,
  map: ArrayLike<number>,
): number[] {
  return Array.from(codes, (code, i) => {
    return fround((map[code as number] as number) * (absmax[Math.floor(i / blocksize)] as number));
  });
}

/** Double quantization of scales: their codes, offset, second-level scales, and what they expand to. */
export function quantizeScales(
  scales: readonly number[],
  blocksize: number,
  map: ArrayLike<number>,
): { offset: number; codes: number[]; absmax: number[]; expanded: number[] } {
  const offset = scales.length ? fround(scales.reduce((sum, s) => sum + s, 0) / scales.length) : 0;
  const { codes, absmax } = quantize8(
    scales.map((s) => fround(s - offset)),
    blocksize,
    map,
  );
  return { offset, codes, absmax, expanded: dequantize8(codes, absmax, blocksize, map).map((d) => fround(d + offset)) };
}

/** IEEE CRC32 of bytes, as the tables are published. */
export function crc32(bytes: Uint8Array): string {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return (~crc >>> 0).toString(16).padStart(8, "0");
}
