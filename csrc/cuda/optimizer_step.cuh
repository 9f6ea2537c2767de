// The frame of an optimizer step, for both kinds of state. States says how the states of a tile, the elements that a
// warp updates at once, reach float32 registers and go back:
//   kItems                      elements of a lane: 4 or 8, for tiles of 128 or 256
//   blocks_per_sm(rule)         of kThreads threads, as many as their registers allow
//   Tables                      what it keeps in shared memory, with load()
//   aligned<Rule>(job)          whether its vectors fit the states of a job
//   Plain<Rule, Run>            the states of plain tiles, of which a lane has Run neighbouring elements: load(tables,
//                               tile, s) decodes; plain(top, fine), given the largest magnitudes of the lane and
//                               whether its parameters are finite, is whether store(tables, tile, s, top) may follow,
//                               and all lanes agree on it
//   Single<Rule>(job, tile)     any tile, by elements: load(tables, state, i); set_scales(top), and then
//                               store(tables, state, i, value)
//   Raw<Rule>, fetch, decode    the bytes of a lane's states for the norms, and what they stand for
//
// Layout    jobs own runs of chunks of whole tiles. A lane has as many neighbouring elements of a tile as 16 bytes of
//           the parameter hold, or 4 where the norms are computed; for those beyond, it goes on behind the warp's.
// Work      one warp per tile, in static strides over all tiles of all jobs; the job is searched for when a warp
//           leaves one. No barrier after the tables are loaded. There is a kernel, and so a launch, per rule: the
//           parameters of an optimizer share theirs. Plain tiles have a loop for each dtype that parameter and gradient
//           have in common, chosen per job: whole tiles in vectors, of which every element takes part. All others are
//           for a function out of line, by single elements: the end of a parameter, addresses without alignment, two
//           dtypes, gradients of 0 to be skipped, values that are not finite. When a job needs norms: a launch with
//           one block per chunk, one with a block per job, then the step.
// Numerics  kernels/optimizer_rules.h in float32, p rounded once when stored. Squares are added in float32 over the
//           elements of a lane in a tile, in float64 beyond that, in a fixed order. The count of elements that were
//           left alone is a whole number below 2^53, so its atomic additions are exact in any order.
// Needs     OptimizerArgs with non-empty jobs.
#pragma once
#include "cuda/map.cuh"
#include "cuda/ptx.cuh"
#include "kernels/optimizer_rules.h"
#include "kernels/plan/residency.h"

namespace bnb::cuda {

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

__device__ __forceinline__ float load_one(const void* values, DType dtype, int64_t i) {
  if (dtype == DType::float32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  return dtype == DType::float16 ? widen(f16{bits}) : widen(bf16{bits});
}
__device__ __forceinline__ void store_one(void* values, DType dtype, int64_t i, float x) {
  if (dtype == DType::float32)
    static_cast<float*>(values)[i] = x;
  else
    static_cast<uint16_t*>(values)[i] = dtype == DType::float16 ? narrow<f16>(x).bits : narrow<bf16>(x).bits;
}

// Whether an element takes part: all new states and what follows from them finite, and not a zero gradient that is to
// be skipped. Counts those that are not finite. An element beyond the end has a NaN for its gradient, which no rule
// lets pass: it is counted.
template <int kStates>
__device__ __forceinline__ bool takes_part(float raw, const Scalar* s, bool finite, float skip_below, int& nonfinite) {
#pragma unroll
  for (int j = 0; j < kStates; j++) finite = finite && fabsf(s[j].v) <= kLargestFloat;
  const bool skipped = fabsf(raw) <= skip_below;
  nonfinite += !finite && !skipped;
  return finite && !skipped;
}

template <class States>
__device__ __forceinline__ typename States::Tables& shared_tables() {
  BNB_DYNAMIC_SHARED(memory);
  return *reinterpret_cast<typename States::Tables*>(memory);
}

// What multiplies the direction, and the constants of a rule. `scale` is that of the job.
template <class Rule>
struct Scaled {
  static constexpr bool kIsLars = Rule::kRule == UpdateRule::lars;
  RuleConstants<Scalar> c;
  float step;
  __device__ __forceinline__ Scaled(const OptimizerJob& job, float scale)
      : c(constants(job, kIsLars ? scale : 1.0f)), step(kIsLars ? job.scalars.step : job.scalars.step * scale) {}
};

// Updates any one tile, a row of 32 elements at a time; once to see what the new states are, and once more to store
// them. Returns how many of this lane's elements were not finite. The whole warp calls it.
template <class States, class Rule>
BNB_OUT_OF_LINE int step_tile(const OptimizerJob& job, float scale, int64_t tile) {
  constexpr int kTile = States::kItems * kWarp, kStates = Rule::kStates;
  const auto& tables = shared_tables<States>();
  const auto [c, step] = Scaled<Rule>(job, scale);
  const int64_t begin = tile * kTile + threadIdx.x % kWarp, end = min(job.n, (tile + 1) * kTile);
  typename States::template Single<Rule> states(job, tile);

  const auto update = [&](int64_t i, float& p, Scalar* s, int& nonfinite) {
    const float g = load_one(job.g, job.g_dtype, i);
    p = load_one(job.p, job.p_dtype, i);
    Scalar now[kStates];
    for (int j = 0; j < kStates; j++) now[j].v = s[j].v = states.load(tables, j, i);
    const Scalar direction = Rule::direction(c, Scalar{p}, Scalar{g * job.scalars.grad_scale}, now);
    const float moved = fmaf(-step, direction.v, p * job.scalars.decay);
    const bool finite = fabsf(moved) <= largest(job.p_dtype);
    const bool take = takes_part<kStates>(g, now, finite, job.scalars.skip_below, nonfinite);
    for (int j = 0; j < kStates; j++) s[j].v = take ? now[j].v : s[j].v;
    p = take ? moved : p;
    return take;
  };
  bool updated = false;
  int nonfinite = 0, again = 0;
  float p, top[kStates] = {};
  Scalar s[kStates];
#pragma unroll 1
  for (int64_t i = begin; i < end; i += kWarp) {
    updated = update(i, p, s, nonfinite) || updated;
    for (int j = 0; j < kStates; j++) top[j] = max_magnitude(top[j], s[j].v);
  }
  if (!__any_sync(kFullMask, updated)) return nonfinite;
  states.set_scales(top);
#pragma unroll 1
  for (int64_t i = begin; i < end; i += kWarp) {
    update(i, p, s, again);
    store_one(job.p, job.p_dtype, i, p);
    for (int j = 0; j < kStates; j++) states.store(tables, j, i, s[j].v);
  }
  return nonfinite;
}

// Whether the tiles of a job but a shorter last one are read and written as vectors, and no gradient of 0 is skipped.
template <class States, class Rule>
__device__ __forceinline__ bool has_plain_tiles(const OptimizerJob& job) {
  const auto bits = reinterpret_cast<uintptr_t>(job.p) | reinterpret_cast<uintptr_t>(job.g);
  return job.p_dtype == job.g_dtype && job.scalars.skip_below < 0 && bits % 16 == 0 &&
         States::template aligned<Rule>(job);
}

// Neighbouring elements of a lane of a plain tile: as many as 16 bytes of the parameter hold. Those that are missing to
// N lie further on by as many for every lane.
template <class T, int N>
constexpr int kLaneRun = kPiece<T, N>;

template <class T, int N>
__device__ __forceinline__ void load_plain(const T* first, float (&x)[N]) {
  constexpr int R = kLaneRun<T, N>;
#pragma unroll
  for (int i = 0; i < N; i += R) {
    float part[R];
    load_whole_floats(first + i * kWarp, part);
    for (int k = 0; k < R; k++) x[i + k] = part[k];
  }
}

template <class T, int N>
__device__ __forceinline__ void store_plain(T* first, const float (&x)[N]) {
  constexpr int R = kLaneRun<T, N>;
#pragma unroll
  for (int i = 0; i < N; i += R) {
    float part[R];
    for (int k = 0; k < R; k++) part[k] = x[i + k];
    store_floats(first + i * kWarp, R, true, part);
  }
}

// Updates plain tiles from `tile` on, every `warps`-th, up to the first in which some new value is not finite: in all
// others every element takes part. Returns the first tile that is not done. There is no call in its loop, around which
// all the job's pointers would have to be kept.
template <class T, class States, class Rule>
__device__ __forceinline__ int64_t step_plain_tiles(const OptimizerJob& job, float scale, int64_t tile, int64_t warps) {
  constexpr int N = States::kItems, kTile = N * kWarp;
  const auto& tables = shared_tables<States>();
  const auto [c, step] = Scaled<Rule>(job, scale);
  const float decay = job.scalars.decay, grad_scale = job.scalars.grad_scale;
  const int lane = threadIdx.x % kWarp;
  T* const all_p = static_cast<T*>(job.p) + lane * kLaneRun<T, N>;
  const T* const all_g = static_cast<const T*>(job.g) + lane * kLaneRun<T, N>;
  const typename States::template Plain<Rule, kLaneRun<T, N>> states(job, lane);
  // Tiles of one parameter: a card's memory does not hold 2^31.
  const int count = static_cast<int>(job.n / kTile), turn = static_cast<int>(warps);
  if (tile >= count) return tile;
  int at = static_cast<int>(tile);
#pragma unroll 1
  for (; at < count; at += turn) {
    const int64_t first = int64_t{at} * kTile;
    float p[N], g[N], s[Rule::kStates][N];
    load_plain(all_p + first, p);
    load_plain(all_g + first, g);
    states.load(tables, at, s);
#pragma unroll
    for (int k = 0; k < N; k++) {
      Scalar now[Rule::kStates];
      for (int j = 0; j < Rule::kStates; j++) now[j].v = s[j][k];
      const Scalar direction = Rule::direction(c, Scalar{p[k]}, Scalar{g[k] * grad_scale}, now);
      for (int j = 0; j < Rule::kStates; j++) s[j][k] = now[j].v;
      p[k] = fmaf(-step, direction.v, p[k] * decay);
    }
    float top[Rule::kStates], top_p = p[0];
    for (int k = 1; k < N; k++) top_p = max_magnitude(top_p, p[k]);
#pragma unroll
    for (int j = 0; j < Rule::kStates; j++) {
      top[j] = s[j][0];
      for (int k = 1; k < N; k++) top[j] = max_magnitude(top[j], s[j][k]);
    }
    if (!states.plain(top, fabsf(top_p) <= kLargest<T>)) break;
    store_plain(all_p + first, p);
    states.store(tables, at, s, top);
  }
  return at;
}

// The jobs of one rule.
template <class States, class Rule>
__global__ void __launch_bounds__(States::kThreads, States::blocks_per_sm(Rule::kRule)) step_kernel(OptimizerArgs a) {
  shared_tables<States>().load();
  __syncthreads();
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
      const bool plain = has_plain_tiles<States, Rule>(job);
      const int64_t end = ceil_div(job.n, Tile<States::kItems>::kTile);
#pragma unroll 1
      while (at < end) {
        if (plain) {
          if (job.p_dtype == DType::float32)
            at = step_plain_tiles<float, States, Rule>(job, scale, at, warps);
          else if (job.p_dtype == DType::float16)
            at = step_plain_tiles<f16, States, Rule>(job, scale, at, warps);
          else
            at = step_plain_tiles<bf16, States, Rule>(job, scale, at, warps);
          if (at >= end) break;
        }
        nonfinite += step_tile<States, Rule>(job, scale, at);
        at += warps;
      }
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
    const bool finite = fabsf(p[k]) <= kLargestFloat && fabsf(u.v) <= kLargestFloat;
    const bool take = takes_part<Rule::kStates>(g[k], now, finite, job.scalars.skip_below, nonfinite);
    p2 += take ? p[k] * p[k] : 0.0f;
    u2 += take ? u.v * u.v : 0.0f;
  }
  sums[0] += static_cast<double>(p2);
  sums[1] += static_cast<double>(u2);
}

constexpr int kNormThreads = 256, kNormRegisters = 128;

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
      const int64_t resident = int64_t{s.gpu.sms} * resident_blocks(s.gpu, kNormThreads, kNormRegisters, kShared);
      launch(s, squares_kernel<States, decltype(rule)>, blocks(a.chunk_count, resident), kNormThreads, kShared, a);
    });
    launch(s, scales_kernel, blocks(a.job_count, 65535), kNormThreads, 0, a);
  }
  const int64_t tiles = a.chunk_count * Tile<States::kItems>::kPerChunk;
  for_each_rule([&](auto rule) {
    using Rule = decltype(rule);
    constexpr int kRegisters = 65536 / (States::blocks_per_sm(Rule::kRule) * States::kThreads) / 8 * 8;
    const int64_t resident = int64_t{s.gpu.sms} * resident_blocks(s.gpu, States::kThreads, kRegisters, kShared);
    launch(s, step_kernel<States, Rule>, blocks(ceil_div(tiles, States::kThreads / kWarp), resident), States::kThreads,
           kShared, a);
  });
}

}  // namespace bnb::cuda
