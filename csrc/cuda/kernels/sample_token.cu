// Draws of tokens from logits.
//
// Layout    logits [rows, n] in parts of 4096, a block for each. What a row's parts leave for each other lies in
// scratch
//           memory (RowSpace), for as many rows at once as find room there.
// Work      three launches, in which the last part of a row to finish does what needs all of them. The first finds the
//           largest; where that is the answer, it is the only one. The second adds counts and weights to bins by
//           distance from it, which spread logits evenly, so that threads seldom meet; then the bin is known in which
//           the first cut ends. The third gathers the candidates, which are no farther than that bin, and cuts and
//           draws among them: within the bin that a sum ends in, the key is found digit by digit, and among elements
//           of one key the index likewise.
// Numerics  kernels/sample_token.h: whole numbers, so neither the order of the atomic additions nor that of the
//           candidates matters.
// Needs     what the contract says.
#include "cuda/last_block.cuh"
#include "cuda/position.cuh"
#include "kernels/sample_token.h"

namespace bnb::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int kPart = 8 * kThreads;                // elements of a block
constexpr int64_t kMostBytes = int64_t{32} << 20;  // of candidates, of all rows that are drawn from at once
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;

struct Largest {
  __device__ __forceinline__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

// Over the threads before this one and itself. All threads.
__device__ __forceinline__ uint64_t sum_up_to(uint64_t v) {
  BNB_SHARED(uint64_t[kWarps], totals);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint64_t before = __shfl_up_sync(kFullMask, v, offset);
    if (lane >= offset) v += before;
  }
  if (lane == kWarp - 1) totals[warp] = v;
  __syncthreads();
  for (int w = 0; w < warp; w++) v += totals[w];
  __syncthreads();
  return v;
}

template <int N>
struct Bins {
  uint64_t weight[N];
  uint32_t count[N];

  // Between barriers.
  __device__ __forceinline__ void clear() {
    for (int i = static_cast<int>(threadIdx.x); i < N; i += kThreads) {
      weight[i] = 0;
      count[i] = 0;
    }
  }
  __device__ __forceinline__ void add(int bin, uint64_t w, uint32_t elements = 1) {
    atomicAdd(&count[bin], elements);
    if (w > 0) atomicAdd(reinterpret_cast<unsigned long long*>(&weight[bin]), static_cast<unsigned long long>(w));
  }
};

// A bin, the sums of those before it, and its own.
struct Place {
  int bin;
  uint64_t weight, count, bin_weight, bin_count;
};

// Where the sum of weights, or of counts, first exceeds the target. All threads, after a barrier.
template <int N>
__device__ __forceinline__ Place find_bin(const Bins<N>& bins, bool counting, uint64_t target) {
  BNB_SHARED(Place, found);
  constexpr int kMine = (N + kThreads - 1) / kThreads;
  const int first = static_cast<int>(threadIdx.x) * kMine;
  uint64_t weight = 0, count = 0;
  for (int i = 0; i < kMine; i++) {
    weight += first < N ? bins.weight[first + i] : 0;
    count += first < N ? bins.count[first + i] : 0;
  }
  uint64_t weights = sum_up_to(weight) - weight, counts = sum_up_to(count) - count;
  const uint64_t begin = counting ? counts : weights;
  if (begin <= target && target < begin + (counting ? count : weight)) {
    int bin = first;
#pragma unroll 1
    for (; (counting ? counts + bins.count[bin] : weights + bins.weight[bin]) <= target; bin++) {
      weights += bins.weight[bin];
      counts += bins.count[bin];
    }
    found = {bin, weights, counts, bins.weight[bin], bins.count[bin]};
  }
  __syncthreads();
  const Place place = found;
  __syncthreads();
  return place;
}

// An element: its key, its number among those of the same key, the sum of weights up to it and with it, and that with
// all of the same key.
struct Element {
  uint32_t key, tie;
  uint64_t weight, weight_of_equals;
};

// What the parts of a row share.
struct RowSpace {
  uint64_t* best;  // [parts]: key and index of the largest
  Bins<kSampleBins>* bins;
  int32_t* candidates;  // [n]: indices, in no order
  uint64_t* above;      // sum of the weights that min_p keeps
  uint32_t* count;      // of candidates
  int32_t* last_bin;    // of a candidate
};

// Scratch memory for some rows: an array for each member of RowSpace.
struct Space {
  uint64_t* best;
  Bins<kSampleBins>* bins;
  int32_t* candidates;
  uint64_t* above;
  uint32_t* count;
  int32_t* last_bin;

  static constexpr size_t round_up(size_t nbytes) { return (nbytes + 255) / 256 * 256; }
  static size_t bytes(int64_t rows, int64_t parts, int64_t n) {
    const auto r = static_cast<size_t>(rows);
    return round_up(r * static_cast<size_t>(parts) * sizeof(uint64_t)) + round_up(r * sizeof(Bins<kSampleBins>)) +
           round_up(r * static_cast<size_t>(n) * sizeof(int32_t)) + round_up(r * sizeof(uint64_t)) +
           2 * round_up(r * sizeof(int32_t));
  }
  Space(void* memory, int64_t rows, int64_t parts, int64_t n) {
    auto* at = static_cast<unsigned char*>(memory);
    const auto take = [&](auto*& array, size_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      at += round_up(count * sizeof *array);
    };
    const auto r = static_cast<size_t>(rows);
    take(best, r * static_cast<size_t>(parts));
    take(bins, r);
    take(candidates, r * static_cast<size_t>(n));
    take(above, r);
    take(count, r);
    take(last_bin, r);
  }
  __device__ __forceinline__ RowSpace of(int64_t row, int64_t parts, int64_t n) const {
    return {best + row * parts, bins + row, candidates + row * n, above + row, count + row, last_bin + row};
  }
};

// A block's part of a row; `row` counts from the first of this launch.
template <class T>
struct Part {
  const SampleTokenArgs& a;
  int64_t row;
  int parts, part;
  const T* logits;
  RowSpace space;
  int32_t* finished;  // parts of this row
  RowSampling sampling;

  __device__ __forceinline__ Part(const SampleTokenArgs& args, int64_t first_row, int part_count, const Space& all,
                                  int32_t* counters)
      : a(args),
        row(blockIdx.x / part_count),
        parts(part_count),
        part(static_cast<int>(blockIdx.x % part_count)),
        logits(static_cast<const T*>(args.logits) + (first_row + row) * args.n),
        space(all.of(row, part_count, args.n)),
        finished(counters + row),
        sampling(sampling_of(args, first_row + row)) {}

  // f(logit, index) for this thread's elements of the part.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    const int begin = part * kPart, end = static_cast<int>(min(int64_t{begin} + kPart, a.n));
#pragma unroll 1
    for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads) f(widen(logits[i]), i);
  }

  // Whether this block is the last of its row; what the others wrote can then be read. All threads.
  __device__ __forceinline__ bool is_last() const { return last_of(finished, parts); }

  // Key and index of the largest, the first of equals; all ones where a logit is NaN or +infinity. All threads, after
  // the first launch.
  __device__ uint64_t best() const {
    uint64_t best = 0;
    for (int p = static_cast<int>(threadIdx.x); p < parts; p += kThreads) best = Largest{}(best, space.best[p]);
    return block_reduce(best, Largest{}, uint64_t{0});
  }
};

__device__ __forceinline__ float top_of(uint64_t best) { return sample_logit(static_cast<uint32_t>(best >> 32)); }
__device__ __forceinline__ bool can_draw(uint64_t best) { return best != ~uint64_t{0} && top_of(best) > -HUGE_VALF; }

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    largest_kernel(SampleTokenArgs a, int64_t first_row, int parts, Space all, int32_t* counters, const char* op) {
  int64_t step = 0;
  if (!resolve(a.position, op, step)) return;
  const Part<T> part(a, first_row, parts, all, counters);
  uint64_t best = 0;
  part.each([&](float logit, int i) {
    const uint64_t mine = static_cast<uint64_t>(sample_key(logit)) << 32 | ~static_cast<uint32_t>(i);
    best = Largest{}(best, logit < HUGE_VALF ? mine : ~uint64_t{0});
  });
  best = block_reduce(best, Largest{}, uint64_t{0});
  if (threadIdx.x == 0) part.space.best[part.part] = best;
  // The second launch begins with empty bins.
  const int mine = part.part * kThreads + static_cast<int>(threadIdx.x);
  for (int i = mine; i < kSampleBins; i += parts * kThreads) {
    part.space.bins->weight[i] = 0;
    part.space.bins->count[i] = 0;
  }
  if (mine == 0) {
    *part.space.count = 0;
    *part.space.above = 0;
  }
  if (!part.is_last()) return;
  best = part.best();
  if (threadIdx.x == 0 && (part.sampling.sharpness == 0 || !can_draw(best)))
    a.y[first_row + part.row] = can_draw(best) ? static_cast<int32_t>(~static_cast<uint32_t>(best)) : -1;
}

// The cuts by a sum over the ranking that a row has.
__device__ __forceinline__ bool cuts_count(const RowSampling& s, int64_t n) { return s.top_k < n; }
__device__ __forceinline__ bool cuts_mass(const RowSampling& s) { return s.top_p < 1; }
__device__ __forceinline__ bool is_typical(const RowSampling& s) { return s.typical_p < 1; }

// All bins of a row, and the sum of their weights. All threads.
__device__ __forceinline__ uint64_t load_bins(const Bins<kSampleBins>& from, Bins<kSampleBins>& bins) {
  uint64_t total = 0;
  for (int i = static_cast<int>(threadIdx.x); i < kSampleBins; i += kThreads) {
    total += bins.weight[i] = from.weight[i];
    bins.count[i] = from.count[i];
  }
  return block_sum(total);  // a barrier, too
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    bins_kernel(SampleTokenArgs a, int64_t first_row, int parts, Space all, int32_t* counters, const char* op) {
  BNB_SHARED(Bins<kSampleBins>, bins);
  int64_t step = 0;
  if (!resolve(a.position, op, step)) return;
  Part<T> part(a, first_row, parts, all, counters);
  RowSampling& sampling = part.sampling;
  sampling.step += step;
  const uint64_t best = part.best();
  if (sampling.sharpness == 0 || !can_draw(best)) return;
  const float top = top_of(best);
  const uint64_t least = sample_least(sampling.min_p);
  uint64_t above = 0;
  bins.clear();
  __syncthreads();
  part.each([&](float logit, int) {
    const float d = sample_distance(top, logit, sampling.sharpness);
    const uint64_t weight = sample_weight(d);
    bins.add(sample_bin(d), weight);
    above += weight >= least ? weight : 0;
  });
  above = block_sum(above);  // a barrier, too
  for (int i = static_cast<int>(threadIdx.x); i < kSampleBins; i += kThreads)
    if (bins.count[i] > 0) part.space.bins->add(i, bins.weight[i], bins.count[i]);
  if (threadIdx.x == 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(part.space.above), static_cast<unsigned long long>(above));
  if (!part.is_last()) return;
  uint64_t total = load_bins(*part.space.bins, bins);
  const bool counting = cuts_count(sampling, a.n);
  uint64_t target;
  if (counting) {
    target = static_cast<uint64_t>(sampling.top_k) - 1;
  } else if (cuts_mass(sampling)) {
    target = sample_nucleus(sampling.top_p, total);
  } else {
    total = min(total, *part.space.above);
    target = is_typical(sampling) ? total - 1 : sample_target(sampling, total);
  }
  const Place place = find_bin(bins, counting, target);
  if (threadIdx.x == 0) *part.space.last_bin = place.bin;
}

template <class T>
struct Candidates {
  const T* logits;
  const int32_t* list;
  int count;
  float top, sharpness;

  __device__ __forceinline__ float distance(float logit) const { return sample_distance(top, logit, sharpness); }

  // The digit of the candidates that `digit_of(logit, index)` gives one (not negative) in which the target lies.
  template <class F>
  __device__ __forceinline__ Place pass(Bins<kDigits>& digits, bool counting, uint64_t target,
                                        const F& digit_of) const {
    digits.clear();
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const int32_t index = list[i];
      const float logit = widen(logits[index]);
      const int digit = digit_of(logit, index);
      if (digit >= 0) digits.add(digit, sample_weight(distance(logit)));
    }
    __syncthreads();
    return find_bin(digits, counting, target);
  }

  // The first element in rank order at which the sum of weights, or of counts, exceeds the target, which is below that
  // of all.
  __device__ __forceinline__ Element find(const Bins<kSampleBins>& bins, Bins<kDigits>& digits, bool counting,
                                          uint64_t target) const {
    const Place place = find_bin(bins, counting, target);
    const int bin = place.bin;
    return find_among(digits, counting, target - (counting ? place.count : place.weight), place.weight,
                      [&](float logit, int32_t) { return sample_bin(distance(logit)) == bin; });
  }

  // Likewise, of the candidates that `among(logit, index)` holds for; `weight` is that of those before them.
  template <class F>
  __device__ __forceinline__ Element find_among(Bins<kDigits>& digits, bool counting, uint64_t target, uint64_t weight,
                                                const F& among) const {
    uint32_t key = 0;
    Place place{};
#pragma unroll 1
    for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
      place = pass(digits, counting, target, [&](float logit, int32_t index) {
        const uint32_t k = sample_key(logit);
        // The digits before this one: none at first.
        const bool same = shift == 32 - kDigitBits || (k ^ key) >> (shift + kDigitBits) == 0;
        return same && among(logit, index) ? static_cast<int>(kDigits - 1 - (k >> shift & (kDigits - 1))) : -1;
      });
      weight += place.weight;
      target -= counting ? place.count : place.weight;
      key |= static_cast<uint32_t>(kDigits - 1 - place.bin) << shift;
    }
    const uint64_t each_weight = sample_weight(distance(sample_logit(key)));
    const uint64_t tie = counting ? target : target / each_weight;
    return {key, static_cast<uint32_t>(tie), weight + (tie + 1) * each_weight, weight + place.bin_weight};
  }

  // Which element that is.
  template <class F>
  __device__ __forceinline__ int32_t locate(Bins<kDigits>& digits, const Element& e, const F& among) const {
    static_assert(kSampleMost <= int64_t{1} << (3 * kDigitBits));
    uint64_t target = e.tie;
    int32_t found = 0;
#pragma unroll 1
    for (int shift = 2 * kDigitBits; shift >= 0; shift -= kDigitBits) {
      const Place place = pass(digits, true, target, [&](float logit, int32_t index) {
        const bool same = sample_key(logit) == e.key && (index ^ found) >> (shift + kDigitBits) == 0;
        return same && among(logit, index) ? index >> shift & (kDigits - 1) : -1;
      });
      target -= place.count;
      found |= place.bin << shift;
    }
    return found;
  }

  // A draw from those of the first `total` whose distance is nearest to its mean, the fewest that reach typical_p and
  // all as near as the last of them.
  __device__ __forceinline__ int32_t draw_typical(const Bins<kSampleBins>& bins, Bins<kDigits>& digits, uint64_t total,
                                                  const RowSampling& sampling) const {
    const auto all = [](float, int32_t) { return true; };
    const Element last = find(bins, digits, false, total - 1);
    const int32_t last_index = locate(digits, last, all);
    const auto is_in = [&](float logit, int32_t index) {
      const uint32_t key = sample_key(logit);
      return (key > last.key || (key == last.key && index <= last_index)) && sample_weight(distance(logit)) > 0;
    };
    double mean = 0;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const float logit = widen(logits[list[i]]);
      const float d = distance(logit);
      if (is_in(logit, list[i]))
        mean += static_cast<double>(sample_weight(d)) / static_cast<double>(total) * static_cast<double>(d);
    }
    const auto center = static_cast<float>(block_sum(mean));
    const auto off = [&](float logit) { return float_bits(fabsf(distance(logit) - center)); };
    uint64_t target = sample_nucleus(sampling.typical_p, total), kept = 0;
    uint32_t farthest = 0;
#pragma unroll 1
    for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
      const Place place = pass(digits, false, target, [&](float logit, int32_t index) {
        const uint32_t o = off(logit);
        const bool same = shift == 32 - kDigitBits || (o ^ farthest) >> (shift + kDigitBits) == 0;
        return same && is_in(logit, index) ? static_cast<int>(o >> shift & (kDigits - 1)) : -1;
      });
      kept += place.weight + (shift == 0 ? place.bin_weight : 0);
      target -= place.weight;
      farthest |= static_cast<uint32_t>(place.bin) << shift;
    }
    const auto is_kept = [&](float logit, int32_t index) { return is_in(logit, index) && off(logit) <= farthest; };
    return locate(digits, find_among(digits, false, sample_target(sampling, kept), 0, is_kept), is_kept);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    draw_kernel(SampleTokenArgs a, int64_t first_row, int parts, Space all, int32_t* counters, const char* op) {
  BNB_SHARED(Bins<kSampleBins>, bins);
  BNB_SHARED(Bins<kDigits>, digits);
  BNB_SHARED(uint32_t, first);
  int64_t step = 0;
  if (!resolve(a.position, op, step)) return;
  Part<T> part(a, first_row, parts, all, counters);
  RowSampling& sampling = part.sampling;
  sampling.step += step;
  const uint64_t best = part.best();
  if (sampling.sharpness == 0 || !can_draw(best)) return;
  const float top = top_of(best);
  // Where only the draw is left, its own bin is enough.
  const bool is_cut = cuts_count(sampling, a.n) || cuts_mass(sampling) || is_typical(sampling);
  const int last_bin = *part.space.last_bin, first_bin = is_cut ? 0 : last_bin;
  const auto belongs = [&](float logit) {
    const int bin = sample_bin(sample_distance(top, logit, sampling.sharpness));
    return bin >= first_bin && bin <= last_bin;
  };
  uint64_t mine = 0;
  part.each([&](float logit, int) { mine += belongs(logit); });
  const uint64_t up_to = sum_up_to(mine);
  if (threadIdx.x == kThreads - 1) first = atomicAdd(part.space.count, static_cast<uint32_t>(up_to));
  __syncthreads();
  int32_t* to = part.space.candidates + first + (up_to - mine);
  part.each([&](float logit, int i) {
    if (belongs(logit)) *to++ = i;
  });
  if (!part.is_last()) return;
  const Candidates<T> candidates = {part.logits, part.space.candidates, static_cast<int>(*part.space.count), top,
                                    sampling.sharpness};
  uint64_t total = load_bins(*part.space.bins, bins);
  if (cuts_count(sampling, a.n))
    total = candidates.find(bins, digits, true, static_cast<uint64_t>(sampling.top_k) - 1).weight_of_equals;
  if (cuts_mass(sampling)) total = candidates.find(bins, digits, false, sample_nucleus(sampling.top_p, total)).weight;
  total = min(total, *part.space.above);
  int32_t drawn;
  if (is_typical(sampling)) {
    drawn = candidates.draw_typical(bins, digits, total, sampling);
  } else {
    const Element element = candidates.find(bins, digits, false, sample_target(sampling, total));
    drawn = candidates.locate(digits, element, [](float, int32_t) { return true; });
  }
  if (threadIdx.x == 0) a.y[first_row + part.row] = drawn;
}

}  // namespace

void sample_token(const SampleTokenArgs& a, CudaStream& s) {
  if (a.rows == 0) return;
  const int64_t parts = ceil_div(a.n, kPart);
  const int64_t fitting = kMostBytes / (a.n * static_cast<int64_t>(sizeof(int32_t)));
  const int64_t most = fitting < 1 ? 1 : fitting < kCounters ? fitting : kCounters;
  const int64_t at_once = a.rows < most ? a.rows : most;
  const Space space(s.scratch(Space::bytes(at_once, parts, a.n)), at_once, parts, a.n);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    for (int64_t row = 0; row < a.rows; row += at_once) {
      const int64_t rows = a.rows - row < at_once ? a.rows - row : at_once;
      const dim3 grid(static_cast<unsigned>(rows * parts));
      const auto queue = [&](auto kernel) {
        launch(s, kernel, grid, dim3(kThreads), 0, a, row, static_cast<int>(parts), space, s.counters,
               kernels::sample_token.name);
      };
      queue(largest_kernel<T>);
      if (!a.each.temperature && a.all.sharpness == 0) continue;
      queue(bins_kernel<T>);
      queue(draw_kernel<T>);
    }
  });
}

}  // namespace bnb::cuda
