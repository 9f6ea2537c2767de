// Draws of tokens from logits.
//
// Layout    logits [rows, n].
// Work      a row per item. One pass finds the largest, a second puts counts and sums of weights into bins by distance
//           from it; of the bin that a sum ends in, the members are sorted.
// Numerics  kernels/sample_token.h: whole numbers, so the result does not depend on the order of anything.
// Needs     what the contract says.
#include "kernels/sample_token.h"

#include "cpu/parallel.h"
#include "cpu/position.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

// Ascending, in place.
void heap_sort(uint64_t* v, int64_t n) {
  const auto sink = [&](int64_t parent, int64_t end) {
    for (int64_t child; (child = 2 * parent + 1) < end; parent = child) {
      if (child + 1 < end && v[child] < v[child + 1]) child++;
      if (v[parent] >= v[child]) return;
      const uint64_t kept = v[parent];
      v[parent] = v[child];
      v[child] = kept;
    }
  };
  for (int64_t i = n / 2 - 1; i >= 0; i--) sink(i, n);
  for (int64_t end = n - 1; end > 0; end--) {
    const uint64_t kept = v[0];
    v[0] = v[end];
    v[end] = kept;
    sink(0, end);
  }
}

struct Bin {
  uint64_t weight, count;
};

// Where a sum ended: the element, and the sum of weights up to it and with it.
struct Place {
  int32_t index;
  uint64_t weight;
};

template <class T>
class Sampler {
 public:
  Sampler(const SampleTokenArgs& a, const T* row)
      : a_(a), row_(row), bins_(scratch<Bin>(0, kSampleBins)), members_(scratch<uint64_t>(1, a.n)) {}

  // -1 where the contract says so.
  int32_t largest() {
    int32_t best = 0;
    for (int64_t i = 0; i < a_.n; i++) {
      const float v = to_float(row_[i]);
      if (!(v < __builtin_inff())) return -1;
      if (v > to_float(row_[best])) best = static_cast<int32_t>(i);
    }
    top_ = to_float(row_[best]);
    return top_ == -__builtin_inff() ? -1 : best;
  }

  int32_t draw(int64_t row, int64_t step) {
    for (int b = 0; b < kSampleBins; b++) bins_[b] = {};
    uint64_t total = 0;
    for (int64_t i = 0; i < a_.n; i++) {
      const float distance = distance_of(i);
      const uint64_t weight = sample_weight(distance);
      Bin& bin = bins_[sample_bin(distance)];
      bin.weight += weight;
      bin.count++;
      total += weight;
    }
    if (a_.top_k < a_.n) total = find<&Bin::count>(static_cast<uint64_t>(a_.top_k) - 1).weight;
    if (a_.top_p < 1) total = find<&Bin::weight>(sample_nucleus(a_.top_p, total)).weight;
    return find<&Bin::weight>(sample_target(a_.seed, step, row, total)).index;
  }

 private:
  float distance_of(int64_t i) const { return sample_distance(top_, to_float(row_[i]), a_.sharpness); }

  // The first element in rank order at which the sum of `Measure` exceeds the target, which is below that of all.
  template <uint64_t Bin::*Measure>
  Place find(uint64_t target) {
    uint64_t weight = 0, sum = 0;
    int b = 0;
    for (; sum + bins_[b].*Measure <= target; b++) {
      sum += bins_[b].*Measure;
      weight += bins_[b].weight;
    }
    int64_t count = 0;
    for (int64_t i = 0; i < a_.n; i++) {
      if (sample_bin(distance_of(i)) != b) continue;
      members_[count++] = static_cast<uint64_t>(~sample_key(to_float(row_[i]))) << 32 | static_cast<uint64_t>(i);
    }
    heap_sort(members_, count);
    for (int64_t m = 0;; m++) {
      const auto i = static_cast<int32_t>(members_[m] & 0xffffffffu);
      const Bin one = {sample_weight(distance_of(i)), 1};
      weight += one.weight;
      sum += one.*Measure;
      if (sum > target) return {i, weight};
    }
  }

  const SampleTokenArgs& a_;
  const T* row_;
  Bin* bins_;
  uint64_t* members_;
  float top_ = 0;
};

}  // namespace

void sample_token(const SampleTokenArgs& a) {
  int64_t step = a.step;
  if (!resolve(a.position, step)) return;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        Sampler<T> sampler(a, static_cast<const T*>(a.logits) + r * a.n);
        a.y[r] = sampler.largest();
        if (a.y[r] >= 0 && a.sharpness > 0) a.y[r] = sampler.draw(r, step);
      }
    });
  });
}

}  // namespace bnb::BNB_ISA
