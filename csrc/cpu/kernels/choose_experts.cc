// The router of a mixture of experts.
//
// Layout    rows of logits, contiguous.
// Work      an item is a group of rows: softmax, then a pass over the row for each choice.
// Numerics  float32 inside. Shares that are divided by their sum are the softmax of the chosen logits alone, and so is
//           their gradient.
// Needs     k <= n.
#include "kernels/choose_experts.h"

#include "cpu/lanes.h"
#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/work.h"

namespace bnb::BNB_ISA {
namespace {

template <class T>
void softmax_row(const T* x, int64_t n, float* p) {
  F32 top = set1(-__builtin_inff());
  for_lanes(n, [&](int64_t i, auto lanes) { top = max(lanes.load_or(x + i, -__builtin_inff()), top); });
  const F32 shift = set1(reduce_max(top));
  F32 sums = zero();
  for_lanes(n, [&](int64_t i, auto lanes) {
    const F32 e = exp(lanes.load(x + i) - shift);
    lanes.store(p + i, e);
    sums += lanes.keep(e);
  });
  const F32 factor = set1(1.0f / reduce_add(sums));
  for_lanes(n, [&](int64_t i, auto lanes) { lanes.store(p + i, lanes.load(p + i) * factor); });
}

void choose_row(const float* p, int64_t n, int64_t k, bool normalize, float* shares, int32_t* experts) {
  float sum = 0;
  for (int64_t j = 0; j < k; j++) {
    // The first of those that come after the last choice.
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++) {
      if (j > 0 && !comes_before(shares[j - 1], experts[j - 1], p[i], i)) continue;
      if (best < 0 || comes_before(p[i], i, p[best], best)) best = i;
    }
    experts[j] = static_cast<int32_t>(best);
    shares[j] = p[best];
    sum += p[best];
  }
  for (int64_t j = 0; normalize && j < k; j++) shares[j] /= sum;
}

template <class T>
void backward_row(const ChooseExpertsBackwardArgs& a, int64_t row, float* p) {
  const float *d = a.dshares + row * a.k, *shares = a.shares + row * a.k;
  const int32_t* experts = a.experts + row * a.k;
  const T* x = static_cast<const T*>(a.logits) + row * a.n;
  T* dx = static_cast<T*>(a.dlogits) + row * a.n;
  float mean = 0;
  for (int64_t j = 0; j < a.k; j++) mean += d[j] * shares[j];
  if (a.normalize) {
    for (int64_t i = 0; i < a.n; i++) dx[i] = from_float<T>(0.0f);
  } else {
    softmax_row(x, a.n, p);
    for (int64_t i = 0; i < a.n; i++) dx[i] = from_float<T>(-p[i] * mean);
  }
  for (int64_t j = 0; j < a.k; j++)
    if (experts[j] >= 0 && experts[j] < a.n) dx[experts[j]] = from_float<T>(shares[j] * (d[j] - mean));
}

constexpr int64_t kGrainElements = 8192;

}  // namespace

void choose_experts(const ChooseExpertsArgs& a) {
  parallel_for(a.rows, items_of(kGrainElements, a.n * (a.k + 2)), [&](int64_t begin, int64_t end) {
    const Scratch<float> p(a.n);
    for (int64_t r = begin; r < end; r++) {
      visit_float(a.dtype, [&](auto t) { softmax_row(static_cast<const decltype(t)*>(a.logits) + r * a.n, a.n, p); });
      choose_row(p, a.n, a.k, a.normalize, a.shares + r * a.k, a.experts + r * a.k);
    }
  });
}

void choose_experts_backward(const ChooseExpertsBackwardArgs& a) {
  parallel_for(a.rows, items_of(kGrainElements, a.n + a.k), [&](int64_t begin, int64_t end) {
    const Scratch<float> p(a.n);
    for (int64_t r = begin; r < end; r++) visit_float(a.dtype, [&](auto t) { backward_row<decltype(t)>(a, r, p); });
  });
}

}  // namespace bnb::BNB_ISA
