// Row-wise int8 quantization for LLM.int8().
//
// Layout    a [rows, cols] in its own type; codes [rows, cols]; mask [cols], one byte per column.
// Work      a team of threads per row, a warp for short ones. It reads the row once, keeps what fits in registers, and
//           writes the codes; what does not fit is read again, from cache. With a threshold the team marks columns that
//           hold outliers; since every row has a say in that, a last pass clears the codes of marked columns.
//           Runs with an outlier and rows with an unusual scale are for functions out of line.
// Numerics  Bit exact. The absmax is a maximum in which a NaN wins and infinity stays visible; the reciprocal is
//           correctly rounded, because a single 127 / s gives other codes.
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

  __device__ __forceinline__ RowNorm(uint32_t top, float inverse)
      : absmax(stored(top)), scale(127.0f * inverse), plain(float_bits(scale) < kInfinityBits) {}

  static __device__ __forceinline__ float stored(uint32_t top) {
    return float_from_bits(top < kInfinityBits ? top : kNanBits);
  }
  // The code as the low byte, of x * scale or what replaces it. In [2^23, 2^24) a float counts in ones. An outlier is
  // out of range and gets anything, as its column is cleared afterwards.
  static __device__ __forceinline__ uint32_t code(float x) { return float_bits(x + 12582912.0f); }
  __device__ __forceinline__ uint32_t any_code(float x) const {
    return plain ? code(x * scale) : absmax > 0 ? code(x / absmax * 127.0f) : 0;
  }
};

// W neighbouring elements as they are held: two of 16 bits in a word.
template <class T, int W>
struct Elements {
  static constexpr bool kPairs = sizeof(T) == 2 && W > 1;
  using Stored = std::conditional_t<kPairs, uint32_t, T>;
  static constexpr int kStored = kPairs ? W / 2 : W;
  Vec<Stored, kStored> stored;

  static __device__ __forceinline__ Elements load(const T* from) {
    return {load_vec<kStored>(reinterpret_cast<const Stored*>(from))};
  }
  __device__ __forceinline__ void values(float (&to)[W]) const {
    if constexpr (kPairs) {
#pragma unroll
      for (int i = 0; i < W; i += 2) widen_pair<T>(stored.v[i / 2], to[i], to[i + 1]);
    } else {
#pragma unroll
      for (int i = 0; i < W; i++) to[i] = widen(stored.v[i]);
    }
  }
};

// Marks the outliers of a run and returns the largest magnitude of its others, or `top`.
template <class T, int W>
BNB_OUT_OF_LINE float mark_outliers(const T* from, float threshold, uint8_t* mask, float top) {
#pragma unroll 1
  for (int i = 0; i < W; i++) {
    const float v = widen(from[i]);
    if (fabsf(v) >= threshold)
      mask[i] = 1;  // all who write here write the same
    else
      top = max_magnitude(top, v);
  }
  return top;
}

// The codes of a row whose scale is unusual: zero, not finite, or too small or large for reciprocal().
template <class T>
BNB_OUT_OF_LINE void encode_rest(const T* from, int8_t* to, int64_t cols, uint32_t top) {
  const RowNorm norm(top, 1.0f / RowNorm::stored(top));
#pragma unroll 1
  for (int64_t col = threadIdx.x; col < cols; col += blockDim.x)
    to[col] = static_cast<int8_t>(norm.any_code(widen(from[col])));
}

template <class T, int W>
__device__ __forceinline__ void store_codes(int8_t* to, const Elements<T, W>& x, float scale) {
  float v[W];
  x.values(v);
  if constexpr (W == 1) {
    to[0] = static_cast<int8_t>(RowNorm::code(v[0] * scale));
  } else {
    Vec<uint32_t, W / 4> words;
#pragma unroll
    for (int i = 0; i < W; i += 4) {
      uint32_t word = 0;  // bytes are pushed in from below, the last first
      for (int k = 3; k >= 0; k--) word = prmt(RowNorm::code(v[i + k] * scale), word, 0x6540);
      words.v[i / 4] = word;
    }
    store_vec(reinterpret_cast<uint32_t*>(to), words);
  }
}

// The largest bit pattern of the team.
__device__ __forceinline__ uint32_t team_top(uint32_t top) {
  BNB_SHARED(uint32_t[kTeam / kWarp], partial);
  top = warp_max(top);
  if (blockDim.x == kWarp) return top;
  const int lane = threadIdx.x % kWarp;
  if (lane == 0) partial[threadIdx.x / kWarp] = top;
  __syncthreads();
  top = warp_max(partial[lane % (kTeam / kWarp)]);
  __syncthreads();
  return top;
}

template <class T, int W>
__global__ void __launch_bounds__(kTeam) quantize_rows_kernel(const T* a, int8_t* codes, float* stats, uint8_t* mask,
                                                              int64_t rows, int64_t cols, float threshold) {
  const int step = static_cast<int>(blockDim.x) * W, mine = static_cast<int>(threadIdx.x) * W;
  const int held_cols = cols < kHeld * step ? static_cast<int>(cols) : kHeld * step;
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    const T* const from = a + row * cols;
    int8_t* const to = codes + row * cols;
    float top = 0.0f;
    const auto scan = [&](const Elements<T, W>& x, int64_t col) {
      float v[W], largest = 0.0f;
      x.values(v);
#pragma unroll
      for (int i = 0; i < W; i++) largest = max_magnitude(largest, v[i]);
      if (mask && !(largest < threshold)) [[unlikely]]
        top = mark_outliers<T, W>(from + col, threshold, mask + col, top);
      else
        top = max_magnitude(top, largest);
    };
    Elements<T, W> held[kHeld];
#pragma unroll
    for (int v = 0; v < kHeld; v++)
      if (mine + v * step < held_cols) held[v] = Elements<T, W>::load(from + mine + v * step);
#pragma unroll
    for (int v = 0; v < kHeld; v++)
      if (mine + v * step < held_cols) scan(held[v], mine + v * step);
#pragma unroll 1
    for (int64_t col = mine + kHeld * step; col < cols; col += step) scan(Elements<T, W>::load(from + col), col);

    const uint32_t bits = team_top(float_bits(top));
    const RowNorm norm(bits, reciprocal(RowNorm::stored(bits)));
    if (threadIdx.x == 0) stats[row] = norm.absmax;
    if (bits - kSmallestNormalBits >= kLargeBits - kSmallestNormalBits || !norm.plain) [[unlikely]] {
      encode_rest(from, to, cols, bits);
      continue;
    }
#pragma unroll
    for (int v = 0; v < kHeld; v++)
      if (mine + v * step < held_cols) store_codes(to + mine + v * step, held[v], norm.scale);
#pragma unroll 1
    for (int64_t col = mine + kHeld * step; col < cols; col += step)
      store_codes(to + col, Elements<T, W>::load(from + col), norm.scale);
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
