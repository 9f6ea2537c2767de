// The router of a mixture of experts.
//
// Layout    rows of logits, contiguous; any number of columns and any alignment.
// Work      a warp per row. It goes over the row for the softmax, then once for each choice, and computes the shares
// anew
//           each time: a row is a few hundred logits, which stay in the first cache.
// Numerics  float32; lanes add their logits in order, then a fixed tree. Shares that are divided by their sum are the
//           softmax of the chosen logits alone, and that is how their gradient is taken.
// Needs     k <= n.
#include "cuda/kernel.cuh"
#include "kernels/choose_experts.h"

namespace bnb::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;

// The softmax of a row, an element at a time.
template <class T>
struct RowSoftmax {
  const T* x;
  float top, factor;

  __device__ __forceinline__ RowSoftmax(const T* row, int64_t n) : x(row) {
    const int lane = threadIdx.x % kWarp;
    top = -HUGE_VALF;
    for (int64_t i = lane; i < n; i += kWarp) top = Max{}(top, widen(x[i]));
    top = warp_reduce(top, Max{});
    float sum = 0;
    for (int64_t i = lane; i < n; i += kWarp) sum += expf(widen(x[i]) - top);
    factor = 1.0f / warp_sum(sum);
  }
  __device__ __forceinline__ float at(int64_t i) const { return expf(widen(x[i]) - top) * factor; }
};

__device__ __forceinline__ int64_t first_warp() { return global_thread() / kWarp; }
__device__ __forceinline__ int64_t all_warps() { return global_threads() / kWarp; }

template <class T>
__global__ void __launch_bounds__(kThreads) choose_kernel(ChooseExpertsArgs a) {
  const int lane = threadIdx.x % kWarp;
  const auto n = static_cast<int32_t>(a.n);
  for (int64_t r = first_warp(); r < a.rows; r += all_warps()) {
    const RowSoftmax<T> row(static_cast<const T*>(a.logits) + r * a.n, a.n);
    float last = 0, sum = 0;
    int32_t last_at = -1;
    for (int64_t j = 0; j < a.k; j++) {
      // The first of those that come after the last choice; beyond the row stands a NaN, which comes after all.
      float best = NAN;
      int32_t at = n;
      for (int32_t i = lane; i < n; i += kWarp) {
        const float share = row.at(i);
        if (j > 0 && !comes_before(last, last_at, share, i)) continue;
        if (!comes_before(share, i, best, at)) continue;
        best = share;
        at = i;
      }
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const float other = __shfl_xor_sync(kFullMask, best, offset);
        const int32_t other_at = __shfl_xor_sync(kFullMask, at, offset);
        if (!comes_before(other, other_at, best, at)) continue;
        best = other;
        at = other_at;
      }
      if (lane == 0) {
        a.shares[r * a.k + j] = best;
        a.experts[r * a.k + j] = at;
      }
      sum += best;
      last = best;
      last_at = at;
    }
    if (!a.normalize) continue;
    __syncwarp();
    for (int64_t j = lane; j < a.k; j += kWarp) a.shares[r * a.k + j] /= sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) choose_backward_kernel(ChooseExpertsBackwardArgs a) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t r = first_warp(); r < a.rows; r += all_warps()) {
    const float *d = a.dshares + r * a.k, *shares = a.shares + r * a.k;
    const int32_t* experts = a.experts + r * a.k;
    T* dx = static_cast<T*>(a.dlogits) + r * a.n;
    float mean = 0;
    for (int64_t j = lane; j < a.k; j += kWarp) mean = fmaf(d[j], shares[j], mean);
    mean = warp_sum(mean);
    if (a.normalize) {
      for (int64_t i = lane; i < a.n; i += kWarp) dx[i] = T{};
    } else {
      const RowSoftmax<T> row(static_cast<const T*>(a.logits) + r * a.n, a.n);
      for (int64_t i = lane; i < a.n; i += kWarp) dx[i] = narrow<T>(-row.at(i) * mean);
    }
    __syncwarp();
    for (int64_t j = lane; j < a.k; j += kWarp)
      if (experts[j] >= 0 && experts[j] < a.n) dx[experts[j]] = narrow<T>(shares[j] * (d[j] - mean));
  }
}

}  // namespace

void choose_experts(const ChooseExpertsArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    launch(s, choose_kernel<decltype(t)>, stride_grid(s, a.rows, kWarps), dim3(kThreads), 0, a);
  });
}

void choose_experts_backward(const ChooseExpertsBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    launch(s, choose_backward_kernel<decltype(t)>, stride_grid(s, a.rows, kWarps), dim3(kThreads), 0, a);
  });
}

}  // namespace bnb::cuda
