// g <- g * min(1, limit / (norm + 1e-6)) over a list of gradients, or g <- clamp(g, -limit, limit).
//
// Layout    any number of flat tensors, each of its own dtype and alignment; the list is in device memory.
// Work      a block per chunk of 16 Ki elements: one launch leaves a partial norm per chunk, one block adds those and
//           finds the factor, one launch scales, which is left undone when nothing is to be scaled. The host sees none
//           of it.
// Numerics  squares are added in float64, by thread, by block and by chunk in a fixed order. Eight squares at a time
//           are added in float32 first where that can neither overflow nor lose small ones: consumer cards have one
//           float64 unit for 64 of float32. A NaN anywhere makes the norm NaN.
// Needs     nothing beyond the contract.
#include "cuda/kernel.cuh"
#include "kernels/clip_gradients.h"

namespace bnb::cuda {
namespace {

constexpr int kThreads = 512, kGroup = 8;  // elements of a thread at a time
constexpr int kFinalThreads = 1024;

// NaN wins, as in Max.
struct MaxOfDoubles {
  __device__ __forceinline__ double operator()(double a, double b) const { return a > b || a != a ? a : b; }
};

// Calls f(values, store) for this thread's groups of the chunk, where store() writes the values back. Elements beyond
// the end are zero and not written.
template <class T, class F>
__device__ __forceinline__ void each_group(T* g, int n, const F& f) {
  constexpr int kVec = 16 / sizeof(T) < kGroup ? 16 / sizeof(T) : kGroup;
  const bool aligned = reinterpret_cast<uintptr_t>(g) % 16 == 0;
  for (int i = static_cast<int>(threadIdx.x) * kGroup; i < n; i += kThreads * kGroup) {
    float v[kGroup];
    const bool whole = aligned && i + kGroup <= n;
    if (whole) {
#pragma unroll
      for (int k = 0; k < kGroup; k += kVec) {
        const Vec<T, kVec> raw = load_vec<kVec>(g + i + k);
#pragma unroll
        for (int j = 0; j < kVec; j++) v[k + j] = widen(raw.v[j]);
      }
    } else {
#pragma unroll
      for (int k = 0; k < kGroup; k++) v[k] = i + k < n ? widen(g[i + k]) : 0.0f;
    }
    f(v, [&] {
      if (whole) {
#pragma unroll
        for (int k = 0; k < kGroup; k += kVec) {
          Vec<T, kVec> raw;
#pragma unroll
          for (int j = 0; j < kVec; j++) raw.v[j] = narrow<T>(v[k + j]);
          store_vec(g + i + k, raw);
        }
      } else {
#pragma unroll
        for (int k = 0; k < kGroup; k++) {
          if (i + k < n) g[i + k] = narrow<T>(v[k]);
        }
      }
    });
  }
}

// The same for chunk blockIdx.x of the list.
template <class F>
__device__ __forceinline__ void each_group_of_chunk(const ClipGradientsArgs& a, int64_t chunk, const F& f) {
  int64_t low = 0, high = a.job_count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.jobs[middle].first_chunk <= chunk ? low : high) = middle;
  }
  const ClipJob job = a.jobs[low];
  const int64_t at = (chunk - job.first_chunk) * kClipChunk, left = job.n - at;
  const int n = left < kClipChunk ? static_cast<int>(left) : kClipChunk;
  if (job.dtype == DType::float32) {
    each_group(static_cast<float*>(job.g) + at, n, f);
  } else if (job.dtype == DType::float16) {
    each_group(static_cast<f16*>(job.g) + at, n, f);
  } else {
    each_group(static_cast<bf16*>(job.g) + at, n, f);
  }
}

__device__ __forceinline__ double sum_of_squares(const float (&v)[kGroup]) {
  float most = 0, squares = 0;
#pragma unroll
  for (int k = 0; k < kGroup; k++) {
    most = fmaxf(most, fabsf(v[k]));  // passes over a NaN, which then is in the sum
    squares = fmaf(v[k], v[k], squares);
  }
  if (most == 0 || (most >= 0x1p-50f && most <= 0x1p50f)) return static_cast<double>(squares);
  double exact = 0;
#pragma unroll
  for (int k = 0; k < kGroup; k++) exact += static_cast<double>(v[k]) * static_cast<double>(v[k]);
  return exact;
}

__global__ void __launch_bounds__(kThreads) chunk_norms(ClipGradientsArgs a) {
  for (int64_t chunk = blockIdx.x; chunk < a.chunk_count; chunk += gridDim.x) {
    double result = 0;
    if (a.rule == ClipRule::norm2) {
      each_group_of_chunk(a, chunk, [&](const auto& v, const auto&) { result += sum_of_squares(v); });
      result = block_sum(result);
    } else {
      float most = 0;
      each_group_of_chunk(a, chunk, [&](const auto& v, const auto&) {
#pragma unroll
        for (int k = 0; k < kGroup; k++) most = Max{}(fabsf(v[k]), most);
      });
      result = block_reduce(static_cast<double>(most), MaxOfDoubles{}, 0.0);
    }
    if (threadIdx.x == 0) a.partials[chunk] = result;
  }
}

// One block.
__global__ void __launch_bounds__(kFinalThreads) join_norms(ClipGradientsArgs a, double* factor) {
  double total = 0;
  const bool adds = a.rule == ClipRule::norm2;
#pragma unroll 4
  for (int64_t chunk = threadIdx.x; chunk < a.chunk_count; chunk += kFinalThreads) {
    const double x = a.partials[chunk];
    total = adds ? total + x : MaxOfDoubles{}(total, x);
  }
  total = adds ? sqrt(block_sum(total)) : block_reduce(total, MaxOfDoubles{}, 0.0);
  if (threadIdx.x == 0) {
    *a.norm = static_cast<float>(total);
    *factor = static_cast<double>(a.limit) / (total + 1e-6);
  }
}

__global__ void __launch_bounds__(kThreads) scale(ClipGradientsArgs a, const double* factor) {
  if (*factor >= 1) return;
  const float by = static_cast<float>(*factor);
  for (int64_t chunk = blockIdx.x; chunk < a.chunk_count; chunk += gridDim.x) {
    each_group_of_chunk(a, chunk, [&](auto& v, const auto& store) {
#pragma unroll
      for (int k = 0; k < kGroup; k++) v[k] *= by;
      store();
    });
  }
}

__global__ void __launch_bounds__(kThreads) clamp(ClipGradientsArgs a) {
  for (int64_t chunk = blockIdx.x; chunk < a.chunk_count; chunk += gridDim.x) {
    each_group_of_chunk(a, chunk, [&](auto& v, const auto& store) {
#pragma unroll
      // Comparisons are false for NaN, which therefore stays.
      for (int k = 0; k < kGroup; k++) v[k] = a.limit < v[k] ? a.limit : v[k] < -a.limit ? -a.limit : v[k];
      store();
    });
  }
}

}  // namespace

void clip_gradients(const ClipGradientsArgs& a, CudaStream& s) {
  const dim3 grid = stride_grid(s, a.chunk_count, 1), block(kThreads);
  if (a.rule == ClipRule::value) return launch(s, clamp, grid, block, 0, a);
  double* factor = static_cast<double*>(s.scratch(sizeof(double)));
  launch(s, chunk_norms, grid, block, 0, a);
  launch(s, join_norms, dim3(1), dim3(kFinalThreads), 0, a, factor);
  launch(s, scale, grid, block, 0, a, factor);
}

}  // namespace bnb::cuda
