// Mean cross entropy of rows of logits against integer targets, and its gradient.
//
// Layout    logits [rows, classes], any alignment; the loss, the count and lse are float32.
// Work      a team of threads per row (rows.cuh): a warp up to 1024 classes (512 of float32), a block above. Forward
// reads each row
//           once, with a running maximum, and leaves the losses of rows in scratch, which one block adds. Backward
//           reads and writes each row once.
// Numerics  float32 per row, always relative to the largest logit, so that large logits keep their digits; each thread
//           adds its elements in order, then a fixed tree. The mean adds the rows in float64 in a fixed order.
// Needs     classes >= 1 wherever a row counts, which a target inside the classes implies.
#include "cuda/rows.cuh"
#include "kernels/cross_entropy.h"

namespace bnb::cuda {
namespace {

constexpr int kFinalThreads = 1024;

template <class A>
__device__ __forceinline__ bool counts(const A& a, int64_t row) {
  return a.targets[row] != a.ignore && a.targets[row] >= 0 && a.targets[row] < a.classes;
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, 2) forward(CrossEntropyArgs a, float* losses, const char* op) {
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    if (!counts(a, r)) {
      if (threadIdx.x == 0) {
        losses[r] = a.lse[2 * r] = a.lse[2 * r + 1] = 0;
        if (a.targets[r] != a.ignore) report_out_of_range(a.fault, op, a.targets[r], a.classes);
      }
      continue;
    }
    const T* x = static_cast<const T*>(a.logits) + r * a.classes;
    TopAndSum stats;
    stream_row(
        x, a.classes,
        [&](const auto& vectors, int, int) {
          stats.add([&](const auto& take) {
#pragma unroll
            for (const auto& vector : vectors) {
#pragma unroll
              for (const T logit : vector.v) take(widen(logit));
            }
          });
        },
        [&](T logit, int) { stats.add([&](const auto& take) { take(widen(logit)); }); });
    stats.join();
    if (threadIdx.x == 0) {
      const float log_sum = logf(stats.sum);
      a.lse[2 * r] = stats.top;
      a.lse[2 * r + 1] = log_sum;
      losses[r] = stats.top - widen(x[a.targets[r]]) + log_sum;
    }
  }
}

// One block.
__global__ void __launch_bounds__(kFinalThreads) mean_loss(CrossEntropyArgs a, const float* losses) {
  double sum = 0;
  int64_t count = 0;
#pragma unroll 4
  for (int64_t r = threadIdx.x; r < a.rows; r += kFinalThreads) {
    const bool has = counts(a, r);
    sum += has ? static_cast<double>(losses[r]) : 0.0;
    count += has;
  }
  sum = block_sum(sum);
  count = block_sum(count);
  if (threadIdx.x == 0) {
    *a.count = static_cast<float>(count);
    *a.loss = static_cast<float>(sum / static_cast<double>(count));
  }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, 1) backward(CrossEntropyBackwardArgs a) {
  const float scale = *a.dloss / *a.count;
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const T* x = static_cast<const T*>(a.logits) + r * a.classes;
    T* dx = static_cast<T*>(a.dlogits) + r * a.classes;
    const bool has = counts(a, r);
    const float top = a.lse[2 * r], log_sum = a.lse[2 * r + 1];
    const int32_t target = a.targets[r];
    Row<T, false> row(a.classes, dx);
    for (int chunk = 0; chunk < row.chunks(); chunk++) {
      typename Row<T, false>::Data logits;
      row.go_to(chunk);
      if (has) row.load(x, logits);
      row.store(dx, [&](int slot) {
        if (!has) return 0.0f;
        const float p = expf(logits[slot] - top - log_sum);
        return (row.element(slot) == target ? p - 1.0f : p) * scale;
      });
    }
  }
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& a, CudaStream& s) {
  float* losses = static_cast<float*>(s.scratch(static_cast<size_t>(a.rows) * sizeof(float)));
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const dim3 block = plan_rows<T>(a.classes).block;
    launch(s, forward<T>, stride_grid(s, a.rows, block.y), block, 0, a, losses, kernels::cross_entropy.name);
  });
  launch(s, mean_loss, dim3(1), dim3(kFinalThreads), 0, a, losses);
}

void cross_entropy_backward(const CrossEntropyBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const dim3 block = plan_rows<T>(a.classes).block;
    launch(s, backward<T>, stride_grid(s, a.rows, block.y), block, 0, a);
  });
}

}  // namespace bnb::cuda
