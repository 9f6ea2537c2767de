// dx = dy @ dequantized weight. A work item owns a panel of columns of dx; the panel of the weight is decoded to
// float32 a chunk of rows at a time, and each decoded vector serves four rows of dy.

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "kernels/int8.h"

namespace bnb::BNB_ISA {
namespace {

constexpr float kInv127 = 0x1.020408p-7f;
constexpr int64_t kVectors = 2;  // of columns in a register tile
constexpr int64_t kTileCols = kVectors * F32::width;
constexpr int64_t kPanelCols = 4 * kTileCols;  // of columns decoded together
constexpr int64_t kChunk = 128;                // rows of the weight decoded together
constexpr int kTileRows = 4;

// acc[R][kVectors] += dy[r][n] * panel[n][...] over a chunk.
template <int R>
void accumulate(const float* dy, int64_t dy_pitch, const float* panel, int64_t rows, float* sums) {
  F32 acc[R][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) acc[r][v] = load(sums + r * kPanelCols + v * F32::width);
  for (int64_t n = 0; n < rows; n++) {
    F32 w[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) w[v] = load(panel + n * kPanelCols + v * F32::width);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const F32 g = set1(dy[r * dy_pitch + n]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) acc[r][v] = fma(g, w[v], acc[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) store(sums + r * kPanelCols + v * F32::width, acc[r][v]);
}

// Rows [from, from + rows) of the weight in columns [k, k + cols), scaled; missing columns are 0.
void decode_panel(const Int8LinearBackwardArgs& a, int64_t from, int64_t rows, int64_t k, int64_t cols, float* panel) {
  for (int64_t n = 0; n < rows; n++) {
    const int8_t* codes = a.weight_codes + (from + n) * a.k + k;
    const F32 scale = set1(a.weight_stats[from + n] * kInv127);
    for (int64_t j = 0; j < kPanelCols; j += F32::width) {
      const int64_t left = cols - j;
      const I32 q = left >= F32::width ? load_i8(codes + j) : left > 0 ? load_i8_n(codes + j, left) : zero_i32();
      store(panel + n * kPanelCols + j, to_f32(q) * scale);
    }
  }
}

template <class T>
void backward(const Int8LinearBackwardArgs& a) {
  // dy as float32, read by every worker.
  const float* dy = static_cast<const float*>(a.dy);
  const Scratch<float> widened(a.m * a.n, a.dtype != DType::float32);
  if (widened) {
    for (int64_t i = 0; i < a.m * a.n; i++) widened[i] = to_float(static_cast<const T*>(a.dy)[i]);
    dy = widened;
  }
  T* dx = static_cast<T*>(a.dx);
  const int64_t panels = (a.k + kPanelCols - 1) / kPanelCols;
  parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
    const Scratch<float> panel(kChunk * kPanelCols);
    const Scratch<float> sums(a.m * kPanelCols);
    for (int64_t p = begin; p < end; p++) {
      const int64_t k = p * kPanelCols, cols = a.k - k < kPanelCols ? a.k - k : kPanelCols;
      __builtin_memset(sums, 0, static_cast<size_t>(a.m * kPanelCols) * sizeof(float));
      for (int64_t from = 0; from < a.n; from += kChunk) {
        const int64_t rows = a.n - from < kChunk ? a.n - from : kChunk;
        decode_panel(a, from, rows, k, cols, panel);
        for (int64_t tile = 0; tile < cols; tile += kTileCols) {
          int64_t i = 0;
          for (; i + kTileRows <= a.m; i += kTileRows)
            accumulate<kTileRows>(dy + i * a.n + from, a.n, panel + tile, rows, sums + i * kPanelCols + tile);
          for (; i < a.m; i++)
            accumulate<1>(dy + i * a.n + from, a.n, panel + tile, rows, sums + i * kPanelCols + tile);
        }
      }
      for (int64_t i = 0; i < a.m; i++)
        for (int64_t j = 0; j < cols; j++) dx[i * a.k + k + j] = from_float<T>(sums[i * kPanelCols + j]);
    }
  });
}

}  // namespace

void int8_linear_backward(const Int8LinearBackwardArgs& a) {
  visit_float(a.dtype, [&](auto t) { backward<decltype(t)>(a); });
}

}  // namespace bnb::BNB_ISA
