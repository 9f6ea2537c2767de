// c = a * b (+ bias) (+ c) in float32, for any types, transposes and sizes.
//
// Layout    a is [m, k] or [k, m], b [k, n] or [n, k], each row-major without padding; 16-bit elements are widened as
//           they are loaded.
// Work      tiles: a block owns 128 x 128 of c, or 64 x 64 where that gives every multiprocessor work; a thread owns
//           8 x 8 or 4 x 4 sums, and the next step of the sum is fetched while this one is computed. rows: up to
//           eight rows of c against b [n, k]: one warp per column and four rows, so that b is streamed once.
// Numerics  tiles add the products in order of k with one fmaf each; rows add 32 interleaved sums in a fixed tree.
//           bias and c are added in float32; one rounding to the type of c.
// Needs     nothing: vectors of four are used where the addresses allow.
#include <type_traits>

#include "cuda/kernels/matmul/matmul.h"
#include "cuda/kernels/matmul/simt_tile.cuh"

namespace bnb::cuda {
namespace {

constexpr int kWarps = static_cast<int>(kMatmulRowsPerBlock);

// R rows of c, one column per warp.
template <int R, class A, class B>
__global__ void __launch_bounds__(kWarps * 32, R == 1 ? 4 : 2)
    rows_kernel(A a, B b, Output out, int64_t k, int64_t blocks_n, int64_t groups_m) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t block = blockIdx.x, col = block % blocks_n * kWarps + warp;
  const int64_t row0 = block / blocks_n % groups_m * R, batch = block / blocks_n / groups_m;
  float sums[R];
#pragma unroll
  for (int r = 0; r < R; r++) sums[r] = 0.0f;
  // A column beyond the last reads nothing, but takes part in the sums of its warp.
  const bool exists = col < b.rows;
  const int64_t from_b = batch * b.stride + col * b.cols, from_a = batch * a.stride + row0 * a.cols;
  int64_t p = 4 * lane;
  if (exists && a.vectors && b.vectors) {
    // Four loads under way before the first is used.
    constexpr int kStep = 4 * kWarp;
    for (; p + 3 * kStep + 4 <= k; p += 4 * kStep) {
      float w[4][4];
#pragma unroll
      for (int u = 0; u < 4; u++) b.four(from_b + p + u * kStep, p, w[u]);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const int64_t row = row0 + r < a.rows ? r : 0;  // sums of rows that do not exist are dropped
#pragma unroll
        for (int u = 0; u < 4; u++) {
          float x[4];
          a.four(from_a + row * k + p + u * kStep, p, x);
#pragma unroll
          for (int i = 0; i < 4; i++) sums[r] = fmaf(x[i], w[u][i], sums[r]);
        }
      }
    }
  }
  for (; p < k; p += 4 * kWarp) {
    float w[4];
    const int count = up_to_four(k - p);
    fetch_four(b, from_b + p, p, exists ? count : 0, w);
#pragma unroll
    for (int r = 0; r < R; r++) {
      float x[4];
      fetch_four(a, from_a + r * k + p, p, row0 + r < a.rows ? count : 0, x);
#pragma unroll
      for (int i = 0; i < 4; i++) sums[r] = fmaf(x[i], w[i], sums[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < R; r++) {
    const float one[1] = {warp_sum(sums[r])};
    if (lane == r % kWarp) out.put<1>(batch, row0 + r, col, one);
  }
}

template <class A, class B>
void run(const MatmulArgs& x, const A& a, const B& b, const MatmulPlan& plan, CudaStream& s) {
  const Output out = output_of(x);
  if (plan.tile != MatmulTile::rows)
    return launch_simt_tiles(plan.tile, a, !x.transpose_a, b, x.transpose_b, out, x.k, plan.blocks, s);
  const auto rows = [&](auto kernel, int64_t group) {
    const int64_t blocks_n = ceil_div(x.n, kWarps), groups = ceil_div(x.m, group);
    launch(s, kernel, grid_of(blocks_n * groups * x.batch), dim3(kWarps * 32), 0, a, b, out, x.k, blocks_n, groups);
  };
  static_assert(kMatmulRowGroup == 4);
  // The plan sends mixed types to tiles.
  if constexpr (!std::is_same_v<A, AnyOperand>)
    x.m == 1 ? rows(rows_kernel<1, A, B>, 1) : rows(rows_kernel<4, A, B>, 4);
}

}  // namespace

void matmul_simt(const MatmulArgs& x, const MatmulPlan& plan, CudaStream& s) {
  const int64_t rows_a = x.transpose_a ? x.k : x.m, cols_a = x.transpose_a ? x.m : x.k;
  const int64_t rows_b = x.transpose_b ? x.n : x.k, cols_b = x.transpose_b ? x.k : x.n;
  if (x.dtype_a != x.dtype_b) {
    const AnyOperand a = {x.a, rows_a, cols_a, x.stride_a, x.dtype_a};
    const AnyOperand b = {x.b, rows_b, cols_b, x.stride_b, x.dtype_b};
    return run(x, a, b, plan, s);
  }
  visit_float(x.dtype_a, [&](auto t) {
    using T = decltype(t);
    const auto operand = [&](const void* data, int64_t rows, int64_t cols, int64_t stride) {
      const bool vectors = cols % 4 == 0 && stride % 4 == 0 && aligned_for(4 * sizeof(T), data);
      return FloatOperand<T>{static_cast<const T*>(data), rows, cols, stride, vectors};
    };
    run(x, operand(x.a, rows_a, cols_a, x.stride_a), operand(x.b, rows_b, cols_b, x.stride_b), plan, s);
  });
}

}  // namespace bnb::cuda
