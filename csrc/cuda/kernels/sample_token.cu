// Draws of tokens from logits.
//
// Layout    logits [rows, n], read element by element, several times over, all but the first from cache.
// Work      a block per row. One pass finds the largest, a second adds counts and weights to bins by distance from it,
//           which spread logits evenly, so that threads seldom meet. Within the bin that a sum ends in, the key is
//           found digit by digit, and among elements of one key the index by counting.
// Numerics  kernels/sample_token.h: whole numbers, so the order of the atomic additions does not matter.
// Needs     what the contract says.
#include "cuda/position.cuh"
#include "kernels/sample_token.h"

namespace bnb::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
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
  __device__ __forceinline__ void add(int bin, uint64_t w) {
    atomicAdd(&count[bin], 1u);
    if (w > 0) atomicAdd(reinterpret_cast<unsigned long long*>(&weight[bin]), static_cast<unsigned long long>(w));
  }
};

// A bin, and the sums of those before it.
struct Place {
  int bin;
  uint64_t weight, count;
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
    found = {bin, weights, counts};
  }
  __syncthreads();
  const Place place = found;
  __syncthreads();
  return place;
}

// An element: its key, its number among those of the same key, and the sum of weights up to it and with it.
struct Element {
  uint32_t key, tie;
  uint64_t weight;
};

template <class T>
struct Row {
  const T* logits;
  int n;
  float top, sharpness;

  __device__ __forceinline__ float distance(float logit) const { return sample_distance(top, logit, sharpness); }

  // f(logit) for this thread's elements.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) f(widen(logits[i]));
  }

  // The first element in rank order at which the sum of weights, or of counts, exceeds the target, which is below that
  // of all.
  __device__ __forceinline__ Element find(const Bins<kSampleBins>& bins, Bins<kDigits>& digits, bool counting,
                                          uint64_t target) const {
    Place place = find_bin(bins, counting, target);
    const int bin = place.bin;
    uint64_t weight = place.weight;
    target -= counting ? place.count : place.weight;
    uint32_t key = 0;
#pragma unroll 1
    for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
      digits.clear();
      __syncthreads();
      each([&](float logit) {
        const float d = distance(logit);
        const uint32_t k = sample_key(logit);
        // The digits before this one: none at first.
        const bool same = shift == 32 - kDigitBits || (k ^ key) >> (shift + kDigitBits) == 0;
        if (same && sample_bin(d) == bin)
          digits.add(static_cast<int>(kDigits - 1 - (k >> shift & (kDigits - 1))), sample_weight(d));
      });
      __syncthreads();
      place = find_bin(digits, counting, target);
      weight += place.weight;
      target -= counting ? place.count : place.weight;
      key |= static_cast<uint32_t>(kDigits - 1 - place.bin) << shift;
    }
    const uint64_t each_weight = sample_weight(distance(sample_logit(key)));
    const uint64_t tie = counting ? target : target / each_weight;
    return {key, static_cast<uint32_t>(tie), weight + (tie + 1) * each_weight};
  }

  // Writes which element it is. All threads.
  __device__ void locate(Element e, int32_t* index) const {
    const int each = (n + kThreads - 1) / kThreads;
    const int first = static_cast<int>(threadIdx.x) * each, end = first + each < n ? first + each : n;
    uint64_t count = 0;
    for (int i = first; i < end; i++) count += sample_key(widen(logits[i])) == e.key;
    uint64_t before = sum_up_to(count) - count;
    if (e.tie < before || e.tie >= before + count) return;
    for (int i = first;; i++) {
      if (sample_key(widen(logits[i])) != e.key) continue;
      if (before++ == e.tie) {
        *index = i;
        return;
      }
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) sample_token_kernel(SampleTokenArgs a, const char* op) {
  BNB_SHARED(Bins<kSampleBins>, bins);
  BNB_SHARED(Bins<kDigits>, digits);
  int64_t step = a.step;
  if (!resolve(a.position, op, step)) return;
  for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
    Row<T> row = {static_cast<const T*>(a.logits) + r * a.n, static_cast<int>(a.n), 0.0f, a.sharpness};
    // Key and index of the largest, the first of equals; all ones where a logit is NaN or +infinity.
    uint64_t best = 0;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < row.n; i += kThreads) {
      const float logit = widen(row.logits[i]);
      const uint64_t mine = static_cast<uint64_t>(sample_key(logit)) << 32 | ~static_cast<uint32_t>(i);
      best = Largest{}(best, logit < HUGE_VALF ? mine : ~uint64_t{0});
    }
    best = block_reduce(best, Largest{}, uint64_t{0});
    row.top = sample_logit(static_cast<uint32_t>(best >> 32));
    const bool possible = best != ~uint64_t{0} && row.top > -HUGE_VALF;
    if (!possible || a.sharpness == 0) {
      if (threadIdx.x == 0) a.y[r] = possible ? static_cast<int32_t>(~static_cast<uint32_t>(best)) : -1;
      continue;
    }
    bins.clear();
    __syncthreads();
    uint64_t total = 0;
    row.each([&](float logit) {
      const float d = row.distance(logit);
      const uint64_t weight = sample_weight(d);
      bins.add(sample_bin(d), weight);
      total += weight;
    });
    total = block_sum(total);
    // The cut to top_k, the cut to top_p, the draw: one copy of the code for all.
    Element element{};
#pragma unroll 1
    for (int turn = 0; turn < 3; turn++) {
      if ((turn == 0 && a.top_k == a.n) || (turn == 1 && a.top_p == 1)) continue;
      const uint64_t target = turn == 0   ? static_cast<uint64_t>(a.top_k) - 1
                              : turn == 1 ? sample_nucleus(a.top_p, total)
                                          : sample_target(a.seed, step, r, total);
      element = row.find(bins, digits, turn == 0, target);
      total = element.weight;
    }
    row.locate(element, a.y + r);
    __syncthreads();
  }
}

}  // namespace

void sample_token(const SampleTokenArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    launch(s, sample_token_kernel<decltype(t)>, stride_grid(s, a.rows, 1), dim3(kThreads), 0, a,
           kernels::sample_token.name);
  });
}

}  // namespace bnb::cuda
