// The code tables of kernels/codebooks.h where a kernel reads them: constants in device memory, and the form in which
// each search or look-up wants them in shared memory. All numbers are derived at compile time from the one copy.
//
//   BNB_SHARED(Values4bitTable, table);    table.load(type);   __syncthreads();   table.at(nibble, lane) * scale
//   BNB_SHARED(Decoder4bit, decoder);      decoder.load(type); __syncthreads();   decoder.values(word, lane, v)
//   BNB_SHARED(Encoder4bit, encoder);      encoder.load(type); __syncthreads();   encoder.word(v, inverse, lane)
//   BNB_SHARED(DynamicEncoder<...>, e);    e.load();           __syncthreads();   e.word(v, inverse)
//   BNB_SHARED(Values8bitTable, table);    table.load(map);    __syncthreads();   table.values(word, lane, v)
//
// load() is for all threads of the block, in one dimension, and ends before any barrier.
#pragma once
#include "cuda/ptx.cuh"
#include "kernels/block_scales.h"
#include "kernels/codebooks.h"

namespace bnb::cuda {

// The scale of a block is its largest magnitude, found as a bit pattern: those order like the magnitudes and keep
// infinity and NaN on top. From kInfinityBits on the block has an element that is not finite; below
// kSmallestNormalBits the reciprocal could overflow, and x / scale is used for x * (1 / scale).
constexpr uint32_t kMagnitudeMask = 0x7fffffffu;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kNanBits = 0x7fc00000u;
constexpr uint32_t kSmallestNormalBits = 0x00800000u;
constexpr uint32_t kLargeBits = 0x7e800000u;  // 2^126, from where on reciprocals may be subnormal

// a * b + c rounded down, for |c| so large that c + a * b has its exponent: one FFMA.RM.
__device__ __forceinline__ float fma_round_down(float a, float b, float c) {
#if defined(__CUDACC__)
  return __fmaf_rd(a, b, c);
#else
  // Both differences are exact in double.
  const float nearest = fmaf(a, b, c);
  const double below = static_cast<double>(nearest) - static_cast<double>(c);
  return below > static_cast<double>(a) * static_cast<double>(b) ? float_from_bits(float_bits(nearest) - 1) : nearest;
#endif
}

// --- 4-bit -----------------------------------------------------------------------------------------------------------

// What a code stands for, indexed by QuantType.
static __device__ const Values4bit kDeviceValues4bit[4] = {kValues4bit[0], kValues4bit[1], kValues4bit[2],
                                                           kValues4bit[3]};
__device__ __forceinline__ const float* device_values_4bit(QuantType type) {
  return kDeviceValues4bit[static_cast<int>(type)].v;
}

// 16 values, a copy for every lane: no bank conflicts.
struct Values4bitTable {
  float v[16][kWarp];

  __device__ void load(QuantType type) {
    const float* values = device_values_4bit(type);
    for (int i = threadIdx.x; i < 16 * kWarp; i += blockDim.x) v[i / kWarp][i % kWarp] = values[i / kWarp];
  }
  __device__ __forceinline__ float at(uint32_t nibble, uint32_t lane) const {
    // v[nibble][lane]; an offset put together by "or" is one instruction with the mask that gave the nibble.
    const uint32_t offset = nibble * sizeof(v[0]) | lane * sizeof(float);
    return *reinterpret_cast<const float*>(reinterpret_cast<const unsigned char*>(v) + offset);
  }
};

// The same values in rows of 256 bytes, of which the first half is used: the bytes {4 * lane, nibble} are the offset of
// one, so that a single PRMT makes it out of four nibbles.
struct Decoder4bit {
  float v[16][2 * kWarp];

  __device__ void load(QuantType type) {
    const float* values = device_values_4bit(type);
    for (int i = threadIdx.x; i < 16 * kWarp; i += blockDim.x) v[i / kWarp][i % kWarp] = values[i / kWarp];
  }
  __device__ __forceinline__ float value(uint32_t nibble, uint32_t lane) const { return v[nibble & 15][lane]; }
  // What the first N codes of a packed word stand for, N at most 8.
  template <int N>
  __device__ __forceinline__ void values(uint32_t word, uint32_t lane, float (&to)[N]) const {
    const uint32_t odd = word & 0x0f0f0f0fu, even = word >> 4 & 0x0f0f0f0fu;
#pragma unroll
    for (int i = 0; i < N; i++) {
      const uint32_t offset = prmt(i % 2 ? odd : even, lane * sizeof(float), 0x5504 | (i / 2) << 4);
      to[i] = *reinterpret_cast<const float*>(reinterpret_cast<const unsigned char*>(v) + offset);
    }
  }
};

// A row of Bins4bit in 8 bytes: code(x) is byte x > threshold of codes, and 16 times it the byte two further on.
struct alignas(8) Bin4bit {
  float threshold;
  uint32_t codes;
};
struct PackedBins4bit {
  Bin4bit bin[32];
};

namespace codebook_detail {

consteval PackedBins4bit pack_bins(const Bins4bit& b) {
  PackedBins4bit r{};
  for (int i = 0; i < 32; i++)
    r.bin[i] = {b.threshold[i], static_cast<uint32_t>(b.below[i] | b.above[i] << 8) * 0x00100001u};
  return r;
}

}  // namespace codebook_detail

static __device__ const PackedBins4bit kDeviceBins4bit[4] = {
    codebook_detail::pack_bins(kBins4bit[0]), codebook_detail::pack_bins(kBins4bit[1]),
    codebook_detail::pack_bins(kBins4bit[2]), codebook_detail::pack_bins(kBins4bit[3])};

// The code of a normalized x, |x| <= 1: the bins of Bins4bit, a copy for every lane of half a warp, which is what one
// pass of 8-byte loads covers.
struct Encoder4bit {
  static constexpr int kCopies = 16;
  Bin4bit row[32][kCopies];

  __device__ void load(QuantType type) {
    const Bin4bit* bins = kDeviceBins4bit[static_cast<int>(type)].bin;
    for (int i = threadIdx.x; i < 32 * kCopies; i += blockDim.x) row[i / kCopies][i % kCopies] = bins[i / kCopies];
  }

  // The codes of eight values times `factor` as they are stored, the first in the high half of the lowest byte.
  __device__ __forceinline__ uint32_t word(const float (&x)[8], float factor, uint32_t lane) const {
    // Bytes are pushed in from below, the last first.
    uint32_t even = 0, odd = 0;
#pragma unroll
    for (int i = 6; i >= 0; i -= 2) {
      even = select(x[i] * factor, lane, even, 0x6542);
      odd = select(x[i + 1] * factor, lane, odd, 0x6540);
    }
    return even | odd;
  }
  __device__ __forceinline__ uint32_t code(float x, uint32_t lane) const { return select(x, lane, 0, 0x4440); }

 private:
  // PRMT of the codes of x's bin and `rest`, with the lowest byte of `selector` moved on where x is above.
  __device__ __forceinline__ uint32_t select(float x, uint32_t lane, uint32_t rest, uint32_t selector) const {
    // In [2^16, 2^17) a float counts in steps of 1/128, so the bin starts at bit 7: times the 128 bytes of a row.
    const float position = fma_round_down(x, kBinScale, 98304.0f + kBinOffset);
    const uint32_t offset = (float_bits(position) & 0xf80u) | settled_byte(lane % kCopies * sizeof(Bin4bit));
    static_assert(sizeof(row[0]) == 128);
    const auto* from = reinterpret_cast<const Bin4bit*>(reinterpret_cast<const unsigned char*>(row) + offset);
    const Bin4bit bin = load_struct(from);
    return prmt(bin.codes, rest, x > bin.threshold ? selector + 1 : selector);
  }
};

// --- 8-bit -----------------------------------------------------------------------------------------------------------

struct Values8bit {
  alignas(64) float v[256];
};

// The dynamic maps. Two are for optimizer states: with signed_keep_sign a value with a sign bit never becomes the code
// of 0; unsigned_state takes a value for its magnitude, which saves a comparison where none is negative.
enum class DynamicMap { signed_map, unsigned_map, signed_keep_sign, unsigned_state };
constexpr bool is_signed(DynamicMap map) {
  return map == DynamicMap::signed_map || map == DynamicMap::signed_keep_sign;
}

// A bin of the magnitudes: it holds at most one threshold. codes has four bytes, for a magnitude m of a value x: which
// one is 2 * (m > threshold), and one more for a negative x.
struct alignas(8) Bin8bit {
  float threshold;
  uint32_t codes;
};

// Bins by float bits: with m + 2^-23, the low five bits of the exponent (which then is -23 to 0) and the first
// kMantissa bits of the mantissa number the bins in ascending order.
template <bool is_signed>
struct Bins8bit {
  static constexpr int kMantissa = is_signed ? 6 : 7;
  static constexpr int kFirst = 8 << kMantissa;  // exponent field 104, of 2^-23
  static constexpr int kCount = (32 << kMantissa) - kFirst;
  static constexpr float kShift = 0x1p-23f;

  // For m in [0, 1], infinity and NaN: where the bin lies, in bytes.
  BNB_INLINE static constexpr int offset(uint32_t shifted_magnitude_bits) {
    constexpr int kSize = sizeof(Bin8bit);
    return static_cast<int>(shifted_magnitude_bits >> (20 - kMantissa) & ((32u << kMantissa) - 1) * kSize) -
           kFirst * kSize;
  }

  Bin8bit bin[kCount];
  bool valid;
};

namespace codebook_detail {

consteval Values8bit values_8bit(const float (&map)[256]) {
  Values8bit r{};
  for (int i = 0; i < 256; i++) r.v[i] = map[i];
  return r;
}

// The steps above 0 of the signed map serve the negative side as well: its values mirror each other, and so do the
// ties, because the code of 0 is odd. Only the last step, to 1, has no mirror image.
consteval bool mirrored() {
  using bnb::codebook_detail::kInf;
  for (int k = 0; k < 127; k++)
    if (kDynamicSigned[127 - k] != -kDynamicSigned[127 + k]) return false;
  for (int k = 1; k < 127; k++) {
    // x > t is |x| < -t, and the smallest magnitude for which that fails is -t itself.
    const float t = kSignedThresholds.t[126 - k];
    if (next_below(-t) != kSignedThresholds.t[127 + k]) return false;
  }
  return kSignedThresholds.t[255] == kInf;
}

// The code that is so many steps away from that of 0.
template <DynamicMap map>
consteval uint32_t code_8bit(int steps, bool negative) {
  if (!is_signed(map)) return static_cast<uint32_t>(negative && map == DynamicMap::unsigned_map ? 0 : steps);
  if (!negative) return static_cast<uint32_t>(127 + steps);
  const int down = map == DynamicMap::signed_keep_sign && steps < 1 ? 1 : steps;
  return static_cast<uint32_t>(down > 127 ? 0 : 127 - down);
}

template <DynamicMap map>
consteval Bins8bit<is_signed(map)> bins_8bit() {
  using Bins = Bins8bit<is_signed(map)>;
  Bins r{};
  r.valid = !is_signed(map) || mirrored();
  const float* t = is_signed(map) ? kSignedThresholds.t + 127 : kUnsignedThresholds.t;
  const int steps = is_signed(map) ? 128 : 255;
  int rank = 0;
  for (int i = 0; i < Bins::kCount; i++) {
    float threshold = bnb::codebook_detail::kInf;
    const int first = rank;
    while (rank < steps &&
           Bins::offset(__builtin_bit_cast(uint32_t, t[rank] + Bins::kShift)) == i * int{sizeof(Bin8bit)})
      threshold = t[rank++];
    if (rank > first + 1) r.valid = false;
    r.bin[i] = {threshold, code_8bit<map>(first, false) | code_8bit<map>(first, true) << 8 |
                               code_8bit<map>(rank, false) << 16 | code_8bit<map>(rank, true) << 24};
  }
  if (rank != steps) r.valid = false;
  return r;
}

}  // namespace codebook_detail

static __device__ const Values8bit kDeviceDynamicSigned = codebook_detail::values_8bit(kDynamicSigned);
static __device__ const Values8bit kDeviceDynamicUnsigned = codebook_detail::values_8bit(kDynamicUnsigned);
__device__ __forceinline__ const float* device_dynamic_map(bool is_signed) {
  return is_signed ? kDeviceDynamicSigned.v : kDeviceDynamicUnsigned.v;
}

// A template, so that a file that does not search has no copy of these 12 or 24 KB.
template <DynamicMap map>
static __device__ const Bins8bit<is_signed(map)> kDeviceBins8bit = codebook_detail::bins_8bit<map>();

// Any 256 values, with 8 copies (8 KB) so that few lanes meet in a bank.
struct Values8bitTable {
  static constexpr int kCopies = 8;
  float v[256][kCopies];

  // map: [256], global memory
  __device__ void load(const float* map) {
    for (int i = threadIdx.x; i < 256 * kCopies; i += blockDim.x) v[i / kCopies][i % kCopies] = map[i / kCopies];
  }
  __device__ __forceinline__ float at(uint32_t code, uint32_t lane) const { return v[code][lane % kCopies]; }
  // What the four codes of a word stand for.
  __device__ __forceinline__ void values(uint32_t word, uint32_t lane, float* to) const {
    const uint32_t copy = settled_byte(lane % kCopies * sizeof(float));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      // A row is 32 bytes: the offset is one instruction after the shift.
      const uint32_t offset = ((i == 0 ? word << 5 : word >> (8 * i - 5)) & 0x1fe0u) | copy;
      static_assert(sizeof(v[0]) == 32);
      to[i] = *reinterpret_cast<const float*>(reinterpret_cast<const unsigned char*>(v) + offset);
    }
  }
};

// The code of a normalized x, |x| <= 1, in a dynamic map. 12 KB for the signed ones, 24 KB for the unsigned.
template <DynamicMap map>
struct DynamicEncoder {
  using Bins = Bins8bit<is_signed(map)>;
  static_assert(codebook_detail::bins_8bit<map>().valid);
  static constexpr uint32_t kZero = is_signed(map) ? 127 : 0;
  Bin8bit bin[Bins::kCount];

  __device__ void load() {
    for (int i = threadIdx.x; i < Bins::kCount; i += blockDim.x) bin[i] = kDeviceBins8bit<map>.bin[i];
  }

  // Some code for a NaN.
  __device__ __forceinline__ uint32_t code(float x) const { return select<false>(x, 0, 0x4440); }
  // The codes of four values times `factor`, the first in the lowest byte. Finite: none is infinite or NaN, which makes
  // the address of a bin an instruction shorter where the table does not begin at 0.
  template <bool Finite = false>
  __device__ __forceinline__ uint32_t word(const float* x, float factor) const {
    uint32_t codes = 0;  // bytes are pushed in from below, the last first
#pragma unroll
    for (int i = 3; i >= 0; i--) codes = select<Finite>(x[i] * factor, codes, 0x6540);
    return codes;
  }

 private:
  // PRMT of the codes of x's bin and `rest`, with the lowest nibble of `selector` moved on to the code of x.
  template <bool Finite>
  __device__ __forceinline__ uint32_t select(float x, uint32_t rest, uint32_t selector) const {
    const float magnitude = map == DynamicMap::unsigned_map ? fmaxf(x, 0.0f) : fabsf(x);
    const uint32_t bits = float_bits(magnitude + Bins::kShift);
    Bin8bit b;
    if constexpr (Finite)
      b = load_struct(bin + (static_cast<int>(bits >> (23 - Bins::kMantissa)) - (104 << Bins::kMantissa)));
    else
      b = load_struct(
          reinterpret_cast<const Bin8bit*>(reinterpret_cast<const unsigned char*>(bin) + Bins::offset(bits)));
    if constexpr (is_signed(map)) selector += float_bits(x) >> 31;
    return prmt(b.codes, rest, magnitude > b.threshold ? selector + 2 : selector);
  }
};

// --- scales ----------------------------------------------------------------------------------------------------------

// scale_of() for a nested blocksize of 2^nested_shift: without the 64-bit division.
__device__ __forceinline__ float scale_of(const BlockScales& s, int64_t block, int nested_shift) {
  if (!s.nested_absmax) return static_cast<const float*>(s.absmax)[block];
  const uint8_t code = static_cast<const uint8_t*>(s.absmax)[block];
  return s.nested_code[code] * s.nested_absmax[block >> nested_shift] + s.offset[0];
}
// On the host: the binary logarithm of a blocksize, all of which are powers of two.
inline int shift_of(int64_t blocksize) { return blocksize > 1 ? __builtin_ctzll(static_cast<uint64_t>(blocksize)) : 0; }

}  // namespace bnb::cuda
