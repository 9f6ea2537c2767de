// The register-blocked product that the packed 4-bit kernels share: C[r][v] += sum over s of B[r][s] * V[s][v].
//
// Layout    V is a panel of `NV` native vectors a step, contiguous; B has rows of `pitch` floats; C rows of c_pitch.
// Work      R x NV accumulators stay in registers; each step loads NV vectors and broadcasts R numbers.
#pragma once
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

// Rows of one register block: 12 x 2 vectors of the 32 registers of AVX-512, 6 x 2 of the 16 of AVX2.
template <int NV>
constexpr int kBlockRows = BNB_ISA_LEVEL == 2 ? 12 : (NV == 2 ? (BNB_ISA_LEVEL == 1 ? 6 : 4) : 12);

template <int R, int NV, int64_t pitch>
void block_product(int64_t steps, const float* v, const float* b, float* c, int64_t c_pitch, bool accumulate) {
  F32 acc[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int i = 0; i < NV; i++) acc[r][i] = accumulate ? load(c + r * c_pitch + i * F32::width) : zero();
  for (int64_t s = 0; s < steps; s++) {
    F32 x[NV];
#pragma GCC unroll 2
    for (int i = 0; i < NV; i++) x[i] = load(v + i * F32::width);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const F32 factor = set1(b[r * pitch]);
#pragma GCC unroll 2
      for (int i = 0; i < NV; i++) acc[r][i] = fma(factor, x[i], acc[r][i]);
    }
    v += NV * F32::width;
    b++;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int i = 0; i < NV; i++) store(c + r * c_pitch + i * F32::width, acc[r][i]);
}

// The same with a run-time number of rows, at most R.
template <int R, int NV, int64_t pitch>
void few_rows_product(int64_t rows, int64_t steps, const float* v, const float* b, float* c, int64_t c_pitch,
                      bool accumulate) {
  if (rows == R) return block_product<R, NV, pitch>(steps, v, b, c, c_pitch, accumulate);
  if constexpr (R > 1) few_rows_product<R - 1, NV, pitch>(rows, steps, v, b, c, c_pitch, accumulate);
}

// All rows of B against one panel.
template <int NV, int64_t pitch>
void panel_rows(int64_t rows, int64_t steps, const float* v, const float* b, float* c, int64_t c_pitch,
                bool accumulate) {
  constexpr int R = kBlockRows<NV>;
  for (int64_t r = 0; r < rows; r += R) {
    const int64_t left = rows - r < R ? rows - r : R;
    few_rows_product<R, NV, pitch>(left, steps, v, b + r * pitch, c + r * c_pitch, c_pitch, accumulate);
  }
}

// All rows of B against `vectors` vectors of columns: panels of two, then one of one. A panel has room for `depth`
// steps, of which the first `steps` are used.
template <int64_t pitch>
void panels_product(int64_t vectors, int64_t rows, int64_t steps, int64_t depth, const float* v, const float* b,
                    float* c, int64_t c_pitch, bool accumulate) {
  for (int64_t i = 0; i + 2 <= vectors; i += 2)
    panel_rows<2, pitch>(rows, steps, v + i * depth * F32::width, b, c + i * F32::width, c_pitch, accumulate);
  if (vectors & 1)
    panel_rows<1, pitch>(rows, steps, v + (vectors - 1) * depth * F32::width, b, c + (vectors - 1) * F32::width,
                         c_pitch, accumulate);
}

// The vector that holds column vector `i` of step `s` in a set of panels made for panels_product.
BNB_INLINE float* panel_vector(float* panels, int64_t vectors, int64_t depth, int64_t i, int64_t s) {
  const bool paired = i < (vectors & ~int64_t{1});
  return panels + (paired ? ((i & ~int64_t{1}) * depth + 2 * s + (i & 1)) : i * depth + s) * F32::width;
}

// Exchanges rows and columns of a width x width block held in registers.
BNB_INLINE void transpose(F32 (&r)[F32::width]) {
#if BNB_ISA_LEVEL == 2
  __m512 t[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512 a = _mm512_unpacklo_ps(r[i].v, r[i + 1].v), b = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    const __m512 c = _mm512_unpacklo_ps(r[i + 2].v, r[i + 3].v), d = _mm512_unpackhi_ps(r[i + 2].v, r[i + 3].v);
    t[i] = _mm512_shuffle_ps(a, c, 0x44);
    t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
    t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
    t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
  }
  for (int i = 0; i < 4; i++) {
    const __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
    r[i].v = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[i + 12].v = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
#elif BNB_ISA_LEVEL == 1
  __m256 t[8];
  for (int i = 0; i < 8; i += 4) {
    const __m256 a = _mm256_unpacklo_ps(r[i].v, r[i + 1].v), b = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
    const __m256 c = _mm256_unpacklo_ps(r[i + 2].v, r[i + 3].v), d = _mm256_unpackhi_ps(r[i + 2].v, r[i + 3].v);
    t[i] = _mm256_shuffle_ps(a, c, 0x44);
    t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
    t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
    t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
  for (int i = 0; i < 4; i++) {
    r[i].v = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
  }
#else
  float block[F32::width][F32::width], turned[F32::width][F32::width];
  for (int i = 0; i < F32::width; i++) store(block[i], r[i]);
  for (int i = 0; i < F32::width; i++)
    for (int j = 0; j < F32::width; j++) turned[j][i] = block[i][j];
  for (int i = 0; i < F32::width; i++) r[i] = load(turned[i]);
#endif
}

}  // namespace
}  // namespace bnb::BNB_ISA
