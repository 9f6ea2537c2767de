// What the kernels of attention in float32 arithmetic share: rows that a block owns against others, 32 at a time.
#pragma once
#include <type_traits>

#include "core/error.h"
#include "cuda/kernel.cuh"
#include "kernels/score_rule.h"

namespace bnb::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kSlice = 64;  // of the head size
constexpr float kNothing = -__builtin_inff();

// Elements as float32: of one dtype, or of one that is looked at each time.
template <class T>
struct Elements {
  const T* data;
  __device__ __forceinline__ float operator[](int64_t i) const {
    if constexpr (std::is_same_v<T, int8_t>) {
      return static_cast<float>(data[i]);
    } else {
      return widen(data[i]);
    }
  }
};
struct AnyElements {
  const void* data;
  DType dtype;
  __device__ __forceinline__ float operator[](int64_t i) const {
    if (dtype == DType::float32) return static_cast<const float*>(data)[i];
    if (dtype == DType::float16) return widen(static_cast<const f16*>(data)[i]);
    return widen(static_cast<const bf16*>(data)[i]);
  }
};

// Rows, own ones and others, that the dot products are taken of. Offsets are in elements; -1 is a row of zeros.
template <int kRows>
struct Stage {
  static constexpr int kOwn = kWarps * kRows;
  int64_t own_at[kOwn];
  int64_t other_at[kWarp];
  float own[kOwn][kSlice];
  float other[kWarp][kSlice + 1];
  float weight[2][kWarps][kWarp][kRows];
};

template <class From>
__device__ __forceinline__ void stage_row(const From& from, int64_t at, int64_t d0, int64_t dim, float* to) {
  for (int i = threadIdx.x % kWarp; i < kSlice; i += kWarp) to[i] = at >= 0 && d0 + i < dim ? from[at + d0 + i] : 0.0f;
}

// dot[i] = own row i of this warp times the other row of this lane. The whole block calls it.
template <int kRows, class Own, class Other>
__device__ __forceinline__ void dots(Stage<kRows>& stage, const Own& own, const Other& other, int64_t dim,
                                     float (&dot)[kRows]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int i = 0; i < kRows; i++) dot[i] = 0;
  for (int64_t d0 = 0; d0 < dim; d0 += kSlice) {
    __syncthreads();
    for (int i = 0; i < kRows; i++) {
      const int row = warp * kRows + i;
      stage_row(own, stage.own_at[row], d0, dim, stage.own[row]);
    }
    for (int row = warp; row < kWarp; row += kWarps) stage_row(other, stage.other_at[row], d0, dim, stage.other[row]);
    __syncthreads();
    const int n = static_cast<int>(min(dim - d0, int64_t{kSlice}));
#pragma unroll 8
    for (int d = 0; d < n; d++) {
      const float x = stage.other[lane][d];
#pragma unroll
      for (int i = 0; i < kRows; i++) dot[i] = fmaf(stage.own[warp * kRows + i][d], x, dot[i]);
    }
  }
}

// sums[i, :] = sums[i, :] * factor[i] + sum over the first n others of weight * row.
template <int kRows, class Other>
__device__ __forceinline__ void accumulate(const Stage<kRows>& stage, const float (&weight)[kWarp][kRows],
                                           const Other& other, int n, int64_t dim, const float (&factor)[kRows],
                                           float* sums) {
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) {
    float sum[kRows];
#pragma unroll
    for (int i = 0; i < kRows; i++) sum[i] = sums[i * dim + d] * factor[i];
#pragma unroll 4
    for (int j = 0; j < n; j++) {
      const float x = other[stage.other_at[j] + d];
#pragma unroll
      for (int i = 0; i < kRows; i++) sum[i] = fmaf(weight[j][i], x, sum[i]);
    }
#pragma unroll
    for (int i = 0; i < kRows; i++) sums[i * dim + d] = sum[i];
  }
}

template <int kRows>
__device__ __forceinline__ void clear(float* sums, int64_t dim) {
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp)
    for (int i = 0; i < kRows; i++) sums[i * dim + d] = 0;
}

// With nothing but -inf so far, any finite shift keeps the exponentials 0.
__device__ __forceinline__ float finite_shift(float top) { return top == kNothing ? 0.0f : top; }

// The online softmax of one row, a key per lane: gives this lane's weight, and in `factor` what earlier sums follow by.
__device__ __forceinline__ float fold_score(float score, bool sees, float& top, float& sum, float& factor) {
  const float x = sees ? score : kNothing, before = top;
  top = fmaxf(before, warp_reduce(x, [](float u, float v) { return fmaxf(u, v); }));
  const float shift = finite_shift(top), e = sees ? expf(x - shift) : 0.0f;
  factor = before == kNothing ? 1.0f : expf(before - shift);
  sum = sum * factor + warp_sum(e);
  return e;
}

// A sink joins the sum of a row: sums follow by the factor that comes back.
__device__ __forceinline__ float add_sink(float sink, float& top, float& sum) {
  const float high = fmaxf(sink, top), factor = expf(top - finite_shift(high));
  sum = sum * factor + expf(sink - finite_shift(high));
  top = high;
  return factor;
}

// A scaled score under the rule's softcap, and what its gradient is multiplied by.
__device__ __forceinline__ float capped(const ScoreRule& rule, float score, float& slope) {
  slope = 1.0f;
  if (rule.softcap <= 0) return score;
  const float bent = tanhf(score / rule.softcap);
  slope = fmaf(-bent, bent, 1.0f);
  return rule.softcap * bent;
}

// Calls f(number of rows per warp) with `most` (4 or 1), or 1 where the results of 4 do not fit: `sets` results per
// row.
template <class F>
void choose_rows(const char* op, int64_t dim, int64_t sets, int most, const CudaStream& s, const F& f) {
  const int64_t row = sets * dim * kWarps * static_cast<int64_t>(sizeof(float));
  const auto fits = [&](int64_t rows, size_t stage) {
    return rows * row + static_cast<int64_t>(stage) <= s.gpu.shared_per_block;
  };
  if (most == 4 && fits(4, sizeof(Stage<4>))) {
    f(std::integral_constant<int, 4>{}, static_cast<size_t>(4 * row));
  } else if (fits(1, sizeof(Stage<1>))) {
    f(std::integral_constant<int, 1>{}, static_cast<size_t>(row));
  } else {
    fail(Code::unsupported, op, "a head of ", dim, " elements does not fit into the shared memory of this GPU");
  }
}

}  // namespace
}  // namespace bnb::cuda
