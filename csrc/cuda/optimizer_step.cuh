// The frame of an optimizer step, for both kinds of state. States says how the states of a tile, the elements that a
// warp updates at once, reach float32 registers and go back:
//   kItems                      elements of a lane: 4 or 8, for tiles of 128 or 256
//   blocks_per_sm(rule)         of kThreads threads, as many as their registers allow
//   Tables                      what it keeps in shared memory, with load()
//   Raw<Rule>                   the bytes of a lane's states; fetch(job, tile) starts the loads
//   decode<Rule>(...)           -> float32
//   store<Rule>(...)            float32 -> global memory; the whole warp is there
//
// Layout    jobs own runs of chunks of whole tiles. Lane l of a warp holds elements 4 l .. 4 l + 3 of its tile and
//           those 128 further on, so that vectors of four are dense whatever the dtype; addresses that such vectors
//           cannot use, and the last tile of a job, go element by element.
// Work      one warp per tile, in static strides over all tiles of all jobs; the job is searched for when a warp
//           leaves one. No barrier after the tables are loaded. There is a kernel, and so a launch, per rule: the
//           parameters of an optimizer share theirs. Dtypes are chosen per access, because a branch that all lanes
//           agree on costs less than nine copies of the code. When a job needs norms: a launch with one block per
//           chunk, one with a block per job, then the step.
// Numerics  kernels/optimizer_rules.h in float32, p rounded once when stored. Squares are added in float32 over the
//           elements of a lane in a tile, in float64 beyond that, in a fixed order. The count of elements that were
//           left alone is a whole number below 2^53, so its atomic additions are exact in any order.
// Needs     OptimizerArgs with non-empty jobs.
#pragma once
#include "cuda/ptx.cuh"
#include "kernels/optimizer_rules.h"

namespace bnb::cuda {

constexpr float kMaxFloat = 3.402823466e+38f;

// What the rules compute with.
struct Scalar {
  float v;
};
__device__ __forceinline__ Scalar operator+(Scalar a, Scalar b) { return {a.v + b.v}; }
__device__ __forceinline__ Scalar operator-(Scalar a, Scalar b) { return {a.v - b.v}; }
__device__ __forceinline__ Scalar operator*(Scalar a, Scalar b) { return {a.v * b.v}; }
__device__ __forceinline__ Scalar operator/(Scalar a, Scalar b) { return {divide_approx(a.v, b.v)}; }
__device__ __forceinline__ Scalar fma(Scalar a, Scalar b, Scalar c) { return {fmaf(a.v, b.v, c.v)}; }
__device__ __forceinline__ Scalar sqrt(Scalar x) { return {sqrt_approx(x.v)}; }
__device__ __forceinline__ bool lt(Scalar a, Scalar b) { return a.v < b.v; }
__device__ __forceinline__ Scalar select(bool c, Scalar a, Scalar b) { return c ? a : b; }

__device__ __forceinline__ RuleConstants<Scalar> constants(const OptimizerJob& job, float trust_ratio) {
  return {job.scalars, trust_ratio, [](float x) { return Scalar{x}; }};
}

// A tile as one lane sees it. N elements are the lane's, 4 or 8.
template <int N>
struct Tile {
  static constexpr int kTile = N * kWarp;
  static constexpr int kPerChunk = kOptimizerChunk / kTile;
  int64_t index, at;  // of the tile, and of its first element, in the parameter
  int n;              // elements, at most kTile
  int lane;

  __device__ Tile(const OptimizerJob& job, int64_t tile, int lane_of_warp)
      : index(tile),
        at(tile * kTile),
        n(static_cast<int>(min(job.n - tile * kTile, int64_t{kTile}))),
        lane(lane_of_warp) {}
  // Item k of this lane lies offset(k) behind its first; items 0 and 4 begin vectors of four. One pointer per lane, as
  // constants need no registers.
  template <class T>
  __device__ __forceinline__ T* mine(T* first) const {
    return first + lane * 4;
  }
  __device__ __forceinline__ static constexpr int offset(int k) { return k / 4 * (4 * kWarp) + k % 4; }
  __device__ __forceinline__ bool has(int k) const { return offset(k) < n - lane * 4; }
  // Whether vectors of four elements of this size may be used at `first`, the address of the tile.
  __device__ __forceinline__ bool whole(const void* first, size_t element_size) const {
    return n == kTile && reinterpret_cast<uintptr_t>(first) % (4 * element_size) == 0;
  }
};

// The items of a lane as they lie in memory: loaded early, widened when they are needed.
template <int N>
struct RawItems {
  uint32_t word[N];  // float32, or pairs of 16-bit elements in the first half
  DType dtype;
};

template <class T, int N>
__device__ __forceinline__ void fetch_each(const T* first, const Tile<N>& t, float pad, RawItems<N>& raw) {
  raw.dtype = DType::float32;
#pragma unroll
  for (int k = 0; k < N; k++) raw.word[k] = float_bits(t.has(k) ? widen(t.mine(first)[t.offset(k)]) : pad);
}

// Elements beyond the end become `pad`.
template <int N>
__device__ __forceinline__ RawItems<N> fetch_items(const void* values, DType dtype, const Tile<N>& t, float pad) {
  RawItems<N> raw;
  raw.dtype = dtype;
  if (dtype == DType::float32) {
    const auto* first = static_cast<const float*>(values) + t.at;
    if (t.whole(first, sizeof(float))) {
      for (int h = 0; h < N / 4; h++) {
        const auto v = load_vec<4>(reinterpret_cast<const uint32_t*>(t.mine(first)) + t.offset(4 * h));
        for (int k = 0; k < 4; k++) raw.word[4 * h + k] = v.v[k];
      }
    } else {
      fetch_each(first, t, pad, raw);
    }
  } else {
    const auto* first = static_cast<const uint16_t*>(values) + t.at;
    if (t.whole(first, sizeof(uint16_t))) {
      for (int h = 0; h < N / 4; h++) {
        const auto v = load_vec<2>(reinterpret_cast<const uint32_t*>(t.mine(first) + t.offset(4 * h)));
        for (int k = 0; k < 2; k++) raw.word[2 * h + k] = v.v[k];
      }
    } else if (dtype == DType::float16) {
      fetch_each(reinterpret_cast<const f16*>(first), t, pad, raw);
    } else {
      fetch_each(reinterpret_cast<const bf16*>(first), t, pad, raw);
    }
  }
  return raw;
}

template <int N>
__device__ __forceinline__ void widen_items(const RawItems<N>& raw, float (&x)[N]) {
  if (raw.dtype == DType::float32) {
    for (int k = 0; k < N; k++) x[k] = float_from_bits(raw.word[k]);
  } else if (raw.dtype == DType::float16) {
    for (int k = 0; k < N; k++) x[k] = widen(f16{static_cast<uint16_t>(raw.word[k / 2] >> (16 * (k % 2)))});
  } else {
    for (int k = 0; k < N; k++) x[k] = widen(bf16{static_cast<uint16_t>(raw.word[k / 2] >> (16 * (k % 2)))});
  }
}

template <class T, int N>
__device__ __forceinline__ void store_items(const float (&x)[N], T* first, const Tile<N>& t) {
  if (t.whole(first, sizeof(T))) {
    for (int h = 0; h < N / 4; h++) {
      Vec<T, 4> v;
      for (int k = 0; k < 4; k++) v.v[k] = narrow<T>(x[4 * h + k]);
      store_vec(t.mine(first) + t.offset(4 * h), v);
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; k++)
      if (t.has(k)) t.mine(first)[t.offset(k)] = narrow<T>(x[k]);
  }
}

template <int N>
__device__ __forceinline__ void store_items(const float (&x)[N], void* values, DType dtype, const Tile<N>& t) {
  if (dtype == DType::float32) {
    store_items(x, static_cast<float*>(values) + t.at, t);
  } else if (dtype == DType::float16) {
    store_items(x, static_cast<f16*>(values) + t.at, t);
  } else {
    store_items(x, static_cast<bf16*>(values) + t.at, t);
  }
}

// Whether an element takes part: all new states finite, and not a zero gradient that is to be skipped. Counts those
// that are not finite. An element beyond the end has a NaN for its gradient, which no rule lets pass: it is counted.
template <int kStates>
__device__ __forceinline__ bool takes_part(float raw, const Scalar* s, float skip_below, int& nonfinite) {
  bool finite = true;
#pragma unroll
  for (int j = 0; j < kStates; j++) finite = finite && fabsf(s[j].v) <= kMaxFloat;
  const bool skipped = fabsf(raw) <= skip_below;
  nonfinite += !finite && !skipped;
  return finite && !skipped;
}

// Updates one tile, returns how many of this lane's elements were not finite. The whole warp calls it.
template <class States, class Rule>
__device__ __forceinline__ int step_tile(const typename States::Tables& tables, const OptimizerJob& job,
                                         const RuleConstants<Scalar>& c, float step, const Tile<States::kItems>& t) {
  const auto raw_p = fetch_items(job.p, job.p_dtype, t, 0.0f);
  const auto raw_g = fetch_items(job.g, job.g_dtype, t, __int_as_float(0x7fc00000));
  const auto raw_s = States::template fetch<Rule>(job, t);
  const float decay = job.scalars.decay, grad_scale = job.scalars.grad_scale, skip_below = job.scalars.skip_below;
  constexpr int N = States::kItems;
  float p[N], g[N], s[Rule::kStates][N];
  widen_items(raw_p, p);
  widen_items(raw_g, g);
  States::template decode<Rule>(tables, raw_s, t, s);
  bool updated = false;
  int nonfinite = 0;
#pragma unroll
  for (int k = 0; k < N; k++) {
    Scalar now[Rule::kStates];
    for (int j = 0; j < Rule::kStates; j++) now[j].v = s[j][k];
    const Scalar direction = Rule::direction(c, Scalar{p[k]}, Scalar{g[k] * grad_scale}, now);
    const bool take = takes_part<Rule::kStates>(g[k], now, skip_below, nonfinite);
    for (int j = 0; j < Rule::kStates; j++) s[j][k] = take ? now[j].v : s[j][k];
    p[k] = take ? fmaf(-step, direction.v, p[k] * decay) : p[k];
    updated = updated || take;
  }
  if (t.n < Tile<N>::kTile)
    for (int k = 0; k < N; k++) nonfinite -= !t.has(k);
  if (!__any_sync(kFullMask, updated)) return nonfinite;
  store_items(p, job.p, job.p_dtype, t);
  States::template store<Rule>(tables, job, t, s);
  return nonfinite;
}

template <class States>
__device__ __forceinline__ typename States::Tables& shared_tables() {
  BNB_DYNAMIC_SHARED(memory);
  return *reinterpret_cast<typename States::Tables*>(memory);
}

// The jobs of one rule.
template <class States, class Rule>
__global__ void __launch_bounds__(States::kThreads, States::blocks_per_sm(Rule::kRule)) step_kernel(OptimizerArgs a) {
  auto& tables = shared_tables<States>();
  tables.load();
  __syncthreads();
  constexpr bool kIsLars = Rule::kRule == UpdateRule::lars;
  constexpr int kTilesPerChunk = Tile<States::kItems>::kPerChunk;
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = global_threads() / kWarp, tile_count = a.chunk_count * kTilesPerChunk;
  int nonfinite = 0;  // of this lane: a card's memory does not hold 2^31 elements for each
  for (int64_t tile = global_thread() / kWarp; tile < tile_count;) {
    const int64_t j = job_of_chunk(a, tile / kTilesPerChunk);
    const OptimizerJob& job = a.jobs[j];
    // The job's own count; its end and beginning are read again afterwards, so that they take no registers in the loop.
    int64_t at = tile - job.first_chunk * kTilesPerChunk;
    if (job.rule == Rule::kRule) {
      const float scale = a.scales != nullptr ? a.scales[j] : 1.0f;
      const auto c = constants(job, kIsLars ? scale : 1.0f);
      const float step = kIsLars ? job.scalars.step : job.scalars.step * scale;
      const int64_t end = ceil_div(job.n, Tile<States::kItems>::kTile);
#pragma unroll 1
      for (; at < end; at += warps)
        nonfinite += step_tile<States, Rule>(tables, job, c, step, Tile<States::kItems>(job, at, lane));
    }
    // What is left of the job's last chunk holds nothing.
    const int64_t next = ceil_div(job.n, kOptimizerChunk) * kTilesPerChunk;
    if (at < next) at += ceil_div(next - at, warps) * warps;
    tile = job.first_chunk * kTilesPerChunk + at;
  }
  const int64_t all = warp_sum(int64_t{nonfinite});
  if (lane == 0 && all != 0) atomicAdd(a.nonfinite, static_cast<double>(all));
}

// --- norms
// -------------------------------------------------------------------------------------------------------------

// Adds the squares of the parameter and of the direction (lars: of the gradient) over the elements that take part.
template <class States, class Rule>
__device__ __forceinline__ void square_tile(const typename States::Tables& tables, const OptimizerJob& job,
                                            const RuleConstants<Scalar>& c, const Tile<States::kItems>& t,
                                            double (&sums)[2]) {
  const auto raw_p = fetch_items(job.p, job.p_dtype, t, 0.0f);
  const auto raw_g = fetch_items(job.g, job.g_dtype, t, __int_as_float(0x7fc00000));
  const auto raw_s = States::template fetch<Rule>(job, t);
  constexpr int N = States::kItems;
  float p[N], g[N], s[Rule::kStates][N];
  widen_items(raw_p, p);
  widen_items(raw_g, g);
  States::template decode<Rule>(tables, raw_s, t, s);
  float p2 = 0, u2 = 0;
  int nonfinite = 0;
#pragma unroll
  for (int k = 0; k < N; k++) {
    Scalar now[Rule::kStates];
    for (int j = 0; j < Rule::kStates; j++) now[j].v = s[j][k];
    const Scalar scaled{g[k] * job.scalars.grad_scale};
    Scalar u = Rule::direction(c, Scalar{p[k]}, scaled, now);
    if constexpr (Rule::kRule == UpdateRule::lars) u = scaled;
    const bool take = takes_part<Rule::kStates>(g[k], now, job.scalars.skip_below, nonfinite);
    p2 += take ? p[k] * p[k] : 0.0f;
    u2 += take ? u.v * u.v : 0.0f;
  }
  sums[0] += static_cast<double>(p2);
  sums[1] += static_cast<double>(u2);
}

constexpr int kNormThreads = 256;

// partials[chunk] of the jobs of one rule that need norms.
template <class States, class Rule>
__global__ void __launch_bounds__(kNormThreads, 2) squares_kernel(OptimizerArgs a) {
  auto& tables = shared_tables<States>();
  tables.load();
  __syncthreads();
  constexpr int kTilesPerChunk = Tile<States::kItems>::kPerChunk;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t chunk = blockIdx.x; chunk < a.chunk_count; chunk += gridDim.x) {
    const OptimizerJob& job = a.jobs[job_of_chunk(a, chunk)];
    if (job.rule != Rule::kRule || !needs_norms(job)) continue;
    const auto c = constants(job, 1.0f);
    const int64_t begin = (chunk - job.first_chunk) * kTilesPerChunk;
    const int64_t end = min(begin + kTilesPerChunk, ceil_div(job.n, Tile<States::kItems>::kTile));
    double sums[2] = {};
#pragma unroll 1
    for (int64_t tile = begin + warp; tile < end; tile += kNormThreads / kWarp)
      square_tile<States, Rule>(tables, job, c, Tile<States::kItems>(job, tile, lane), sums);
    sums[0] = block_sum(sums[0]);
    sums[1] = block_sum(sums[1]);
    if (threadIdx.x == 0) {
      a.partials[2 * chunk] = sums[0];
      a.partials[2 * chunk + 1] = sums[1];
    }
  }
}

// scales[job]: one block adds the partials of a job.
static __global__ void __launch_bounds__(kNormThreads) scales_kernel(OptimizerArgs a) {
  for (int64_t j = blockIdx.x; j < a.job_count; j += gridDim.x) {
    const OptimizerJob& job = a.jobs[j];
    if (!needs_norms(job)) {
      if (threadIdx.x == 0) a.scales[j] = 1.0f;
      continue;
    }
    const int64_t end = j + 1 < a.job_count ? a.jobs[j + 1].first_chunk : a.chunk_count;
    double p = 0, u = 0;
    for (int64_t chunk = job.first_chunk + threadIdx.x; chunk < end; chunk += kNormThreads) {
      p += a.partials[2 * chunk];
      u += a.partials[2 * chunk + 1];
    }
    p = block_sum(p);
    u = block_sum(u);
    if (threadIdx.x == 0) a.scales[j] = scale_from_norms(job, ::sqrt(p), ::sqrt(u));
  }
}

template <class States>
void optimizer_step(const OptimizerArgs& a, CudaStream& s) {
  const auto blocks = [](int64_t wanted, int64_t most) {
    return dim3(static_cast<unsigned>(wanted < most ? wanted : most));
  };
  const auto for_each_rule = [&](const auto& f) {
    for (int rule = 0; rule <= static_cast<int>(UpdateRule::lars); rule++)
      if (a.rules >> rule & 1) visit_rule(static_cast<UpdateRule>(rule), f);
  };
  constexpr size_t kShared = States::kSharedBytes;
  if (a.partials != nullptr) {
    for_each_rule([&](auto rule) {
      launch(s, squares_kernel<States, decltype(rule)>, blocks(a.chunk_count, int64_t{s.gpu.sms} * 8), kNormThreads,
             kShared, a);
    });
    launch(s, scales_kernel, blocks(a.job_count, 65535), kNormThreads, 0, a);
  }
  const int64_t tiles = a.chunk_count * Tile<States::kItems>::kPerChunk;
  for_each_rule([&](auto rule) {
    using Rule = decltype(rule);
    const int64_t resident = int64_t{s.gpu.sms} * States::blocks_per_sm(Rule::kRule);
    launch(s, step_kernel<States, Rule>, blocks(ceil_div(tiles, States::kThreads / kWarp), resident), States::kThreads,
           kShared, a);
  });
}

}  // namespace bnb::cuda
