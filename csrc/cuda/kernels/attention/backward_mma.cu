// Gradients of attention for 16-bit dtypes on the matrix units, after FlashAttention-2 (Dao 2023).
//
// Layout    two kernels with 64 own rows to a block, 16 to a warp: queries that pass over tiles of keys, for dq, and
// keys
//           that pass over tiles of queries, for dk and dv. The others come through two stages of shared memory.
// Work      scores and the gradients of weights stay in registers, computed twice: seven products in place of five,
//           and no atomics. Tiles that do not see each other are not read.
// Numerics  scores, weights and all sums in float32; weights and their gradients are rounded to the dtype where they
//           enter the second product, so float16 needs |dscore| < 65504. Every sum runs in a fixed order.
// Needs     compute capability 8.0, dim a multiple of 8 and at most 128, 16-byte aligned tensors.
#include "cuda/kernels/attention/fragments.cuh"

namespace bnb::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kOwn = 16 * kWarps;
constexpr float kLog2E = 1.4426950408889634f;

// Others in a stage; fewer where the results of a warp take most of its registers.
template <int kDim>
constexpr int kOthers = kDim > 64 ? 32 : 64;
template <int kDim>
constexpr size_t kSharedBytes = static_cast<size_t>(2 * kOwn + 4 * kOthers<kDim>) * kDim * 2;

// d[n] = a rows row0 .. + 15 times rows of b, n = columns / 8.
template <class T, int kDim, int kColumns>
__device__ __forceinline__ void multiply_rows(const HalfTile<T, kDim>& a, int row0, const HalfTile<T, kDim>& b,
                                              float (&d)[kColumns / 8][4]) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; n++)
    for (int c = 0; c < 4; c++) d[n][c] = 0;
// Not all at once: every step's addresses would be kept in registers.
#pragma unroll 2
  for (int k = 0; k < kDim; k += 16) {
    uint32_t fa[4], fb[4];
    a.a(fa, row0, k);
#pragma unroll
    for (int n = 0; n < kColumns; n += 16) {
      b.b(fb, n, k);
      mma_pair<T>(d[n / 8], d[n / 8 + 1], fa, fb);
    }
  }
}

// sums += w[16, kColumns] times the rows of b.
template <class T, int kDim, int kColumns>
__device__ __forceinline__ void accumulate(const float (&w)[kColumns / 8][4], const HalfTile<T, kDim>& b,
                                           float (&sums)[kDim / 8][4]) {
#pragma unroll
  for (int n = 0; n < kColumns; n += 16) {
    const auto &x = w[n / 8], &y = w[n / 8 + 1];
    const uint32_t fa[4] = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(y[0], y[1]), pack<T>(y[2], y[3])};
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t fb[4];
      b.b_across(fb, d, n);
      mma_pair<T>(sums[d / 8], sums[d / 8 + 1], fa, fb);
    }
  }
}

// The weight of a score of the first product, and what the gradient of it is multiplied by.
template <bool kRuled>
__device__ __forceinline__ float weight_of(float score, float scale, const ScoreRule& rule, float lse, float& slope) {
  slope = 1.0f;
  if constexpr (kRuled) {
    if (rule.softcap > 0) {
      const float x = score * rule.scale / rule.softcap, e = exp2f(-2.0f * kLog2E * fabsf(x));
      const float size = (1.0f - e) / (1.0f + e), bent = x < 0 ? -size : size;
      slope = fmaf(-bent, bent, 1.0f);
      return exp2f(fmaf(bent, rule.softcap * kLog2E, -lse));
    }
  }
  return exp2f(fmaf(score, scale, -lse));
}

// Where key j lies in a tile of n that begins at j0.
__device__ __forceinline__ int in_tile(int64_t j, int64_t j0, int n) {
  return static_cast<int>(max(int64_t{0}, min(j - j0, int64_t{n})));
}

// Row i (0 or 1: 8 below) of this lane, times factor.
template <class T, int kDim>
__device__ __forceinline__ void store_row(T* to, const float (&sums)[kDim / 8][4], int i, float factor, int64_t dim) {
#pragma unroll
  for (int n = 0; n < kDim / 8; n++) {
    const Vec<T, 2> pair = {{narrow<T>(sums[n][2 * i] * factor), narrow<T>(sums[n][2 * i + 1] * factor)}};
    if (n * 8 < dim) store_vec(to + n * 8 + threadIdx.x % 4 * 2, pair);
  }
}

template <class T, int kDim, bool kRuled>
__global__ void __launch_bounds__(kThreads)
    query_gradient_kernel(AttentionBackwardArgs b, const float* delta, int64_t blocks) {
  if (!kSm80) return;
  BNB_DYNAMIC_SHARED(memory);
  constexpr int kKeys = kOthers<kDim>;
  using TileOf = HalfTile<T, kDim>;
  const AttentionArgs& a = b.forward;
  const TileOf q{reinterpret_cast<T*>(memory)}, dy{q.data + kOwn * kDim};
  T* const stages = dy.data + kOwn * kDim;  // K, V, K, V
  const int lane = threadIdx.x % kWarp, row0 = threadIdx.x / kWarp * 16;
  const Head h(a, blockIdx.x / blocks);
  const int64_t first = (blocks - 1 - blockIdx.x % blocks) * kOwn, rows = h.rows(a);
  Span all = {0, 0};
  if constexpr (kRuled) {
    all = h.span(a, first, kOwn);
  } else {
    all.to = min(a.keys, h.seen(a, min(first + kOwn, rows) - 1));
  }
  const int64_t first_tile = all.from / kKeys, last = all.to, tiles = ceil_div(last, kKeys);
  const auto load = [&](int64_t tile) {
    T* const stage = stages + tile % 2 * (2 * kKeys * kDim);
    copy_keys<kKeys, kThreads>(TileOf{stage}, a.k, a, h, tile * kKeys, last);
    copy_keys<kKeys, kThreads>(TileOf{stage + kKeys * kDim}, a.v, a, h, tile * kKeys, last);
    cp_async_commit();
  };
  if (first_tile < tiles) {
    copy_queries<kOwn, kThreads>(q, a.q, a, h, first, rows);
    copy_queries<kOwn, kThreads>(dy, b.dy, a, h, first, rows);
    load(first_tile);
  }
  const float scale = a.rule.scale * kLog2E;
  int64_t at[2];
  Span seen[2];
  float lse[2], common[2];
  for (int i = 0; i < 2; i++) {
    const int64_t r = first + row0 + lane / 4 + 8 * i;
    at[i] = r < rows ? h.query_at(a, r) : -1;
    seen[i] = {0, 0};
    if (r < rows) seen[i] = kRuled ? h.span(a, r) : Span{0, min(h.seen(a, r), a.keys)};
    lse[i] = r < rows ? a.lse[at[i]] * kLog2E : 0.0f;
    common[i] = r < rows ? delta[at[i]] : 0.0f;
  }
  float dq[kDim / 8][4] = {};
  for (int64_t tile = first_tile; tile < tiles; tile++) {
    cp_async_wait<0>();
    __syncthreads();
    if (tile + 1 < tiles) load(tile + 1);
    const TileOf k{stages + tile % 2 * (2 * kKeys * kDim)}, v{k.data + kKeys * kDim};
    float s[kKeys / 8][4], dp[kKeys / 8][4];
    multiply_rows<T, kDim, kKeys>(q, row0, k, s);
    multiply_rows<T, kDim, kKeys>(dy, row0, v, dp);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int to = in_tile(seen[i].to, tile * kKeys, kKeys);
      const int from = kRuled ? in_tile(seen[i].from, tile * kKeys, kKeys) : 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++)
        for (int c = 2 * i; c < 2 * i + 2; c++) {
          float slope;
          const float p = weight_of<kRuled>(s[n][c], scale, a.rule, lse[i], slope);
          const int key = n * 8 + lane % 4 * 2 + c % 2;
          const float change = p * (dp[n][c] - common[i]);
          dp[n][c] = key < to && (!kRuled || key >= from) ? (kRuled ? change * slope : change) : 0.0f;
        }
    }
    accumulate<T, kDim, kKeys>(dp, k, dq);
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
    if (at[i] >= 0) store_row<T, kDim>(static_cast<T*>(b.dq) + at[i] * a.dim, dq, i, a.rule.scale, a.dim);
}

template <class T, int kDim, bool kRuled>
__global__ void __launch_bounds__(kThreads)
    key_gradient_kernel(AttentionBackwardArgs b, const float* delta, int64_t blocks) {
  if (!kSm80) return;
  BNB_DYNAMIC_SHARED(memory);
  constexpr int kRows = kOthers<kDim>;
  // Of the rows of a stage: lse, delta, and which of the block's keys they see.
  BNB_SHARED(float[2][kRows], lse);
  BNB_SHARED(float[2][kRows], common);
  BNB_SHARED(int[2][kRows], sees_to);
  BNB_SHARED(int[kRuled ? 2 : 1][kRuled ? kRows : 1], sees_from);
  using TileOf = HalfTile<T, kDim>;
  const AttentionArgs& a = b.forward;
  const TileOf k{reinterpret_cast<T*>(memory)}, v{k.data + kOwn * kDim};
  T* const stages = v.data + kOwn * kDim;  // Q, dY, Q, dY
  const int lane = threadIdx.x % kWarp, row0 = threadIdx.x / kWarp * 16;
  const Head h(a, blockIdx.x / blocks);
  const int64_t first = blockIdx.x % blocks * kOwn, rows = h.rows(a);
  // From the first row that sees the first key.
  int64_t begin, end = rows;
  if constexpr (kRuled) {
    const Span seeing = h.rows_of(a, first, kOwn);
    begin = seeing.from, end = seeing.to;
  } else {
    begin = a.causal ? max(int64_t{0}, first - (a.keys - a.queries)) * h.group : 0;
  }
  const int64_t tiles = first < a.keys && begin < end ? ceil_div(end - begin, kRows) : 0;
  const auto load = [&](int64_t tile) {
    const int stage = static_cast<int>(tile % 2);
    T* const to = stages + stage * (2 * kRows * kDim);
    const int64_t r0 = begin + tile * kRows;
    copy_queries<kRows, kThreads>(TileOf{to}, a.q, a, h, r0, rows);
    copy_queries<kRows, kThreads>(TileOf{to + kRows * kDim}, b.dy, a, h, r0, rows);
    cp_async_commit();
    if (threadIdx.x < kRows) {
      const int64_t r = r0 + threadIdx.x;
      const int64_t at = r < rows ? h.query_at(a, r) : 0;
      lse[stage][threadIdx.x] = r < rows ? a.lse[at] * kLog2E : 0.0f;
      common[stage][threadIdx.x] = r < rows ? delta[at] : 0.0f;
      Span seen = {0, 0};
      if (r < rows) seen = kRuled ? h.span(a, r) : Span{0, min(h.seen(a, r), a.keys)};
      sees_to[stage][threadIdx.x] = in_tile(seen.to, first, kOwn);
      if constexpr (kRuled) sees_from[stage][threadIdx.x] = in_tile(seen.from, first, kOwn);
    }
  };
  if (tiles > 0) {
    copy_keys<kOwn, kThreads>(k, a.k, a, h, first, a.keys);
    copy_keys<kOwn, kThreads>(v, a.v, a, h, first, a.keys);
    load(0);
  }
  const float scale = a.rule.scale * kLog2E;
  float dk[kDim / 8][4] = {}, dv[kDim / 8][4] = {};
  for (int64_t tile = 0; tile < tiles; tile++) {
    cp_async_wait<0>();
    __syncthreads();
    if (tile + 1 < tiles) load(tile + 1);
    const int stage = static_cast<int>(tile % 2);
    const TileOf q{stages + stage * (2 * kRows * kDim)}, dy{q.data + kRows * kDim};
    float p[kRows / 8][4], dp[kRows / 8][4];
    multiply_rows<T, kDim, kRows>(k, row0, q, p);
    multiply_rows<T, kDim, kRows>(v, row0, dy, dp);
#pragma unroll
    for (int n = 0; n < kRows / 8; n++)
      for (int c = 0; c < 4; c++) {
        const int row = n * 8 + lane % 4 * 2 + c % 2, key = row0 + lane / 4 + c / 2 * 8;
        const bool sees = key < sees_to[stage][row] && (!kRuled || key >= sees_from[stage][row]);
        float slope;
        p[n][c] = sees ? weight_of<kRuled>(p[n][c], scale, a.rule, lse[stage][row], slope) : 0.0f;
        const float change = sees ? p[n][c] * (dp[n][c] - common[stage][row]) : 0.0f;
        dp[n][c] = kRuled && sees ? change * slope : change;
      }
    accumulate<T, kDim, kRows>(p, dy, dv);
    accumulate<T, kDim, kRows>(dp, q, dk);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int64_t j = first + row0 + lane / 4 + 8 * i;
    if (j >= a.keys) continue;
    store_row<T, kDim>(static_cast<T*>(b.dk) + h.key_at(a, j), dk, i, a.rule.scale, a.dim);
    store_row<T, kDim>(static_cast<T*>(b.dv) + h.key_at(a, j), dv, i, 1.0f, a.dim);
  }
}

template <class T, int kDim, bool kRuled>
bool run(const AttentionBackwardArgs& b, const float* delta, CudaStream& s) {
  const AttentionArgs& a = b.forward;
  constexpr size_t kShared = kSharedBytes<kDim>;
  if (kShared + 1024 > static_cast<size_t>(s.gpu.shared_per_block)) return false;
  const int64_t row_blocks = ceil_div(a.queries * (a.heads / a.kv_heads), kOwn), key_blocks = ceil_div(a.keys, kOwn);
  const int64_t heads = a.batch * a.kv_heads;
  if (heads * max(row_blocks, key_blocks) > 0x7fffffff) return false;
  launch(s, query_gradient_kernel<T, kDim, kRuled>, dim3(static_cast<unsigned>(heads * row_blocks)), kThreads, kShared,
         b, delta, row_blocks);
  launch(s, key_gradient_kernel<T, kDim, kRuled>, dim3(static_cast<unsigned>(heads * key_blocks)), kThreads, kShared, b,
         delta, key_blocks);
  return true;
}

template <class T, int kDim>
bool choose_rules(const AttentionBackwardArgs& b, const float* delta, CudaStream& s) {
  return is_plain(b.forward) ? run<T, kDim, false>(b, delta, s) : run<T, kDim, true>(b, delta, s);
}

template <class T>
bool choose_dim(const AttentionBackwardArgs& b, const float* delta, CudaStream& s) {
  return b.forward.dim <= 64 ? choose_rules<T, 64>(b, delta, s) : choose_rules<T, 128>(b, delta, s);
}

}  // namespace

bool attention_backward_mma(const AttentionBackwardArgs& b, const float* delta, CudaStream& s) {
  const AttentionArgs& a = b.forward;
  if (a.dtype == DType::float32 || s.gpu.cc < 80 || a.dim % 8 != 0 || a.dim > 128 ||
      !aligned_for(16, a.q, a.k, a.v, b.dy, b.dq, b.dk, b.dv))
    return false;
  return a.dtype == DType::float16 ? choose_dim<f16>(b, delta, s) : choose_dim<bf16>(b, delta, s);
}

}  // namespace bnb::cuda
