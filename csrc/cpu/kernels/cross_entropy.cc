// Mean cross entropy of rows of logits against integer targets, and its gradient.
//
// Layout    logits [rows, classes]; the loss, the count and lse are float32.
// Work      a run of rows per item, two passes over each: maximum, then sum of exponentials.
// Numerics  float32 per row, always relative to the largest logit, so that large logits keep their digits; the
//           mean adds the rows in their order in float64, so its bits do not depend on the number of threads.
//           Backward uses the stored maximum and logarithm, no second reduction.
// Needs     classes >= 1 wherever a row counts, which a target inside the classes implies.
#include "kernels/cross_entropy.h"

#include "cpu/lanes.h"
#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 4096;

BNB_INLINE int64_t grain_of(int64_t classes) {
  return classes < kChunkElements ? kChunkElements / (classes < 1 ? 1 : classes) : 1;
}

template <class T>
BNB_INLINE bool counts(const T& a, int64_t row) {
  return a.targets[row] != a.ignore && a.targets[row] >= 0 && a.targets[row] < a.classes;
}

// lse[0] = the largest logit, lse[1] = log of the sum of exponentials relative to it.
template <class T>
BNB_INLINE void log_sum_exp(const T* x, int64_t classes, float* lse) {
  F32 top = set1(-__builtin_inff());
  for_lanes(classes, [&](int64_t i, auto lanes) { top = max(top, lanes.load_or(x + i, -__builtin_inff())); });
  lse[0] = reduce_max(top);
  const F32 shift = set1(lse[0]);
  F32 sum = zero();
  for_lanes(classes, [&](int64_t i, auto lanes) { sum = sum + lanes.keep(exp(lanes.load(x + i) - shift)); });
  lse[1] = reduce_max(log(set1(reduce_add(sum))));
}

template <class T>
void forward(const CrossEntropyArgs& a) {
  const Scratch<float> losses(a.rows);
  parallel_for(a.rows, grain_of(a.classes), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      if (!counts(a, r)) {
        losses[r] = a.lse[2 * r] = a.lse[2 * r + 1] = 0;
        if (a.targets[r] != a.ignore) report_fault(a.fault, FaultCode::index_out_of_range, a.targets[r], a.classes);
        continue;
      }
      const T* x = static_cast<const T*>(a.logits) + r * a.classes;
      log_sum_exp(x, a.classes, a.lse + 2 * r);
      losses[r] = a.lse[2 * r] - to_float(x[a.targets[r]]) + a.lse[2 * r + 1];
    }
  });
  double sum = 0;
  int64_t count = 0;
  for (int64_t r = 0; r < a.rows; r++) {
    if (!counts(a, r)) continue;
    sum += static_cast<double>(losses[r]);
    count++;
  }
  *a.count = static_cast<float>(count);
  *a.loss = static_cast<float>(sum / static_cast<double>(count));
}

template <class T>
void backward(const CrossEntropyBackwardArgs& a) {
  const float scale = *a.dloss / *a.count;
  parallel_for(a.rows, grain_of(a.classes), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const T* x = static_cast<const T*>(a.logits) + r * a.classes;
      T* dx = static_cast<T*>(a.dlogits) + r * a.classes;
      if (!counts(a, r)) {
        for_lanes(a.classes, [&](int64_t i, auto lanes) { lanes.store(dx + i, zero()); });
        continue;
      }
      const F32 peak = set1(a.lse[2 * r]), rest = set1(a.lse[2 * r + 1]), factor = set1(scale);
      for_lanes(a.classes,
                [&](int64_t i, auto lanes) { lanes.store(dx + i, exp(lanes.load(x + i) - peak - rest) * factor); });
      // Written again from the logit, so that p - 1 is rounded once also in a 16-bit dtype.
      const int32_t target = a.targets[r];
      const float p = reduce_max(exp(set1(to_float(x[target])) - peak - rest));
      dx[target] = from_float<T>((p - 1.0f) * scale);
    }
  });
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& a) {
  visit_float(a.dtype, [&](auto t) { forward<decltype(t)>(a); });
}

void cross_entropy_backward(const CrossEntropyBackwardArgs& a) {
  visit_float(a.dtype, [&](auto t) { backward<decltype(t)>(a); });
}

}  // namespace bnb::BNB_ISA
