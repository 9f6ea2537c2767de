// What stands around the draws of tokens: logits adjusted before, probabilities and counts after.
//
// Layout    logits [rows, n]; y float32. Adjusting goes by parts of 4096 elements, a block for each.
// Work      adjusting: one pass; an entry of the biases belongs to the first thread of its id, which adds all of them
//           in their order. Reporting: a block a row, a pass for the largest, one for the sum, one more for each of
//           the best.
// Numerics  float32; sums in a fixed tree.
// Needs     what the contract says.
#include "cuda/kernel.cuh"
#include "kernels/sample_token.h"
#include "kernels/sample_tokens.h"

namespace bnb::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kPart = 8 * kThreads;

template <class T>
__global__ void __launch_bounds__(kThreads, 2) adjust_kernel(SampleAdjustArgs a, int parts, const char* op) {
  const int64_t row = blockIdx.x / parts, begin = int64_t{blockIdx.x} % parts * kPart;
  const int64_t end = min(begin + kPart, a.n);
  const T* x = static_cast<const T*>(a.logits) + row * a.n;
  float* y = a.y + row * a.n;
  const int32_t* counts = counts_of(a.counts, row, a.n);
  const uint32_t* mask = a.mask ? a.mask + row * ((a.n + 31) / 32) : nullptr;
  const auto is_allowed = [&](int64_t i) { return !mask || (mask[i / 32] >> (i % 32) & 1); };
#pragma unroll 1
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float v = widen(x[i]);
    if (counts) v = sample_penalized(v, counts[i], a.repetition[row], a.presence[row], a.frequency[row]);
    y[i] = is_allowed(i) ? v : -HUGE_VALF;
  }
  __syncthreads();
  const BiasRange biases = biases_of(a, row);
#pragma unroll 1
  for (int64_t e = biases.begin + threadIdx.x; e < biases.end; e += kThreads) {
    const int32_t id = a.bias_ids[e];
    if (id < 0 || id >= a.n) report_out_of_range(a.fault, op, id, a.n);
    if (id < begin || id >= end) continue;
    bool is_first = true;
    for (int64_t other = biases.begin; is_first && other < e; other++) is_first = a.bias_ids[other] != id;
    if (!is_first) continue;
    float v = y[id];
    for (int64_t other = e; other < biases.end; other++)
      if (a.bias_ids[other] == id) v += a.bias_values[other];
    y[id] = is_allowed(id) ? v : -HUGE_VALF;
  }
}

struct Largest {
  __device__ __forceinline__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) report_kernel(SampleReportArgs a) {
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.logits) + row * a.n;
  // The largest below `bound`: key, and the complement of the index. Zero where there is none.
  const auto largest_below = [&](uint64_t bound) {
    uint64_t best = 0;
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < a.n; i += kThreads) {
      const uint64_t mine = static_cast<uint64_t>(sample_key(widen(x[i]))) << 32 | ~static_cast<uint32_t>(i);
      if (mine < bound) best = Largest{}(best, mine);
    }
    return block_reduce(best, Largest{}, uint64_t{0});
  };
  uint64_t best = largest_below(~uint64_t{0});
  const float top = sample_logit(static_cast<uint32_t>(best >> 32));
  float sum = 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; top > -HUGE_VALF && i < a.n; i += kThreads) sum += expf(widen(x[i]) - top);
  sum = block_sum(sum);
  const float total = top > -HUGE_VALF ? top + logf(sum) : top;
  if (threadIdx.x == 0) {
    const int32_t drawn = a.drawn[row];
    a.logprobs[row] = drawn < 0 ? NAN : widen(x[drawn]) - total;
  }
#pragma unroll 1
  for (int64_t k = 0; k < a.best; k++) {
    if (threadIdx.x == 0) {
      a.best_ids[row * a.best + k] = best > 0 ? static_cast<int32_t>(~static_cast<uint32_t>(best)) : -1;
      a.best_logprobs[row * a.best + k] =
          best > 0 ? sample_logit(static_cast<uint32_t>(best >> 32)) - total : -HUGE_VALF;
    }
    if (best > 0) best = largest_below(best);
  }
}

// Rows may share a row of counts, so one thread does it all.
__global__ void count_kernel(SampleReportArgs a) {
  if (threadIdx.x > 0) return;
  for (int64_t row = 0; row < a.rows; row++) {
    int32_t* counts = counts_of(a.counts, row, a.n);
    if (counts && a.drawn[row] >= 0) counts[a.drawn[row]]++;
  }
}

}  // namespace

void sample_adjust(const SampleAdjustArgs& a, CudaStream& s) {
  const int64_t parts = ceil_div(a.n, kPart);
  visit_float(a.dtype, [&](auto t) {
    launch(s, adjust_kernel<decltype(t)>, dim3(static_cast<unsigned>(a.rows * parts)), dim3(kThreads), 0, a,
           static_cast<int>(parts), kernels::sample_adjust.name);
  });
}

void sample_report(const SampleReportArgs& a, CudaStream& s) {
  if (a.counts.table) launch(s, count_kernel, dim3(1), dim3(kWarp), 0, a);
  if (!a.logprobs) return;
  visit_float(a.dtype, [&](auto t) {
    launch(s, report_kernel<decltype(t)>, dim3(static_cast<unsigned>(a.rows)), dim3(kThreads), 0, a);
  });
}

}  // namespace bnb::cuda
