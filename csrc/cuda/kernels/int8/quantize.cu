// Row-wise int8 quantization for LLM.int8().
//
// Layout    a [rows, cols] in its own type; codes [rows, cols]; mask [cols], one byte per column.
// Work      a team of threads per row, a warp for short ones. It reads the row once, keeps what fits in registers, and
//           writes the codes; what does not fit is read again, from cache. With a threshold the team marks columns that
//           hold outliers; since every row has a say in that, a last pass clears the codes of marked columns.
// Numerics  Bit exact. The absmax is an integer maximum of bit patterns, which keeps NaN and infinity visible; the
//           reciprocal is correctly rounded, because a single 127 / s gives other codes.
// Needs     Vectors where rows are whole vectors and aligned; otherwise single elements.
#include "cuda/codebooks.cuh"
#include "cuda/map.cuh"
#include "cuda/rows.cuh"
#include "kernels/int8.h"

namespace bnb::cuda {
namespace {

constexpr int kTeam = 256;        // threads for a long row
constexpr int64_t kShort = 1024;  // columns that are left to a warp
constexpr int kHeld = 4;          // vectors that a thread keeps

struct RowNorm {
  float absmax, scale;
  bool plain;  // codes are x * scale; false for rows of zeros, with NaN, or so small that the reciprocal overflowed

  __device__ __forceinline__ explicit RowNorm(uint32_t top)
      : absmax(float_from_bits(top < kInfinityBits ? top : kNanBits)),
        scale(127.0f * (1.0f / absmax)),
        plain(float_bits(scale) < kInfinityBits) {}

  // The code as the low byte, of x * scale or what replaces it.
  static __device__ __forceinline__ uint32_t code(float x) {
    // Outlier elements are out of range; their column is cleared afterwards. In [2^23, 2^24) a float counts in ones.
    return float_bits(fminf(fmaxf(x, -127.0f), 127.0f) + 12582912.0f) & 255;
  }
  __device__ __forceinline__ uint32_t rare_code(float x) const { return absmax > 0 ? code(x / absmax * 127.0f) : 0; }
};

template <class T, int W>
__device__ __forceinline__ void store_codes(int8_t* to, const Vec<T, W>& x, const RowNorm& norm) {
  if constexpr (W == 1) {
    to[0] = static_cast<int8_t>(norm.code(widen(x.v[0]) * norm.scale));
  } else {
    Vec<uint32_t, W / 4> words = {};
#pragma unroll
    for (int i = 0; i < W; i++) words.v[i / 4] |= norm.code(widen(x.v[i]) * norm.scale) << (8 * (i % 4));
    store_vec(reinterpret_cast<uint32_t*>(to), words);
  }
}

template <class T, int W>
__global__ void __launch_bounds__(kTeam) quantize_rows_kernel(const T* a, int8_t* codes, float* stats, uint8_t* mask,
                                                              int64_t rows, int64_t cols, float threshold) {
  const int step = static_cast<int>(blockDim.x) * W, mine = static_cast<int>(threadIdx.x) * W;
  const int held_cols = cols < kHeld * step ? static_cast<int>(cols) : kHeld * step;
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    const T* const from = a + row * cols;
    int8_t* const to = codes + row * cols;
    uint32_t top = 0;
    const auto scan = [&](const Vec<T, W>& x, int64_t col) {
#pragma unroll
      for (int i = 0; i < W; i++) {
        const uint32_t magnitude = float_bits(widen(x.v[i])) & kMagnitudeMask;
        if (mask && float_from_bits(magnitude) >= threshold)
          mask[col + i] = 1;  // all who write here write the same
        else
          top = Max{}(top, magnitude);
      }
    };
    Vec<T, W> held[kHeld];
#pragma unroll
    for (int v = 0; v < kHeld; v++)
      if (mine + v * step < held_cols) held[v] = load_vec<W>(from + mine + v * step);
#pragma unroll
    for (int v = 0; v < kHeld; v++)
      if (mine + v * step < held_cols) scan(held[v], mine + v * step);
#pragma unroll 1
    for (int64_t col = mine + kHeld * step; col < cols; col += step) scan(load_vec<W>(from + col), col);

    const RowNorm norm(team_reduce(top, Max{}, 0u));
    if (threadIdx.x == 0) stats[row] = norm.absmax;
    if (!norm.plain) {
#pragma unroll 1
      for (int64_t col = threadIdx.x; col < cols; col += blockDim.x)
        to[col] = static_cast<int8_t>(norm.rare_code(widen(from[col])));
      continue;
    }
#pragma unroll
    for (int v = 0; v < kHeld; v++)
      if (mine + v * step < held_cols) store_codes(to + mine + v * step, held[v], norm);
#pragma unroll 1
    for (int64_t col = mine + kHeld * step; col < cols; col += step)
      store_codes(to + col, load_vec<W>(from + col), norm);
  }
}

constexpr int kClearThreads = 256;
constexpr int64_t kClearRows = 64;

__global__ void __launch_bounds__(kClearThreads) clear_mask_kernel(uint8_t* mask, int64_t cols) {
  for (int64_t j = global_thread(); j < cols; j += global_threads()) mask[j] = 0;
}

// A thread looks at one column of kClearRows rows.
__global__ void __launch_bounds__(kClearThreads)
    clear_columns_kernel(const uint8_t* mask, int8_t* codes, int64_t rows, int64_t cols, unsigned column_blocks) {
  const int64_t col = static_cast<int64_t>(blockIdx.x % column_blocks) * kClearThreads + threadIdx.x;
  if (col >= cols || !mask[col]) return;
  const int64_t first = static_cast<int64_t>(blockIdx.x / column_blocks) * kClearRows;
  const int64_t end = first + kClearRows < rows ? first + kClearRows : rows;
  for (int64_t row = first; row < end; row++) codes[row * cols + col] = 0;
}

template <class T, int W>
void quantize_with(const Int8QuantizeRowsArgs& a, CudaStream& s) {
  const bool is_short = a.cols <= kShort;
  const dim3 block = is_short ? dim3(kWarp, kTeam / kWarp) : dim3(kTeam, 1);
  launch(s, quantize_rows_kernel<T, W>, stride_grid(s, a.rows, block.y), block, 0, static_cast<const T*>(a.a), a.codes,
         a.stats, a.outlier_mask, a.rows, a.cols, a.threshold);
}

}  // namespace

void int8_quantize_rows(const Int8QuantizeRowsArgs& a, CudaStream& s) {
  if (a.outlier_mask)
    launch(s, clear_mask_kernel, stride_grid(s, a.cols, kClearThreads), dim3(kClearThreads), 0, a.outlier_mask, a.cols);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int W = kVector<T>;
    if (a.cols % W == 0 && aligned_for(16, static_cast<const T*>(a.a)) && aligned_for(W, a.codes))
      quantize_with<T, W>(a, s);
    else
      quantize_with<T, 1>(a, s);
  });
  if (!a.outlier_mask) return;
  const int64_t column_blocks = ceil_div(a.cols, kClearThreads);
  launch(s, clear_columns_kernel, dim3(static_cast<unsigned>(column_blocks * ceil_div(a.rows, kClearRows))),
         dim3(kClearThreads), 0, a.outlier_mask, a.codes, a.rows, a.cols, static_cast<unsigned>(column_blocks));
}

}  // namespace bnb::cuda
