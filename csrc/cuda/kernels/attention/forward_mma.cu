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

namespace bnb::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kMostSplits = 64;  // of the keys of an item
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

template <class T, int kDim, bool kDecode>
__global__ void __launch_bounds__(kThreads) forward_kernel(AttentionArgs a, Split split, const char* op) {
  if (!kSm80) return;
  if (!resolve(a.position, op, a.length)) return;
  BNB_DYNAMIC_SHARED(memory);
  BNB_SHARED(int[1], is_last);
  constexpr int kRows = kBlockRows<kDecode>, kKeys = kTileKeys<kDim, kDecode>;
  constexpr int kWarpKeys = kDecode ? kKeys / kWarps : kKeys;
  using TileOf = HalfTile<T, kDim>;
  const TileOf q{reinterpret_cast<T*>(memory)};
  T* const stages = q.data + kRows * kDim;  // K, V, K, V
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t item = blockIdx.x / split.splits;
  const int part = static_cast<int>(blockIdx.x % split.splits);
  const Head h(a, item / split.blocks);
  // Blocks of the last queries come first: those see the most keys.
  const int64_t first = (split.blocks - 1 - item % split.blocks) * kRows, rows = h.rows(a);
  const int64_t last = min(a.length, h.seen(a, min(first + kRows, rows) - 1));
  const int64_t tiles = ceil_div(last, kKeys), per_part = ceil_div(tiles, split.splits);
  const int64_t begin = min(part * per_part, tiles), end = min(begin + per_part, tiles);

  const auto load = [&](int64_t tile) {
    T* const stage = stages + (tile - begin) % 2 * (2 * kKeys * kDim);
    copy_keys<kKeys, kThreads>(TileOf{stage}, a.k, a, h, tile * kKeys, last);
    copy_keys<kKeys, kThreads>(TileOf{stage + kKeys * kDim}, a.v, a, h, tile * kKeys, last);
    cp_async_commit();
  };
  if (begin < end) {
    copy_queries<kRows, kThreads>(q, a.q, a, h, first, rows);
    load(begin);
  }

  // This lane's rows of the accumulators are row0 + lane / 4 and 8 below; its keys begin at key0 in a tile.
  const int row0 = kDecode ? 0 : warp * 16, key0 = kDecode ? warp * kWarpKeys : 0;
  const float scale = a.scale * kLog2E;
  int64_t seen[2];
  for (int i = 0; i < 2; i++) {
    const int64_t r = first + row0 + lane / 4 + 8 * i;
    seen[i] = r < rows ? min(h.seen(a, r), a.length) : 0;
  }
  // All of the warp's rows see the keys before this one.
  const int64_t all_see = first + row0 + 15 < rows ? min(h.seen(a, first + row0), a.length) : 0;
  float out[kDim / 8][4] = {}, top[2] = {kLowest, kLowest}, sum[2] = {};

  for (int64_t tile = begin; tile < end; tile++) {
    cp_async_wait<0>();
    __syncthreads();
    if (tile + 1 < end) load(tile + 1);
    const TileOf k{stages + (tile - begin) % 2 * (2 * kKeys * kDim)}, v{k.data + kKeys * kDim};
    const int64_t j0 = tile * kKeys + key0;

    float s[kWarpKeys / 8][4] = {};
#pragma unroll(kIsWide <kDim> ? 4 : kDim / 16)
    for (int d = 0; d < kDim; d += 16) {
      uint32_t qa[4], kb[4];
      q.a(qa, row0, d);
#pragma unroll
      for (int n = 0; n < kWarpKeys; n += 16) {
        k.b(kb, key0 + n, d);
        mma_pair<T>(s[n / 8], s[n / 8 + 1], qa, kb);
      }
    }
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
          if (!all && n * 8 + lane % 4 * 2 + c >= visible) x = kLowest;
          best = fmaxf(best, x);
        }
      const float before = top[i];
      top[i] = fmaxf(before, quad_reduce(best, [](float x, float y) { return fmaxf(x, y); }));
      const float shift = shift_of(top[i]);
      factor[i] = exp2f(before - shift);
      float total = 0;
#pragma unroll
      for (int n = 0; n < kWarpKeys / 8; n++)
        for (int c = 0; c < 2; c++) total += s[n][2 * i + c] = exp2f(s[n][2 * i + c] - shift);
      sum[i] = fmaf(sum[i], factor[i], total);
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; n++)
      for (int c = 0; c < 4; c++) out[n][c] *= factor[c / 2];
#pragma unroll
    for (int n = 0; n < kWarpKeys; n += 16) {
      const auto &x = s[n / 8], &y = s[n / 8 + 1];
      const uint32_t weight[4] = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(y[0], y[1]), pack<T>(y[2], y[3])};
#pragma unroll
      for (int d = 0; d < kDim; d += 16) {
        uint32_t vb[4];
        v.b_across(vb, d, key0 + n);
        mma_pair<T>(out[d / 8], out[d / 8 + 1], weight, vb);
      }
    }
  }
  for (int i = 0; i < 2; i++) sum[i] = quad_reduce(sum[i], Sum{});

  const int present = static_cast<int>(min(rows - first, int64_t{kRows}));
  const auto finish = [&](int row, int d, float x, float row_top, float row_sum) {
    if (d >= a.dim) return;
    const int64_t at = h.query_at(a, first + row);
    static_cast<T*>(a.y)[at * a.dim + d] = narrow<T>(row_sum == 0.0f ? 0.0f : x / row_sum);
    if (d == 0 && a.lse) a.lse[at] = (row_top + log2f(row_sum)) * kLn2;
  };
  constexpr int kPartial = kRows * (kDim + 2);
  float* const partials = split.partials + item * split.splits * kPartial;
  const auto keep = [&](float* to, int row, int d, float x, float row_top, float row_sum) {
    to[row * kDim + d] = x;
    if (d == 0) {
      to[kRows * kDim + row] = row_top;
      to[kRows * (kDim + 1) + row] = row_sum;
    }
  };
  // What this lane holds, to one part.
  const auto keep_all = [&](float* to) {
#pragma unroll
    for (int n = 0; n < kDim / 8; n++)
      for (int c = 0; c < 4; c++)
        keep(to, row0 + lane / 4 + c / 2 * 8, n * 8 + lane % 4 * 2 + c % 2, out[n][c], top[c / 2], sum[c / 2]);
  };
  const auto merge_all = [&](float* room, const float* from, int parts, const auto& emit) {
    const auto stat = [=](int which) {
      return [=](int p, int row) { return from[p * kPartial + kRows * (kDim + which) + row]; };
    };
    merge<kRows, kDim>(
        room, parts, present, stat(0), stat(1),
        [=](int p, int row, int d) { return from[p * kPartial + row * kDim + d]; }, emit);
  };

  auto* const held = reinterpret_cast<float*>(memory);
  float* const room = held + (kDecode ? kWarps * kPartial : 0);
  static_assert(((kDecode ? kWarps * kPartial : 0) + kMergeFloats<kRows>)*sizeof(float) <= kSharedBytes<kDim, kDecode>);
  if constexpr (kDecode) {
    // The four warps hold results of the same rows.
    __syncthreads();
    keep_all(held + warp * kPartial);
    __syncthreads();
    if (split.splits == 1) {
      merge_all(room, held, kWarps, finish);
      return;
    }
    merge_all(room, held, kWarps, [&](int row, int d, float x, float row_top, float row_sum) {
      keep(partials + part * kPartial, row, d, x, row_top, row_sum);
    });
  } else {
    if (split.splits == 1) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int row = row0 + lane / 4 + 8 * i;
        if (row >= present) continue;
        const int64_t at = h.query_at(a, first + row);
        const float inverse = sum[i] == 0.0f ? 0.0f : 1.0f / sum[i];
        auto* const y = static_cast<T*>(a.y) + at * a.dim;
#pragma unroll
        for (int n = 0; n < kDim / 8; n++) {
          const Vec<T, 2> pair = {{narrow<T>(out[n][2 * i] * inverse), narrow<T>(out[n][2 * i + 1] * inverse)}};
          if (n * 8 < a.dim) store_vec(y + n * 8 + lane % 4 * 2, pair);
        }
        if (a.lse && lane % 4 == 0) a.lse[at] = (top[i] + log2f(sum[i])) * kLn2;
      }
      return;
    }
    keep_all(partials + part * kPartial);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last[0] = atomicAdd(split.counters + item, 1) == split.splits - 1;
    if (is_last[0]) split.counters[item] = 0;
  }
  __syncthreads();
  if (!is_last[0]) return;
  __threadfence();
  merge_all(room, partials, split.splits, finish);
}

template <class T, int kDim, bool kDecode>
bool run(const AttentionArgs& a, CudaStream& s) {
  constexpr int kRows = kBlockRows<kDecode>, kKeys = kTileKeys<kDim, kDecode>;
  constexpr size_t kShared = kSharedBytes<kDim, kDecode>;
  if (kShared + 1024 > static_cast<size_t>(s.gpu.shared_per_block)) return false;
  const int64_t rows = a.queries * (a.heads / a.kv_heads), blocks = ceil_div(rows, kRows);
  const int64_t items = a.batch * a.kv_heads * blocks, tiles = ceil_div(most_keys(a), kKeys);
  Split split{.blocks = blocks, .splits = 1, .partials = nullptr, .counters = s.counters};
  // Two blocks to a multiprocessor, and no more parts than there are tiles.
  const int64_t wanted = min(min(int64_t{s.gpu.sms} * 2 / max(items, int64_t{1}), tiles), int64_t{kMostSplits});
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
  if (a.dtype == DType::float32 || s.gpu.cc < 80 || a.dim % 8 != 0 || a.dim > 256 ||
      !aligned_for(16, a.q, a.k, a.v, a.y))
    return false;
  return a.dtype == DType::float16 ? choose_dim<f16>(a, s) : choose_dim<bf16>(a, s);
}

}  // namespace bnb::cuda
