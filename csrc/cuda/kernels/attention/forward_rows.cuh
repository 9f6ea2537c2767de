// Attention of 16-bit queries on the matrix units, after FlashAttention-2 (Dao 2023): what a block does with its rows,
// wherever those and their keys lie. A problem `P` says so:
//   kRuled                              whether a row may see less than all keys before its last one, or its scores
//   obey
//                                       a softcap or a sink
//   dim() rule() q() y() lse()          head size, ScoreRule, queries, results, and log of the sums or null
//   present()                           rows of the block that exist
//   query_at(row) head(row)             where a row of the block lies: times dim, the offset in q and y; its head
//   span(row) span()                    keys that it sees; that any of the rows sees
//   copy_queries(tile) copy_keys(...)   to shared memory, by cp.async
#pragma once
#include "cuda/kernels/attention/fragments.cuh"
#include "cuda/last_block.cuh"
#include "kernels/plan/residency.h"

namespace bnb::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kMostSplits = 64;   // of the keys of an item
constexpr size_t kStatic = 1024;  // bytes of shared memory beside what a launch asks for, and to spare
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <bool kDecode>
constexpr int kBlockRows = kDecode ? 16 : 16 * kWarps;

// A wide head has half of a thread's registers for its results, and tiles of 32 keys fit the 99 KB of shared memory
// that compute capabilities 8.6, 8.9 and 12.0 have.
template <int kDim, bool kDecode>
constexpr int kTileKeys = kIsWide<kDim> && !kDecode ? 32 : 64;

template <int kDim, bool kDecode>
constexpr size_t kSharedBytes = static_cast<size_t>(kBlockRows<kDecode> + 4 * kTileKeys<kDim, kDecode>) * kDim * 2;

struct Split {
  int64_t blocks;  // of rows in a head
  int splits;
  float* partials;    // [items * splits, kBlockRows * (kDim + 2)]: results, maxima, sums; null without splits
  int32_t* counters;  // [items]
};

__device__ __forceinline__ float shift_of(float top) { return top == kLowest ? 0.0f : top; }

// Adds partial results, each relative to its own maximum (a power of two): emit(row, d, sum, maximum, weight sum) for
// d < kDim of the first `rows` rows. The whole block calls it, with shared memory for kMergeFloats<kRows>.
template <int kRows>
constexpr int kMergeFloats = kRows * (kMostSplits + 3);
template <int kRows, int kDim, class Top, class Sum, class Out, class Emit>
__device__ void merge(float* weights, int parts, int rows, const Top& top_of, const Sum& sum_of, const Out& out_of,
                      const Emit& emit) {
  float *const tops = weights + kRows * (kMostSplits + 1), *const sums = tops + kRows;
  const int t = threadIdx.x;
  if (t < rows) {
    float top = kLowest, sum = 0;
    for (int p = 0; p < parts; p++) top = fmaxf(top, top_of(p, t));
    for (int p = 0; p < parts; p++) {
      const float w = exp2f(top_of(p, t) - shift_of(top));
      weights[t * (kMostSplits + 1) + p] = w;
      sum += w * sum_of(p, t);
    }
    tops[t] = top;
    sums[t] = sum;
  }
  __syncthreads();
  for (int e = t; e < rows * kDim; e += kThreads) {
    const int row = e / kDim, d = e % kDim;
    float x = 0;
    for (int p = 0; p < parts; p++) x = fmaf(weights[row * (kMostSplits + 1) + p], out_of(p, row, d), x);
    emit(row, d, x, tops[row], sums[row]);
  }
  __syncthreads();
}

// The rows of a block, or with splits a part of their keys.
template <class P, class T, int kDim, bool kDecode>
class Rows {
 public:
  static constexpr int kRows = kBlockRows<kDecode>, kKeys = kTileKeys<kDim, kDecode>;
  static constexpr int kWarpKeys = kDecode ? kKeys / kWarps : kKeys;
  static constexpr int kPartial = kRows * (kDim + 2);  // floats of a partial result
  static constexpr int kRoom = kDecode ? kWarps * kPartial : 0;
  static_assert((kRoom + kMergeFloats<kRows>)*sizeof(float) <= kSharedBytes<kDim, kDecode>);

  __device__ __forceinline__ Rows(const P& p, const Split& split, unsigned char* memory)
      : p_(p),
        split_(split),
        memory_(memory),
        item_(blockIdx.x / split.splits),
        part_(static_cast<int>(blockIdx.x % split.splits)) {}

  __device__ __forceinline__ void run() {
    keys_ = p_.span();
    const int64_t first = P::kRuled ? keys_.from / kKeys : 0, tiles = ceil_div(keys_.to, kKeys) - first;
    const int64_t per_part = ceil_div(tiles, split_.splits);
    begin_ = first + min(part_ * per_part, tiles);
    const int64_t end = min(begin_ + per_part, first + tiles);
    if (begin_ < end) {
      p_.template copy_queries<kRows, kThreads>(queries());
      copy(begin_);
    }
    Span seen[2];
    for (int i = 0; i < 2; i++) seen[i] = row(i) < p_.present() ? p_.span(row(i)) : Span{0, 0};
    // The keys that all of the warp's rows see.
    Span all = {0, 0};
    if (row0() + 15 < p_.present()) all = {P::kRuled ? p_.span(row0() + 15).from : 0, p_.span(row0()).to};

    State state;
    for (int64_t tile = begin_; tile < end; tile++) {
      cp_async_wait<0>();
      __syncthreads();
      if (tile + 1 < end) copy(tile + 1);
      T* const stage = stage_of(tile);
      float s[kWarpKeys / 8][4] = {};
      multiply_keys(s, TileOf{stage});
      weigh(s, state, seen, all, tile * kKeys + key0());
      multiply_values(state.out, s, TileOf{stage + kKeys * kDim});
    }
    for (int i = 0; i < 2; i++) state.sum[i] = quad_reduce(state.sum[i], Sum{});
    finish(state);
  }

 private:
  using TileOf = HalfTile<T, kDim>;
  // A lane's part of the results, with the maximum and the sum of weights of its two rows.
  struct State {
    float out[kDim / 8][4] = {}, top[2] = {kLowest, kLowest}, sum[2] = {};
  };

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  // Of the warp's accumulators; a lane's rows are two of them, and its keys begin at key0 in a tile.
  static __device__ __forceinline__ int row0() { return kDecode ? 0 : warp() * 16; }
  static __device__ __forceinline__ int key0() { return kDecode ? warp() * kWarpKeys : 0; }
  static __device__ __forceinline__ int row(int i) { return row0() + lane() / 4 + 8 * i; }

  static __device__ __forceinline__ int in_tile(int64_t key) {
    return static_cast<int>(max(int64_t{0}, min(key, int64_t{kWarpKeys})));
  }
  // As close as the powers of two that become weights.
  static __device__ __forceinline__ float tanh_of(float x) {
    const float e = exp2f(-2.0f * kLog2E * fabsf(x)), y = (1.0f - e) / (1.0f + e);
    return x < 0 ? -y : y;
  }

  // Shared memory: the queries, then two stages of keys and values; in the end partial results.
  __device__ __forceinline__ TileOf queries() const { return {reinterpret_cast<T*>(memory_)}; }
  __device__ __forceinline__ T* stage_of(int64_t tile) const {
    return reinterpret_cast<T*>(memory_) + kRows * kDim + (tile - begin_) % 2 * (2 * kKeys * kDim);
  }

  __device__ __forceinline__ void copy(int64_t tile) const {
    T* const stage = stage_of(tile);
    p_.template copy_keys<kKeys, kThreads>(TileOf{stage}, TileOf{stage + kKeys * kDim}, tile * kKeys, keys_);
    cp_async_commit();
  }

  __device__ __forceinline__ void multiply_keys(float (&s)[kWarpKeys / 8][4], const TileOf& keys) const {
    const TileOf q = queries();
#pragma unroll(kIsWide <kDim> ? 4 : kDim / 16)
    for (int d = 0; d < kDim; d += 16) {
      uint32_t qa[4], kb[4];
      q.a(qa, row0(), d);
#pragma unroll
      for (int n = 0; n < kWarpKeys; n += 16) {
        keys.b(kb, key0() + n, d);
        mma_pair<T>(s[n / 8], s[n / 8 + 1], qa, kb);
      }
    }
  }

  // Scores become weights relative to the new maxima, and what is there follows those. The keys begin at j0.
  __device__ __forceinline__ void weigh(float (&s)[kWarpKeys / 8][4], State& state, const Span (&seen)[2], Span all,
                                        int64_t j0) const {
    const float scale = p_.rule().scale * kLog2E, softcap = P::kRuled ? p_.rule().softcap * kLog2E : 0.0f;
    const bool whole = j0 + kWarpKeys <= all.to && (!P::kRuled || j0 >= all.from);
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int to = in_tile(seen[i].to - j0), from = P::kRuled ? in_tile(seen[i].from - j0) : 0;
      float best = kLowest;
#pragma unroll
      for (int n = 0; n < kWarpKeys / 8; n++)
        for (int c = 0; c < 2; c++) {
          float& x = s[n][2 * i + c];
          x *= scale;
          if constexpr (P::kRuled) {
            if (softcap > 0) x = softcap * tanh_of(x / softcap);
          }
          const int key = n * 8 + lane() % 4 * 2 + c;
          if (!whole && (key >= to || (P::kRuled && key < from))) x = kLowest;
          best = fmaxf(best, x);
        }
      const float before = state.top[i];
      state.top[i] = fmaxf(before, quad_reduce(best, [](float x, float y) { return fmaxf(x, y); }));
      const float shift = shift_of(state.top[i]);
      factor[i] = exp2f(before - shift);
      float total = 0;
#pragma unroll
      for (int n = 0; n < kWarpKeys / 8; n++)
        for (int c = 0; c < 2; c++) total += s[n][2 * i + c] = exp2f(s[n][2 * i + c] - shift);
      state.sum[i] = fmaf(state.sum[i], factor[i], total);
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; n++)
      for (int c = 0; c < 4; c++) state.out[n][c] *= factor[c / 2];
  }

  __device__ __forceinline__ void multiply_values(float (&out)[kDim / 8][4], const float (&s)[kWarpKeys / 8][4],
                                                  const TileOf& values) const {
#pragma unroll
    for (int n = 0; n < kWarpKeys; n += 16) {
      const auto &x = s[n / 8], &y = s[n / 8 + 1];
      const uint32_t weight[4] = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(y[0], y[1]), pack<T>(y[2], y[3])};
#pragma unroll
      for (int d = 0; d < kDim; d += 16) {
        uint32_t vb[4];
        values.b_across(vb, d, key0() + n);
        mma_pair<T>(out[d / 8], out[d / 8 + 1], weight, vb);
      }
    }
  }

  // Results go to y, or to scratch where the keys are split. In decoding, the warps' results of the same rows are
  // merged before.
  __device__ __forceinline__ void finish(const State& state) const {
    auto* const held = reinterpret_cast<float*>(memory_);
    float* const room = held + kRoom;
    float* const partials = split_.partials + item_ * split_.splits * kPartial;
    if constexpr (kDecode) {
      __syncthreads();
      keep(held + warp() * kPartial, state);
      __syncthreads();
      if (split_.splits == 1) return merge_all(room, held, kWarps, Store{*this});
      merge_all(room, held, kWarps, Keep{partials + part_ * kPartial});
    } else {
      if (split_.splits == 1) return store(state);
      keep(partials + part_ * kPartial, state);
    }
    if (last_of(split_.counters + item_, split_.splits)) merge_all(room, partials, split_.splits, Store{*this});
  }

  // What becomes of a merged element: it goes to a partial result,
  struct Keep {
    float* to;
    __device__ __forceinline__ void operator()(int row, int d, float x, float top, float sum) const {
      to[row * kDim + d] = x;
      if (d == 0) {
        to[kRows * kDim + row] = top;
        to[kRows * (kDim + 1) + row] = sum;
      }
    }
  };
  // or, divided by the sum of weights, to y.
  struct Store {
    const Rows& rows;
    __device__ __forceinline__ void operator()(int row, int d, float x, float top, float sum) const {
      const P& p = rows.p_;
      if (d >= p.dim()) return;
      const float factor = rows.divisor(row, top, sum);
      const int64_t at = p.query_at(row);
      static_cast<T*>(p.y())[at * p.dim() + d] = narrow<T>(x * factor);
      if (d == 0 && p.lse()) p.lse()[at] = (top + log2f(sum)) * kLn2;
    }
  };

  // What the sums of a row are multiplied by in the end, when its sink has joined them.
  __device__ __forceinline__ float divisor(int row, float& top, float& sum) const {
    float factor = 1.0f;
    if constexpr (P::kRuled) {
      if (p_.rule().sinks) {
        const float sink = p_.rule().sinks[p_.head(row)] * kLog2E, high = fmaxf(top, sink);
        factor = exp2f(top - shift_of(high));
        sum = fmaf(sum, factor, exp2f(sink - shift_of(high)));
        top = high;
      }
    }
    return sum == 0.0f ? 0.0f : factor / sum;
  }

  // What this lane holds, to a partial result.
  __device__ __forceinline__ void keep(float* to, const State& state) const {
    const Keep one{to};
#pragma unroll
    for (int n = 0; n < kDim / 8; n++)
      for (int c = 0; c < 4; c++)
        one(row(c / 2), n * 8 + lane() % 4 * 2 + c % 2, state.out[n][c], state.top[c / 2], state.sum[c / 2]);
  }

  // And to y, where the warp has seen all keys of its rows.
  __device__ __forceinline__ void store(const State& state) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (row(i) >= p_.present()) continue;
      const int64_t at = p_.query_at(row(i));
      float top = state.top[i], sum = state.sum[i];
      const float inverse = divisor(row(i), top, sum);
      auto* const y = static_cast<T*>(p_.y()) + at * p_.dim();
#pragma unroll
      for (int n = 0; n < kDim / 8; n++) {
        const Vec<T, 2> pair = {
            {narrow<T>(state.out[n][2 * i] * inverse), narrow<T>(state.out[n][2 * i + 1] * inverse)}};
        if (n * 8 < p_.dim()) store_vec(y + n * 8 + lane() % 4 * 2, pair);
      }
      if (p_.lse() && lane() % 4 == 0) p_.lse()[at] = (top + log2f(sum)) * kLn2;
    }
  }

  template <class Emit>
  __device__ __forceinline__ void merge_all(float* room, const float* from, int parts, const Emit& emit) const {
    const auto stat = [=](int which) {
      return [=](int p, int row) { return from[p * kPartial + kRows * (kDim + which) + row]; };
    };
    merge<kRows, kDim>(
        room, parts, p_.present(), stat(0), stat(1),
        [=](int p, int row, int d) { return from[p * kPartial + row * kDim + d]; }, emit);
  }

  const P p_;
  const Split& split_;
  unsigned char* const memory_;
  const int64_t item_;
  const int part_;
  Span keys_ = {0, 0};  // that any row sees
  int64_t begin_ = 0;   // this part's first tile of them
};

// How the keys of `items` blocks of rows are split over thread blocks, so that those fill the card: as many as
// multiprocessors hold, which registers allow two of, and no more parts than there are tiles of keys. False where the
// kernel does not fit.
template <int kDim, bool kDecode>
bool split_keys(CudaStream& s, int64_t blocks, int64_t items, int64_t most_keys, Split& split) {
  constexpr int kRows = kBlockRows<kDecode>, kKeys = kTileKeys<kDim, kDecode>;
  constexpr size_t kShared = kSharedBytes<kDim, kDecode>;
  if (kShared + kStatic > static_cast<size_t>(s.gpu.shared_per_block)) return false;
  split = {.blocks = blocks, .splits = 1, .partials = nullptr, .counters = s.counters};
  const int64_t blocks_at_once = int64_t{s.gpu.sms} * min(resident_blocks(s.gpu, kThreads, 255, kShared + kStatic), 2);
  const int64_t wanted =
      min(min(blocks_at_once / max(items, int64_t{1}), ceil_div(most_keys, kKeys)), int64_t{kMostSplits});
  if (wanted > 1 && items <= kCounters) {
    split.splits = static_cast<int>(wanted);
    split.partials =
        static_cast<float*>(s.scratch(static_cast<size_t>(items) * split.splits * kRows * (kDim + 2) * sizeof(float)));
  }
  return items * split.splits <= 0x7fffffff;
}

}  // namespace
}  // namespace bnb::cuda
