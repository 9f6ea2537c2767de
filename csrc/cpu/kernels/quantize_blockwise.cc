// Blockwise 8-bit quantization with a map of 256 values, and its inverse.
//
// Layout    One byte per element; blocks of a power of two from 64 on.
// Work      Items are blocks; a block is widened to float32 in L1 where it has another dtype or an offset.
// Numerics  Bit exact: x = a * (1 / absmax) with IEEE operations (a / absmax for a subnormal scale), then the nearest
//           entry, a tie going to the even index. cpu/dynamic_map.h searches the built-in maps; any other is searched
//           by halving over its sorted strict thresholds, which counts the same ones.
// Needs     A custom map that is ascending and finite; the op has checked it.
#include "kernels/quantize_blockwise.h"

#include "cpu/block_io.h"
#include "cpu/dynamic_map.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "kernels/codebooks.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kLargestBlock = 4096;

// The strict thresholds of any map, sorted: code(x) = #{i : x > t[i]}.
struct CustomMap {
  float t[256];

  explicit CustomMap(const float* code) {
    for (int i = 0; i < 255; i++) {
      const float middle = (code[i] + code[i + 1]) * 0.5f;
      const float strict = i % 2 ? next_below(middle) : middle;
      // Equal entries leave the odd threshold just below its even neighbour; the count does not depend on the order.
      int at = i;
      for (; at > 0 && t[at - 1] > strict; at--) t[at] = t[at - 1];
      t[at] = strict;
    }
    t[255] = __builtin_inff();
  }

  BNB_INLINE I32 encode(F32 x) const {
    I32 count = zero_i32();
#pragma GCC unroll 8
    for (int step = 128; step > 0; step /= 2) {
      const F32 threshold = gather(t, count + set1_i32(step - 1));
      count = select(gt(x, threshold), count + set1_i32(step), count);
    }
    return count;
  }

  BNB_INLINE float encode_block(const float* x, uint8_t* codes, int64_t n, float* scratch) const {
    const uint32_t bits = absmax_bits(x, n);
    float scale = float_from_bits(bits), inverse = 1.0f / scale;
    if (bits == 0 || bits >= kInfinityBits) {
      inverse = 0;
      for (int64_t i = 0; i < n; i++) scratch[i] = 0;
      x = scratch;
      scale = float_from_bits(bits == 0 ? 0 : kNanBits);
    } else if (bits < kSmallestNormalBits) {
      divide(x, scale, scratch, n);
      x = scratch;
      inverse = 1;
    }
    const F32 s = set1(inverse);
    for (int64_t i = 0; i < n; i += F32::width) {
      const int64_t lanes = n - i < F32::width ? n - i : F32::width;
      store_u8_n(codes + i, encode(load_n(x + i, lanes) * s), lanes);
    }
    return scale;
  }
};

struct SignedMap {
  explicit SignedMap(const float*) {}
  BNB_INLINE float encode_block(const float* x, uint8_t* codes, int64_t n, float* scratch) const {
    return BNB_ISA::encode_block<DynamicMap::signed_map>(x, codes, n, scratch);
  }
};

struct UnsignedMap {
  explicit UnsignedMap(const float*) {}
  BNB_INLINE float encode_block(const float* x, uint8_t* codes, int64_t n, float* scratch) const {
    return BNB_ISA::encode_block<DynamicMap::unsigned_map>(x, codes, n, scratch);
  }
};

template <class T, class Map>
void quantize_blocks(const QuantizeBlockwiseArgs& a, const Map& map, int64_t begin, int64_t end) {
  alignas(64) float buffer[kLargestBlock], scratch[kLargestBlock];
  for (int64_t b = begin; b < end; b++) {
    const int64_t first = b * a.blocksize;
    const int64_t n = a.n - first < a.blocksize ? a.n - first : a.blocksize;
    const T* stored = static_cast<const T*>(a.x) + first;
    prefetch_ahead(stored, n);
    const float* x = widen(stored, n, buffer);
    if (a.offset) {
      const float offset = a.offset[0];
      for (int64_t i = 0; i < n; i++) buffer[i] = x[i] - offset;
      x = buffer;
    }
    a.absmax[b] = map.encode_block(x, a.codes + first, n, scratch);
  }
}

template <class T, class Map>
void quantize_all(const QuantizeBlockwiseArgs& a) {
  const int64_t blocks = (a.n + a.blocksize - 1) / a.blocksize;
  const Map map(a.code);
  parallel_for(blocks, kBlockGrain / a.blocksize,
               [&](int64_t begin, int64_t end) { quantize_blocks<T>(a, map, begin, end); });
}

template <class T, bool streaming>
void dequantize_blocks(const DequantizeBlockwiseArgs& a, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; b++) {
    const int64_t first = b * a.blocksize;
    const int64_t n = a.n - first < a.blocksize ? a.n - first : a.blocksize;
    const uint8_t* codes = a.codes + first;
    T* y = static_cast<T*>(a.y) + first;
    const float scale = scale_of(a.scales, b);
    const F32 s = set1(scale);
    const F32 offset = a.offset ? set1(a.offset[0]) : zero();
    int64_t i = 0;
    for (; i + F32::width <= n; i += F32::width) {
      F32 v = gather(a.code, load_u8(codes + i)) * s;
      if (a.offset) v = v + offset;
      store_block<streaming>(y + i, v);
    }
    if (i < n) {
      F32 v = gather(a.code, load_u8_n(codes + i, n - i)) * s;
      if (a.offset) v = v + offset;
      store_n(y + i, v, n - i);
    }
  }
  if (streaming) finish_streaming();
}

}  // namespace

void quantize_blockwise(const QuantizeBlockwiseArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    if (a.map == Map8Bit::dynamic_signed) {
      quantize_all<T, SignedMap>(a);
    } else if (a.map == Map8Bit::dynamic_unsigned) {
      quantize_all<T, UnsignedMap>(a);
    } else {
      quantize_all<T, CustomMap>(a);
    }
  });
}

void dequantize_blockwise(const DequantizeBlockwiseArgs& a) {
  const int64_t blocks = (a.n + a.blocksize - 1) / a.blocksize;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const bool streaming = streams_well(a.y, a.n * static_cast<int64_t>(sizeof(T)));
    parallel_for(blocks, kBlockGrain / a.blocksize, [&](int64_t begin, int64_t end) {
      if (streaming) {
        dequantize_blocks<T, true>(a, begin, end);
      } else {
        dequantize_blocks<T, false>(a, begin, end);
      }
    });
  });
}

void mean_float64(const MeanFloat64Args& a) {
  // Eight independent sums in a fixed order: the result does not depend on threads or ISA.
  double sum[8] = {};
  int64_t i = 0;
  for (; i + 8 <= a.n; i += 8)
    for (int k = 0; k < 8; k++) sum[k] += static_cast<double>(a.x[i + k]);
  for (; i < a.n; i++) sum[0] += static_cast<double>(a.x[i]);
  const double total = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  a.mean[0] = a.n ? static_cast<float>(total / static_cast<double>(a.n)) : 0.0f;
}

}  // namespace bnb::BNB_ISA
