// The integer micro-kernel of LLM.int8(): sums[i][j] = a[i] . b[j] over k, for R rows of a and C rows of b at a
// time, exact for every int8 value while k <= 131071. Both operands are read along k, so nothing is packed.
#pragma once
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int kDotRows = 4;
constexpr int kDotCols = 4;

#if BNB_ISA_LEVEL >= 2

BNB_INLINE I32 load_bytes(const int8_t* p, __mmask64 lanes) { return {_mm512_maskz_loadu_epi8(lanes, p)}; }

// The instruction wants one unsigned operand: a + 128. The surplus 128 * sum(b) is taken off lane by lane before the
// lanes are summed; within a lane int32 may wrap, which cancels.
template <int R, int C>
void dot_tile(const int8_t* a, const int8_t* b, int64_t k, int64_t stride, int32_t (&sums)[kDotRows][kDotCols]) {
  const I32 flip = set1_i32(static_cast<int32_t>(0x80808080)), ones = set1_i32(0x01010101);
  I32 acc[R][C], surplus[C];
#pragma GCC unroll 4
  for (int j = 0; j < C; j++) {
    surplus[j] = zero_i32();
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) acc[i][j] = zero_i32();
  }
  for (int64_t at = 0; at < k; at += 64) {
    const int64_t left = k - at;
    const __mmask64 lanes = left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
    I32 y[C];
#pragma GCC unroll 4
    for (int j = 0; j < C; j++) {
      y[j] = load_bytes(b + j * stride + at, lanes);
      add_byte_products(surplus[j], ones, y[j]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) {
      const I32 x = load_bytes(a + i * stride + at, lanes) ^ flip;
#pragma GCC unroll 4
      for (int j = 0; j < C; j++) add_byte_products(acc[i][j], x, y[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < C; j++) {
    const I32 excess = shl(surplus[j], 7);
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) sums[i][j] = reduce_add(acc[i][j] - excess);
  }
}

#elif BNB_ISA_LEVEL == 1

BNB_INLINE __m256i widen(const int8_t* p, int64_t left) {
  if (left >= 16) return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  alignas(16) int8_t tail[16] = {};
  __builtin_memcpy(tail, p, static_cast<size_t>(left));
  return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(tail)));
}

template <int R, int C>
void dot_tile_of_pairs(const int8_t* a, const int8_t* b, int64_t k, int64_t stride,
                       int32_t (&sums)[kDotRows][kDotCols]) {
  // Two rows at a time keep the accumulators in registers.
  for (int i0 = 0; i0 < R; i0 += 2) {
    constexpr int kPair = R < 2 ? 1 : 2;
    __m256i acc[kPair][C];
#pragma GCC unroll 4
    for (int j = 0; j < C; j++)
#pragma GCC unroll 2
      for (int i = 0; i < kPair; i++) acc[i][j] = _mm256_setzero_si256();
    for (int64_t at = 0; at < k; at += 16) {
      __m256i x[kPair];
#pragma GCC unroll 2
      for (int i = 0; i < kPair; i++) x[i] = widen(a + (i0 + i) * stride + at, k - at);
#pragma GCC unroll 4
      for (int j = 0; j < C; j++) {
        const __m256i y = widen(b + j * stride + at, k - at);
#pragma GCC unroll 2
        for (int i = 0; i < kPair; i++) acc[i][j] = _mm256_add_epi32(acc[i][j], _mm256_madd_epi16(x[i], y));
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < C; j++)
#pragma GCC unroll 2
      for (int i = 0; i < kPair; i++) sums[i0 + i][j] = reduce_add(I32{acc[i][j]});
  }
}

BNB_INLINE I32 load_bytes(const int8_t* p, int64_t left) {
  if (left >= 32) return load_i32(reinterpret_cast<const int32_t*>(p));
  alignas(32) int8_t tail[32] = {};
  __builtin_memcpy(tail, p, static_cast<size_t>(left));
  return load_i32(reinterpret_cast<const int32_t*>(tail));
}

// As at the level above, for two rows; the surplus is that of the rows before them where they are not the first.
template <int R, int C, bool kFirst>
BNB_INLINE void dot_pair(const int8_t* a, const int8_t* b, int64_t k, int64_t stride, I32 (&surplus)[C],
                         int32_t (*sums)[kDotCols]) {
  const I32 flip = set1_i32(static_cast<int32_t>(0x80808080)), ones = set1_i32(0x01010101);
  I32 acc[R][C];
#pragma GCC unroll 4
  for (int j = 0; j < C; j++) {
    if constexpr (kFirst) surplus[j] = zero_i32();
#pragma GCC unroll 2
    for (int i = 0; i < R; i++) acc[i][j] = zero_i32();
  }
  for (int64_t at = 0; at < k; at += 32) {
    I32 x[R];
#pragma GCC unroll 2
    for (int i = 0; i < R; i++) x[i] = load_bytes(a + i * stride + at, k - at) ^ flip;
#pragma GCC unroll 4
    for (int j = 0; j < C; j++) {
      const I32 y = load_bytes(b + j * stride + at, k - at);
      if constexpr (kFirst) add_byte_products(surplus[j], ones, y);
#pragma GCC unroll 2
      for (int i = 0; i < R; i++) add_byte_products(acc[i][j], x[i], y);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < C; j++)
#pragma GCC unroll 2
    for (int i = 0; i < R; i++) sums[i][j] = reduce_add(acc[i][j] - shl(surplus[j], 7));
}

template <int R, int C>
void dot_tile_of_bytes(const int8_t* a, const int8_t* b, int64_t k, int64_t stride,
                       int32_t (&sums)[kDotRows][kDotCols]) {
  I32 surplus[C];
  dot_pair<(R < 2 ? 1 : 2), C, true>(a, b, k, stride, surplus, sums);
  if constexpr (R > 2) dot_pair<2, C, false>(a + 2 * stride, b, k, stride, surplus, sums + 2);
}

template <int R, int C>
void dot_tile(const int8_t* a, const int8_t* b, int64_t k, int64_t stride, int32_t (&sums)[kDotRows][kDotCols]) {
  if (multiplies_bytes()) return dot_tile_of_bytes<R, C>(a, b, k, stride, sums);
  dot_tile_of_pairs<R, C>(a, b, k, stride, sums);
}

#else

template <int R, int C>
void dot_tile(const int8_t* a, const int8_t* b, int64_t k, int64_t stride, int32_t (&sums)[kDotRows][kDotCols]) {
  for (int i = 0; i < R; i++) {
    for (int j = 0; j < C; j++) {
      const int8_t* x = a + i * stride;
      const int8_t* y = b + j * stride;
      int32_t sum = 0;
      for (int64_t at = 0; at < k; at++) sum += static_cast<int32_t>(x[at]) * y[at];
      sums[i][j] = sum;
    }
  }
}

#endif

// As dot_tile, for edges: rows of a 1, 2 or 4 (3 is done as 2 + 1 by the caller), cols of b 1 or 4.
template <int R>
void dot_rows(const int8_t* a, const int8_t* b, int64_t k, int64_t stride, int cols,
              int32_t (&sums)[kDotRows][kDotCols]) {
  if (cols == kDotCols) return dot_tile<R, kDotCols>(a, b, k, stride, sums);
  for (int j = 0; j < cols; j++) {
    int32_t one[kDotRows][kDotCols];
    dot_tile<R, 1>(a, b + j * stride, k, stride, one);
    for (int i = 0; i < R; i++) sums[i][j] = one[i][0];
  }
}

// Calls store(i, j, sums, rows, cols) for every tile of rows [0, m) and columns [begin, end).
template <class Store>
void for_each_tile(const int8_t* a, const int8_t* b, int64_t m, int64_t begin, int64_t end, int64_t k, int64_t stride,
                   const Store& store) {
  for (int64_t j = begin; j < end; j += kDotCols) {
    const int cols = end - j < kDotCols ? static_cast<int>(end - j) : kDotCols;
    for (int64_t i = 0; i < m;) {
      int32_t sums[kDotRows][kDotCols];
      const int rows = m - i >= 4 ? 4 : m - i >= 2 ? 2 : 1;
      const int8_t* x = a + i * stride;
      const int8_t* y = b + j * stride;
      if (rows == 4) dot_rows<4>(x, y, k, stride, cols, sums);
      if (rows == 2) dot_rows<2>(x, y, k, stride, cols, sums);
      if (rows == 1) dot_rows<1>(x, y, k, stride, cols, sums);
      store(i, j, sums, rows, cols);
      i += rows;
    }
  }
}

}  // namespace
}  // namespace bnb::BNB_ISA
