// Building blocks of matrix products: packing into panels, and the micro-kernel that multiplies two panels.
// A panel holds `pitch` rows (of A) or columns (of B) interleaved, so that step k of the sum reads
// panel[k * pitch .. k * pitch + pitch). What lies beyond the matrix is zero.
#pragma once
#include "core/integer.h"
#include "cpu/simd.h"
#include "cpu/work.h"

namespace bnb::BNB_ISA {
namespace {

// The register tile: kTileRows rows of A times kTileVectors vectors of B columns. It fills the register file
// less what the operands of one step need.
#if BNB_ISA_LEVEL >= 2
constexpr int kTileRows = 14;
#elif BNB_ISA_LEVEL == 1
constexpr int kTileRows = 6;
#elif defined(__aarch64__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;
constexpr int kTileCols = kTileVectors * F32::width;

// Four rows of four floats, transposed.
typedef float Float4 __attribute__((vector_size(16), aligned(4), may_alias));
BNB_INLINE void transpose_4x4(const float* src, int64_t ld, float* dst, int64_t pitch) {
  const Float4 r0 = *reinterpret_cast<const Float4*>(src), r1 = *reinterpret_cast<const Float4*>(src + ld);
  const Float4 r2 = *reinterpret_cast<const Float4*>(src + 2 * ld), r3 = *reinterpret_cast<const Float4*>(src + 3 * ld);
  const Float4 lo01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), hi01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
  const Float4 lo23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5), hi23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
  *reinterpret_cast<Float4*>(dst) = __builtin_shufflevector(lo01, lo23, 0, 1, 4, 5);
  *reinterpret_cast<Float4*>(dst + pitch) = __builtin_shufflevector(lo01, lo23, 2, 3, 6, 7);
  *reinterpret_cast<Float4*>(dst + 2 * pitch) = __builtin_shufflevector(hi01, hi23, 0, 1, 4, 5);
  *reinterpret_cast<Float4*>(dst + 3 * pitch) = __builtin_shufflevector(hi01, hi23, 2, 3, 6, 7);
}

template <class T>
BNB_INLINE void convert(const T* src, float* dst, int64_t n) {
  int64_t i = 0;
  for (; i + F32::width <= n; i += F32::width) store(dst + i, load(src + i));
  if (i < n) store_n(dst + i, load_n(src + i, n - i), n - i);
}

// dst[k * pitch + i] = src[i * ld + k]: the sum runs along the rows of the source.
inline void pack_transposed(const float* src, int64_t ld, int64_t count, int64_t depth, int64_t pitch, float* dst) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float* rows = src + i * ld;
    int64_t k = 0;
    for (; k + 4 <= depth; k += 4) transpose_4x4(rows + k, ld, dst + k * pitch + i, pitch);
    for (; k < depth; k++)
      for (int64_t j = 0; j < 4; j++) dst[k * pitch + i + j] = rows[j * ld + k];
  }
  for (; i < count; i++)
    for (int64_t k = 0; k < depth; k++) dst[k * pitch + i] = src[i * ld + k];
  for (; i < pitch; i++)
    for (int64_t k = 0; k < depth; k++) dst[k * pitch + i] = 0.0f;
}

// As above for 16-bit sources, widened through `stage` (4 * depth floats).
template <class T>
inline void pack_transposed(const T* src, int64_t ld, int64_t count, int64_t depth, int64_t pitch, float* dst,
                            float* stage) {
  for (int64_t i = 0; i < pitch; i += 4) {
    const int64_t rows = i < count ? smaller<int64_t>(4, count - i) : 0;
    for (int64_t j = 0; j < rows; j++) convert(src + (i + j) * ld, stage + j * depth, depth);
    const int64_t room = smaller<int64_t>(4, pitch - i);
    if (rows == 4) {
      int64_t k = 0;
      for (; k + 4 <= depth; k += 4) transpose_4x4(stage + k, depth, dst + k * pitch + i, pitch);
      for (; k < depth; k++)
        for (int64_t j = 0; j < 4; j++) dst[k * pitch + i + j] = stage[j * depth + k];
    } else {
      for (int64_t j = 0; j < room; j++)
        for (int64_t k = 0; k < depth; k++) dst[k * pitch + i + j] = j < rows ? stage[j * depth + k] : 0.0f;
    }
  }
}
inline void pack_transposed(const float* src, int64_t ld, int64_t count, int64_t depth, int64_t pitch, float* dst,
                            float*) {
  pack_transposed(src, ld, count, depth, pitch, dst);
}

// dst[k * pitch + i] = src[k * ld + i]: the sum runs down the columns of the source.
template <class T>
inline void pack_straight(const T* src, int64_t ld, int64_t count, int64_t depth, int64_t pitch, float* dst) {
  for (int64_t k = 0; k < depth; k++) {
    const T* from = src + k * ld;
    float* to = dst + k * pitch;
    // A short piece of each row, rows far apart: the hardware does not foresee them.
    for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + 16 * ld + i);
    int64_t i = 0;
    for (; i + F32::width <= count; i += F32::width) store(to + i, load(from + i));
    if (i < count) {
      store_n(to + i, load_n(from + i, count - i), count - i);
      i = count;
    }
    for (; i < pitch; i++) to[i] = 0.0f;
  }
}

// c[rows, cols] = or += a_panel * b_panel over `depth` steps. The a panel has pitch R, the b panel V vectors;
// rows <= R and cols <= V * width say how much of the tile exists in c.
template <int R, int V>
void multiply_panels(int64_t depth, const float* a, const float* b, float* c, int64_t ldc, int64_t rows, int64_t cols,
                     bool add) {
  F32 sum[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[i][v] = zero();
      // The rows of c may lie pages apart, where no hardware prefetcher follows: ask for them before they are needed.
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
    if (i < rows)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) __builtin_prefetch(c + i * ldc + v * F32::width, 1);
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; k++) {
    F32 column[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) column[v] = load(b + v * F32::width);
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) {
      const F32 x = set1(a[i]);
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[i][v] = fma(x, column[v], sum[i][v]);
    }
    a += R;
    b += V * F32::width;
  }
  const bool whole = cols == V * F32::width;
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) {
    if (i < rows) {
      float* row = c + i * ldc;
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        float* to = row + v * F32::width;
        if (whole) {
          store(to, add ? load(to) + sum[i][v] : sum[i][v]);
        } else {
          const int64_t left = smaller<int64_t>(F32::width, cols - v * F32::width);
          if (left > 0) store_n(to, add ? load_n(to, left) + sum[i][v] : sum[i][v], left);
        }
      }
    }
  }
}

using PanelProduct = void (*)(int64_t depth, const float* a, const float* b, float* c, int64_t ldc, int64_t rows,
                              int64_t cols, bool add);

template <int R, int V>
BNB_INLINE PanelProduct find_panel_product(int64_t pitch) {
  if constexpr (R == 1) {
    return &multiply_panels<1, V>;
  } else {
    return pitch == R ? &multiply_panels<R, V> : find_panel_product<R - 1, V>(pitch);
  }
}

// How `count` rows split into panels of at most kTileRows: evenly, so that 16 rows become 8 + 8 and not
// 14 + 2.
struct RowPanels {
  int64_t count, pitch;
  explicit RowPanels(int64_t rows) : count(ceil_div(rows, kTileRows)), pitch(count == 0 ? 1 : ceil_div(rows, count)) {
    count = ceil_div(rows, pitch);
  }
};
// Columns, in panels of one vector when that is enough.
struct ColPanels {
  int64_t count, pitch;
  explicit ColPanels(int64_t cols)
      : count(ceil_div(cols, kTileCols)), pitch(cols <= F32::width ? F32::width : kTileCols) {}
};

BNB_INLINE PanelProduct panel_product(const RowPanels& rows, const ColPanels& cols) {
  return cols.pitch == kTileCols ? find_panel_product<kTileRows, kTileVectors>(rows.pitch)
                                 : find_panel_product<kTileRows, 1>(rows.pitch);
}

// All panels of an operand: `lanes` rows of a or columns of b, split by `pitch`.
template <class T>
inline void pack_all_transposed(const T* src, int64_t ld, int64_t lanes, int64_t depth, int64_t pitch, float* dst,
                                float* stage) {
  for (int64_t i = 0; i < lanes; i += pitch)
    pack_transposed(src + i * ld, ld, smaller(pitch, lanes - i), depth, pitch, dst + i * depth, stage);
}
template <class T>
inline void pack_all_straight(const T* src, int64_t ld, int64_t lanes, int64_t depth, int64_t pitch, float* dst) {
  for (int64_t i = 0; i < lanes; i += pitch)
    pack_straight(src + i, ld, smaller(pitch, lanes - i), depth, pitch, dst + i * depth);
}

// c[m, n] = or += a b, both packed whole.
inline void multiply_packed(int64_t m, int64_t n, int64_t depth, const float* a, const float* b, float* c, int64_t ldc,
                            bool add) {
  const RowPanels rows(m);
  const ColPanels cols(n);
  const PanelProduct product = panel_product(rows, cols);
  for (int64_t j = 0; j < n; j += cols.pitch)
    for (int64_t i = 0; i < m; i += rows.pitch)
      product(depth, a + i * depth, b + j * depth, c + i * ldc + j, ldc, smaller(rows.pitch, m - i),
              smaller(cols.pitch, n - j), add);
}

}  // namespace
}  // namespace bnb::BNB_ISA
