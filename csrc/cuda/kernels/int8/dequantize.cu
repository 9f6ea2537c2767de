// From int8 codes and from int32 products back to floats.
//
// Layout    y [rows, cols] = codes [table_rows, cols] * stats [table_rows] / 127, or
//           y [m, n] = c [m, n] * row_stats [m] * col_stats [n] / 127^2 + bias [n].
// Work      a row has a power of two of threads, each with runs of W elements; short rows share a thread block.
// Numerics  float32 in the order of the CPU's kernels, one rounding to the type of y: the same bits. An id outside the
//           table reports a fault, and its row is not written.
// Needs     Vectors where rows are whole runs and aligned; otherwise single elements.
#include "cuda/kernels/matmul/output.cuh"
#include "cuda/map.cuh"
#include "cuda/rows.cuh"
#include "kernels/int8.h"

namespace bnb::cuda {
namespace {

// float32(1 / 127^2) and float32(1 / 127)
constexpr float kInv127Squared = 0x1.040c2p-14f;
constexpr float kInv127 = 0x1.020408p-7f;

constexpr int kThreads = 256;

// Blocks for rows of `runs` runs.
dim3 row_block(int64_t runs) {
  unsigned x = 1;
  while (x < kThreads && x < runs) x *= 2;
  return dim3(x, kThreads / x);
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    dequantize_rows_kernel(const int8_t* codes, const float* stats, const int32_t* ids, T* y, int64_t rows,
                           int64_t cols, int64_t table_rows, Fault* fault, const char* op) {
  for (int64_t i = first_row(); i < rows; i += row_step()) {
    const int64_t row = ids ? ids[i] : i;
    if (row < 0 || row >= table_rows) {
      if (threadIdx.x == 0) report_out_of_range(fault, op, row, table_rows);
      continue;
    }
    const float stat = stats[row];
    for (int64_t col = static_cast<int64_t>(threadIdx.x) * W; col < cols; col += static_cast<int64_t>(blockDim.x) * W) {
      int8_t q[W];
      load_run(codes + row * cols + col, W, true, q);
      float v[W];
#pragma unroll
      for (int j = 0; j < W; j++) v[j] = static_cast<float>(q[j]) * stat * kInv127;
      store_floats(y + i * cols + col, W, true, v);
    }
  }
}

template <class T, int W>
void dequantize_rows_with(const Int8DequantizeRowsArgs& a, CudaStream& s) {
  const dim3 block = row_block(a.cols / W);
  launch(s, dequantize_rows_kernel<T, W>, stride_grid(s, a.rows, block.y), block, 0, a.codes, a.stats, a.ids,
         static_cast<T*>(a.y), a.rows, a.cols, a.table_rows, a.fault, "int8_dequantize_rows");
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    dequantize_product_kernel(const int32_t* c, const float* row_stats, const float* col_stats, const void* bias, T* y,
                              int64_t m, int64_t n, DType bias_dtype) {
  for (int64_t i = first_row(); i < m; i += row_step()) {
    const float row_stat = row_stats[i];
    for (int64_t col = static_cast<int64_t>(threadIdx.x) * W; col < n; col += static_cast<int64_t>(blockDim.x) * W) {
      const Vec<int32_t, W> sums = load_vec<W>(c + i * n + col);
      const Vec<float, W> scales = load_vec<W>(col_stats + col);
      float v[W];
#pragma unroll
      for (int j = 0; j < W; j++) {
        v[j] = static_cast<float>(sums.v[j]) * row_stat * scales.v[j] * kInv127Squared;
        if (bias) v[j] += load_float(bias, col + j, bias_dtype);
      }
      store_floats(y + i * n + col, W, true, v);
    }
  }
}

template <class T, int W>
void dequantize_product_with(const Int8DequantizeProductArgs& a, CudaStream& s) {
  const dim3 block = row_block(a.n / W);
  launch(s, dequantize_product_kernel<T, W>, stride_grid(s, a.m, block.y), block, 0, a.c, a.row_stats, a.col_stats,
         a.bias, static_cast<T*>(a.y), a.m, a.n, a.bias_dtype);
}

}  // namespace

void int8_dequantize_rows(const Int8DequantizeRowsArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int W = kVector<T>;
    if (a.cols % W == 0 && aligned_for(W, a.codes) && aligned_for(16, static_cast<const T*>(a.y)))
      dequantize_rows_with<T, W>(a, s);
    else
      dequantize_rows_with<T, 1>(a, s);
  });
}

void int8_dequantize_product(const Int8DequantizeProductArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int W = 4;
    if (a.n % W == 0 && aligned_for(16, a.c, a.col_stats) && aligned_for(W * sizeof(T), static_cast<const T*>(a.y)))
      dequantize_product_with<T, W>(a, s);
    else
      dequantize_product_with<T, 1>(a, s);
  });
}

}  // namespace bnb::cuda
