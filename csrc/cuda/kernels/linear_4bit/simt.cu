// y = x dequantize(w)^T + bias and dx = dy dequantize(w) in float32 arithmetic, for any types, shapes and alignment.
//
// Layout    row i of w covers weights [i k, (i + 1) k) of the flattened tensor, wherever blocks and bytes begin.
// Work      forward: a warp per column of y and eight rows of x; where rows of w are multiples of 8 weights a lane
//           takes 8 of them at a time, elsewhere one. Backward: a block per 64 columns of dx and eight rows of dy; its
//           warps take every eighth row of w and meet in shared memory.
// Numerics  weights are fl(table * scale), one fmaf per product, lanes and warps added in a fixed tree; one rounding.
// Needs     nothing.
#include "cuda/kernels/linear_4bit/common.cuh"
#include "cuda/kernels/linear_4bit/repair.cuh"
#include "cuda/load_run.cuh"

namespace bnb::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kRows = 8;      // of x, together
constexpr int kGroup = 8;     // weights of a lane's step
constexpr int kColumns = 64;  // of dx, of a block

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(const T* x, WeightView w, ProductOut out, int64_t m, int64_t k, bool vectors, const int32_t* flags) {
  BNB_SHARED(Values4bitTable, table);
  if (!wanted(flags)) return;
  table.load(w.type);
  __syncthreads();
  const uint32_t lane = threadIdx.x % kWarp;
  const int64_t columns = ceil_div(out.n, kWarps), items = columns * ceil_div(m, kRows);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t n = item % columns * kWarps + threadIdx.x / kWarp, row0 = item / columns * kRows;
    const int rows = static_cast<int>(m - row0 < kRows ? m - row0 : kRows);
    float sums[kRows] = {};
    const int64_t first = n * k;  // of the flattened weights
    const bool exists = n < out.n;
    const T* const from = x + row0 * k;
    if (exists && vectors) {
      for (int64_t p = int64_t{lane} * kGroup; p < k; p += kWarp * kGroup) {
        const Vec<uint8_t, 4> bytes = load_vec<4>(w.packed + (first + p) / 2);
        const float scale = w.scale(first + p);
        float v[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; i += 2) {
          v[i] = table.at(bytes.v[i / 2] >> 4, lane) * scale;
          v[i + 1] = table.at(bytes.v[i / 2] & 15, lane) * scale;
        }
#pragma unroll
        for (int r = 0; r < kRows; r++) {
          if (r >= rows) break;
          float u[kGroup];
          load_run(from + r * k + p, u);
#pragma unroll
          for (int i = 0; i < kGroup; i++) sums[r] = fmaf(v[i], u[i], sums[r]);
        }
      }
    } else if (exists) {
      for (int64_t p = lane; p < k; p += kWarp) {
        const int64_t at = first + p;
        const uint32_t byte = w.packed[at / 2];
        const float v = table.at(at % 2 ? byte & 15 : byte >> 4, lane) * w.scale(at);
#pragma unroll
        for (int r = 0; r < kRows; r++)
          if (r < rows) sums[r] = fmaf(v, widen(from[r * k + p]), sums[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      const float sum = warp_sum(sums[r]);
      if (exists && r < rows && static_cast<int>(lane) == r) out.store(row0 + r, n, sum);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const T* dy, WeightView w, T* dx, int64_t m, int64_t n, int64_t k, const int32_t* flags) {
  BNB_SHARED(Values4bitTable, table);
  BNB_SHARED(float[kWarps][kColumns], part);
  if (!wanted(flags)) return;
  table.load(w.type);
  __syncthreads();
  const uint32_t lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t strips = ceil_div(k, kColumns), items = strips * ceil_div(m, kRows);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t row0 = item / strips * kRows, column0 = item % strips * kColumns;
    const int rows = static_cast<int>(m - row0 < kRows ? m - row0 : kRows);
    float sums[2][kRows] = {};
    const T* const from = dy + row0 * n;
    for (int64_t i = warp; i < n; i += kWarps) {
      float g[kRows];
#pragma unroll
      for (int r = 0; r < kRows; r++) g[r] = r < rows ? widen(from[r * n + i]) : 0.0f;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int64_t column = column0 + half * kWarp + lane, at = i * k + column;
        if (column >= k) continue;
        const uint32_t byte = w.packed[at / 2];
        const float v = table.at(at % 2 ? byte & 15 : byte >> 4, lane) * w.scale(at);
#pragma unroll
        for (int r = 0; r < kRows; r++) sums[half][r] = fmaf(v, g[r], sums[half][r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      part[warp][lane] = sums[0][r];
      part[warp][kWarp + lane] = sums[1][r];
      __syncthreads();
      const int64_t column = column0 + threadIdx.x;
      if (threadIdx.x < kColumns && r < rows && column < k) {
        float sum = 0;
#pragma unroll
        for (int j = 0; j < kWarps; j++) sum += part[j][threadIdx.x];
        dx[(row0 + r) * k + column] = narrow<T>(sum);
      }
      __syncthreads();
    }
  }
}

__global__ void __launch_bounds__(kThreads) check_kernel(WeightView w, int64_t blocks, int32_t* flags) {
  BNB_SHARED(int32_t[kWarps], found);
  bool large = false;
  for (int64_t i = global_thread(); i < blocks; i += global_threads())
    large |= fabsf(w.scale(i << w.shift)) > kLargestHalf;
  const bool any = __any_sync(kFullMask, large);
  if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = any;
  __syncthreads();
  if (threadIdx.x != 0) return;
  int32_t flag = 0;
  for (int i = 0; i < kWarps; i++) flag |= found[i];
  flags[blockIdx.x] = flag;
}

}  // namespace

void linear_4bit_simt(const Linear4BitArgs& a, const int32_t* flags, CudaStream& s) {
  const ProductOut out = {a.y, a.bias, a.n, a.y_dtype, a.bias_dtype, a.residual};
  const bool vectors = a.k % kGroup == 0 && aligned_for(4, a.w.packed) && aligned_for(16, a.x);
  const int64_t items = ceil_div(a.n, kWarps) * ceil_div(a.m, kRows);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    launch(s, forward_kernel<T>, stride_grid(s, items, 1), dim3(kThreads), 0, static_cast<const T*>(a.x), view_of(a.w),
           out, a.m, a.k, vectors, flags);
  });
}

void linear_4bit_backward_simt(const Linear4BitBackwardArgs& a, const int32_t* flags, CudaStream& s) {
  const int64_t items = ceil_div(a.k, kColumns) * ceil_div(a.m, kRows);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    launch(s, backward_kernel<T>, stride_grid(s, items, 1), dim3(kThreads), 0, static_cast<const T*>(a.dy),
           view_of(a.w), static_cast<T*>(a.dx), a.m, a.n, a.k, flags);
  });
}

void check_scales(const Weight4Bit& w, int64_t weights, int32_t* flags, CudaStream& s) {
  launch(s, check_kernel, dim3(kScaleFlags), dim3(kThreads), 0, view_of(w), ceil_div(weights, w.blocksize), flags);
}

}  // namespace bnb::cuda
