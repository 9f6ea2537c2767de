// Attention of 16-bit queries on the matrix units, after FlashAttention-2 (Dao 2023), for prefill and decoding.
//
// Layout    a block takes 64 rows (prefill: 16 to a warp) or up to 16 rows (decoding: the queries of a group), and
//           passes over tiles of 64 keys (32 in prefill with a wide head), which come through two stages of shared
//           memory by cp.async. In decoding each warp takes 16 keys of a tile, so that the loads are shared by the
//           whole group.
// Work      scores, exponentials and weights stay in registers. Where rows are too few to fill the card, the keys are
//           split over blocks: partial results go to scratch memory, and the last block of an item to finish merges
//           them in order. Tiles that no row sees are not read.
// Numerics  scores and statistics in float32, powers of two in place of exponentials; weights are rounded to the
//           dtype for the second product, sums are not. Merging in order makes the result independent of timing.
// Needs     compute capability 8.0, dim a multiple of 8 and at most 256, 16-byte aligned tensors.
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
template <class T, int kDim, bool kDecode>
class Rows {
 public:
  static constexpr int kRows = kBlockRows<kDecode>, kKeys = kTileKeys<kDim, kDecode>;
  static constexpr int kWarpKeys = kDecode ? kKeys / kWarps : kKeys;
  static constexpr int kPartial = kRows * (kDim + 2);  // floats of a partial result
  static constexpr int kRoom = kDecode ? kWarps * kPartial : 0;
  static_assert((kRoom + kMergeFloats<kRows>)*sizeof(float) <= kSharedBytes<kDim, kDecode>);

  __device__ __forceinline__ Rows(const AttentionArgs& a, const Split& split, unsigned char* memory)
      : a_(a),
        split_(split),
        memory_(memory),
        item_(blockIdx.x / split.splits),
        part_(static_cast<int>(blockIdx.x % split.splits)),
        h_(a, item_ / split.blocks),
        // Blocks of the last queries come first: those see the most keys.
        first_((split.blocks - 1 - item_ % split.blocks) * kRows),
        rows_(h_.rows(a)) {}

  __device__ __forceinline__ void run() {
    last_ = min(a_.length, h_.seen(a_, min(first_ + kRows, rows_) - 1));
    const int64_t tiles = ceil_div(last_, kKeys), per_part = ceil_div(tiles, split_.splits);
    begin_ = min(part_ * per_part, tiles);
    const int64_t end = min(begin_ + per_part, tiles);
    if (begin_ < end) {
      copy_queries<kRows, kThreads>(queries(), a_.q, a_, h_, first_, rows_);
      copy(begin_);
    }
    int64_t seen[2];
    for (int i = 0; i < 2; i++) {
      const int64_t r = first_ + row(i);
      seen[i] = r < rows_ ? min(h_.seen(a_, r), a_.length) : 0;
    }
    // All of the warp's rows see the keys before this one.
    const int64_t all_see = first_ + row0() + 15 < rows_ ? min(h_.seen(a_, first_ + row0()), a_.length) : 0;

    State state;
    for (int64_t tile = begin_; tile < end; tile++) {
      cp_async_wait<0>();
      __syncthreads();
      if (tile + 1 < end) copy(tile + 1);
      T* const stage = stage_of(tile);
      float s[kWarpKeys / 8][4] = {};
      multiply_keys(s, TileOf{stage});
      weigh(s, state, seen, all_see, tile * kKeys + key0());
      multiply_values(state.out, s, TileOf{stage + kKeys * kDim});
    }
    for (int i = 0; i < 2; i++) state.sum[i] = quad_reduce(state.sum[i], Sum{});
    present_ = static_cast<int>(min(rows_ - first_, int64_t{kRows}));
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

  // Shared memory: the queries, then two stages of keys and values; in the end partial results.
  __device__ __forceinline__ TileOf queries() const { return {reinterpret_cast<T*>(memory_)}; }
  __device__ __forceinline__ T* stage_of(int64_t tile) const {
    return reinterpret_cast<T*>(memory_) + kRows * kDim + (tile - begin_) % 2 * (2 * kKeys * kDim);
  }

  __device__ __forceinline__ void copy(int64_t tile) const {
    T* const stage = stage_of(tile);
    copy_keys<kKeys, kThreads>(TileOf{stage}, a_.k, a_, h_, tile * kKeys, last_);
    copy_keys<kKeys, kThreads>(TileOf{stage + kKeys * kDim}, a_.v, a_, h_, tile * kKeys, last_);
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
  __device__ __forceinline__ void weigh(float (&s)[kWarpKeys / 8][4], State& state, const int64_t (&seen)[2],
                                        int64_t all_see, int64_t j0) const {
    const float scale = a_.rule.scale * kLog2E;
    const bool all = j0 + kWarpKeys <= all_see;
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int visible = static_cast<int>(max(int64_t{0}, min(seen[i] - j0, int64_t{kWarpKeys})));
      float best = kLowest;
#pragma unroll
      for (int n = 0; n < kWarpKeys / 8; n++)
        for (int c = 0; c < 2; c++) {
          float& x = s[n][2 * i + c];
          x *= scale;
          if (!all && n * 8 + lane() % 4 * 2 + c >= visible) x = kLowest;
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
      const AttentionArgs& a = rows.a_;
      if (d >= a.dim) return;
      const int64_t at = rows.h_.query_at(a, rows.first_ + row);
      static_cast<T*>(a.y)[at * a.dim + d] = narrow<T>(sum == 0.0f ? 0.0f : x / sum);
      if (d == 0 && a.lse) a.lse[at] = (top + log2f(sum)) * kLn2;
    }
  };

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
      if (row(i) >= present_) continue;
      const int64_t at = h_.query_at(a_, first_ + row(i));
      const float inverse = state.sum[i] == 0.0f ? 0.0f : 1.0f / state.sum[i];
      auto* const y = static_cast<T*>(a_.y) + at * a_.dim;
#pragma unroll
      for (int n = 0; n < kDim / 8; n++) {
        const Vec<T, 2> pair = {
            {narrow<T>(state.out[n][2 * i] * inverse), narrow<T>(state.out[n][2 * i + 1] * inverse)}};
        if (n * 8 < a_.dim) store_vec(y + n * 8 + lane() % 4 * 2, pair);
      }
      if (a_.lse && lane() % 4 == 0) a_.lse[at] = (state.top[i] + log2f(state.sum[i])) * kLn2;
    }
  }

  template <class Emit>
  __device__ __forceinline__ void merge_all(float* room, const float* from, int parts, const Emit& emit) const {
    const auto stat = [=](int which) {
      return [=](int p, int row) { return from[p * kPartial + kRows * (kDim + which) + row]; };
    };
    merge<kRows, kDim>(
        room, parts, present_, stat(0), stat(1),
        [=](int p, int row, int d) { return from[p * kPartial + row * kDim + d]; }, emit);
  }

  const AttentionArgs& a_;
  const Split& split_;
  unsigned char* const memory_;
  const int64_t item_;
  const int part_;
  const Head h_;
  const int64_t first_, rows_;    // the block's first row, and how many the head has
  int64_t last_ = 0, begin_ = 0;  // keys that any row sees, and this part's first tile of them
  int present_ = 0;               // rows that exist
};

template <class T, int kDim, bool kDecode>
__global__ void __launch_bounds__(kThreads) forward_kernel(AttentionArgs a, Split split, const char* op) {
  if (!kSm80) return;
  if (!resolve(a.position, op, a.length)) return;
  BNB_DYNAMIC_SHARED(memory);
  Rows<T, kDim, kDecode>(a, split, memory).run();
}

template <class T, int kDim, bool kDecode>
bool run(const AttentionArgs& a, CudaStream& s) {
  constexpr int kRows = kBlockRows<kDecode>, kKeys = kTileKeys<kDim, kDecode>;
  constexpr size_t kShared = kSharedBytes<kDim, kDecode>;
  if (kShared + kStatic > static_cast<size_t>(s.gpu.shared_per_block)) return false;
  const int64_t rows = a.queries * (a.heads / a.kv_heads), blocks = ceil_div(rows, kRows);
  const int64_t items = a.batch * a.kv_heads * blocks, tiles = ceil_div(most_keys(a), kKeys);
  Split split{.blocks = blocks, .splits = 1, .partials = nullptr, .counters = s.counters};
  // As many blocks as multiprocessors hold, which registers allow two of, and no more parts than there are tiles.
  const int64_t blocks_at_once = int64_t{s.gpu.sms} * min(resident_blocks(s.gpu, kThreads, 255, kShared + kStatic), 2);
  const int64_t wanted = min(min(blocks_at_once / max(items, int64_t{1}), tiles), int64_t{kMostSplits});
  if (wanted > 1 && items <= kCounters) {
    split.splits = static_cast<int>(wanted);
    split.partials =
        static_cast<float*>(s.scratch(static_cast<size_t>(items) * split.splits * kRows * (kDim + 2) * sizeof(float)));
  }
  if (items * split.splits > 0x7fffffff) return false;
  launch(s, forward_kernel<T, kDim, kDecode>, dim3(static_cast<unsigned>(items * split.splits)), kThreads, kShared, a,
         split, "attention");
  return true;
}

template <class T, int kDim>
bool choose(const AttentionArgs& a, CudaStream& s) {
  return a.queries * (a.heads / a.kv_heads) <= 16 ? run<T, kDim, true>(a, s) : run<T, kDim, false>(a, s);
}

template <class T>
bool choose_dim(const AttentionArgs& a, CudaStream& s) {
  return a.dim <= 64 ? choose<T, 64>(a, s) : a.dim <= 128 ? choose<T, 128>(a, s) : choose<T, 256>(a, s);
}

}  // namespace

bool attention_mma(const AttentionArgs& a, CudaStream& s) {
  if (!is_plain(a) || a.dtype == DType::float32 || s.gpu.cc < 80 || a.dim % 8 != 0 || a.dim > 256 ||
      !aligned_for(16, a.q, a.k, a.v, a.y))
    return false;
  return a.dtype == DType::float16 ? choose_dim<f16>(a, s) : choose_dim<bf16>(a, s);
}

}  // namespace bnb::cuda
