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

template <class T>
class Sampler {
 public:
  Sampler(const T* row, int64_t n, const RowSampling& sampling)
      : row_(row), n_(n), s_(sampling), bins_(kSampleBins), members_(n) {}

  // -1 where the contract says so.
  int32_t largest() {
    int32_t best = 0;
    for (int64_t i = 0; i < n_; i++) {
      const float v = to_float(row_[i]);
      if (!(v < __builtin_inff())) return -1;
      if (v > to_float(row_[best])) best = static_cast<int32_t>(i);
    }
    top_ = to_float(row_[best]);
    return top_ == -__builtin_inff() ? -1 : best;
  }

  int32_t draw() {
    for (int b = 0; b < kSampleBins; b++) bins_[b] = {};
    const uint64_t least = sample_least(s_.min_p);
    uint64_t total = 0, above_least = 0;
    for (int64_t i = 0; i < n_; i++) {
      const float distance = distance_of(i);
      const uint64_t weight = sample_weight(distance);
      Bin& bin = bins_[sample_bin(distance)];
      bin.weight += weight;
      bin.count++;
      total += weight;
      if (weight >= least) above_least += weight;
    }
    if (s_.top_k < n_) total = find<&Bin::count>(static_cast<uint64_t>(s_.top_k) - 1).weight_of_equals;
    if (s_.top_p < 1) total = find<&Bin::weight>(sample_nucleus(s_.top_p, total)).weight;
    if (above_least < total) total = above_least;
    if (s_.typical_p < 1) return draw_typical(total);
    return find<&Bin::weight>(sample_target(s_, total)).index;
  }

 private:
  // Where a sum ended: the element, the sum of weights up to it and with it, and that with all of its logit.
  struct Place {
    int32_t index;
    uint64_t weight, weight_of_equals;
  };

  float distance_of(int64_t i) const { return sample_distance(top_, to_float(row_[i]), s_.sharpness); }
  uint64_t weight_of(int64_t i) const { return sample_weight(distance_of(i)); }
  // Ascending with the rank.
  uint64_t rank_of(int64_t i) const {
    return static_cast<uint64_t>(~sample_key(to_float(row_[i]))) << 32 | static_cast<uint64_t>(i);
  }
  static int32_t index_in(uint64_t member) { return static_cast<int32_t>(member & 0xffffffffu); }

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
    for (int64_t i = 0; i < n_; i++)
      if (sample_bin(distance_of(i)) == b) members_[count++] = rank_of(i);
    heap_sort(members_, count);
    for (int64_t m = 0;; m++) {
      const int32_t i = index_in(members_[m]);
      const Bin one = {weight_of(i), 1};
      weight += one.weight;
      sum += one.*Measure;
      if (sum <= target) continue;
      uint64_t equals = weight;
      while (++m < count && members_[m] >> 32 == rank_of(i) >> 32) equals += one.weight;
      return {i, weight, equals};
    }
  }

  // A draw from those of the first `total` whose surprise is nearest to the mean surprise (Meister et al., 2022), the
  // fewest that reach typical_p, and all as near as the last of them. Surprise is distance, but for a constant.
  int32_t draw_typical(uint64_t total) {
    const uint64_t last = rank_of(find<&Bin::weight>(total - 1).index);
    int64_t count = 0;
    double mean = 0;
    for (int64_t i = 0; i < n_; i++) {
      const float distance = distance_of(i);
      const uint64_t weight = sample_weight(distance);
      if (weight == 0 || rank_of(i) > last) continue;
      mean += static_cast<double>(weight) / static_cast<double>(total) * static_cast<double>(distance);
      members_[count++] = static_cast<uint64_t>(i);
    }
    const auto center = static_cast<float>(mean);
    for (int64_t m = 0; m < count; m++) {
      const float off = distance_of(index_in(members_[m])) - center;
      members_[m] |= static_cast<uint64_t>(float_bits(off < 0 ? -off : off)) << 32;
    }
    heap_sort(members_, count);
    const uint64_t target = sample_nucleus(s_.typical_p, total);
    uint64_t sum = 0;
    int64_t kept = 0;
    while (sum <= target || (kept < count && members_[kept] >> 32 == members_[kept - 1] >> 32)) {
      sum += weight_of(index_in(members_[kept++]));
    }
    for (int64_t m = 0; m < kept; m++) members_[m] = rank_of(index_in(members_[m]));
    heap_sort(members_, kept);
    const uint64_t drawn = sample_target(s_, sum);
    uint64_t weight = 0;
    for (int64_t m = 0;; m++) {
      weight += weight_of(index_in(members_[m]));
      if (weight > drawn) return index_in(members_[m]);
    }
  }

  const T* row_;
  const int64_t n_;
  const RowSampling s_;
  Scratch<Bin> bins_;
  Scratch<uint64_t> members_;
  float top_ = 0;
};

}  // namespace

void sample_token(const SampleTokenArgs& a) {
  int64_t position = 0;
  if (!resolve(a.position, position)) return;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        RowSampling sampling = sampling_of(a, r);
        sampling.step += position;
        Sampler<T> sampler(static_cast<const T*>(a.logits) + r * a.n, a.n, sampling);
        a.y[r] = sampler.largest();
        if (a.y[r] >= 0 && sampling.sharpness > 0) a.y[r] = sampler.draw();
      }
    });
  });
}

}  // namespace bnb::BNB_ISA
