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
#include "cuda/kernels/attention/forward_rows.cuh"

namespace bnb::cuda {
namespace {

// A block of rows of one key head of contiguous tensors.
template <int kRows, bool kHasRules>
struct Dense {
  static constexpr bool kRuled = kHasRules;
  const AttentionArgs& a;
  Head h;
  int64_t first, rows;  // the block's first row, and how many the head has

  __device__ __forceinline__ int64_t dim() const { return a.dim; }
  __device__ __forceinline__ const ScoreRule& rule() const { return a.rule; }
  __device__ __forceinline__ void* y() const { return a.y; }
  __device__ __forceinline__ float* lse() const { return a.lse; }
  __device__ __forceinline__ int present() const { return static_cast<int>(min(rows - first, int64_t{kRows})); }
  __device__ __forceinline__ int64_t query_at(int row) const { return h.query_at(a, first + row); }
  __device__ __forceinline__ int64_t head(int row) const { return h.kv_head * h.group + (first + row) % h.group; }
  // Of neighbouring rows, both ends rise; a row that sees nothing begins beyond all keys.
  __device__ __forceinline__ Span span(int row) const {
    if constexpr (!kRuled) return {0, min(h.seen(a, first + row), a.keys)};
    const Span s = h.span(a, first + row);
    return s.empty() ? Span{a.keys, 0} : s;
  }
  __device__ __forceinline__ Span span() const { return kRuled ? h.span(a, first, kRows) : span(present() - 1); }

  template <int kCount, int kThreadCount, class Tile>
  __device__ __forceinline__ void copy_queries(const Tile& tile) const {
    cuda::copy_queries<kCount, kThreadCount>(tile, a.q, a, h, first, rows);
  }
  template <int kCount, int kThreadCount, class Tile>
  __device__ __forceinline__ void copy_keys(const Tile& keys, const Tile& values, int64_t j0, Span seen) const {
    cuda::copy_keys<kCount, kThreadCount>(keys, a.k, a, h, j0, seen.to);
    cuda::copy_keys<kCount, kThreadCount>(values, a.v, a, h, j0, seen.to);
  }
};

// Two blocks to a multiprocessor: left to itself, the compiler aims at three or four of some kernels and spills.
template <class T, int kDim, bool kDecode, bool kRuled>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(AttentionArgs a, Split split, const char* op) {
  if (!kSm80) return;
  if (kRuled && a.starts && blockIdx.x == 0) check_starts(a, op);
  BNB_DYNAMIC_SHARED(memory);
  constexpr int kRows = kBlockRows<kDecode>;
  const int64_t item = blockIdx.x / split.splits;
  const Head h(a, item / split.blocks);
  // Blocks of the last queries come first: those see the most keys.
  using Problem = Dense<kRows, kRuled>;
  const Problem problem = {a, h, (split.blocks - 1 - item % split.blocks) * kRows, h.rows(a)};
  Rows<Problem, T, kDim, kDecode>(problem, split, memory).run();
}

template <class T, int kDim, bool kDecode, bool kRuled>
bool run(const AttentionArgs& a, CudaStream& s) {
  const int64_t rows = a.queries * (a.heads / a.kv_heads), blocks = ceil_div(rows, kBlockRows<kDecode>);
  const int64_t items = a.batch * a.kv_heads * blocks;
  Split split;
  if (!split_keys<kDim, kDecode>(s, blocks, items, a.keys, split)) return false;
  launch(s, forward_kernel<T, kDim, kDecode, kRuled>, dim3(static_cast<unsigned>(items * split.splits)), kThreads,
         kSharedBytes<kDim, kDecode>, a, split, "attention");
  return true;
}

template <class T, int kDim, bool kDecode>
bool choose_rules(const AttentionArgs& a, CudaStream& s) {
  return is_plain(a) ? run<T, kDim, kDecode, false>(a, s) : run<T, kDim, kDecode, true>(a, s);
}

template <class T, int kDim>
bool choose(const AttentionArgs& a, CudaStream& s) {
  return a.queries * (a.heads / a.kv_heads) <= 16 ? choose_rules<T, kDim, true>(a, s)
                                                  : choose_rules<T, kDim, false>(a, s);
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
