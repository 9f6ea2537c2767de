// Causal attention over pages on the matrix units, of the last tokens of any sequences.
//
// Layout    a block takes 64 rows of one key head of one sequence (16 to a warp), or up to 16 where a step has a token
// a
//           sequence at most: the queries of a group. It passes over tiles of its keys as attention/forward_rows.cuh
//           does; each row of a tile is looked up in the table of pages.
// Work      blocks find their sequence by counting: there are as many as any plan of so many tokens may need, and those
//           left over do nothing. Where they are too few to fill the card, the keys are split over thread blocks, and
//           the last of a block's parts to finish merges them in order. Rows that no sequence has are cleared by a
//           kernel of its own.
// Numerics  as attention/forward_mma.cu.
// Needs     compute capability 8.0, queries and pages of one 16-bit dtype, dim a multiple of 8 and at most 256, 16-byte
//           aligned tensors. What is wrong with the plan is reported, and gives zeros.
#include "cuda/kernels/attention/forward_rows.cuh"
#include "cuda/kernels/paged_attention/paged.cuh"
#include "cuda/map.cuh"

namespace bnb::cuda {
namespace {

// A block of rows of one key head of one sequence.
template <int kRows>
struct Paged {
  static constexpr bool kRuled = true;
  const PagedAttentionArgs& a;
  const char* op;
  int64_t sequence, kv_head, group, first;  // the block's first row among those of the sequence
  PagedSequence at;

  __device__ __forceinline__ int64_t dim() const { return a.layer.dim; }
  __device__ __forceinline__ const ScoreRule& rule() const { return a.rule; }
  __device__ __forceinline__ void* y() const { return a.y; }
  __device__ __forceinline__ float* lse() const { return nullptr; }
  __device__ __forceinline__ int present() const {
    return static_cast<int>(min(at.rows * group - first, int64_t{kRows}));
  }
  __device__ __forceinline__ int64_t head(int row) const { return kv_head * group + (first + row) % group; }
  __device__ __forceinline__ int64_t query_at(int row) const {
    return (at.first + (first + row) / group) * a.heads + head(row);
  }
  __device__ __forceinline__ Span span(int row) const {
    return causal_span(a.rule, at.keys - at.rows + (first + row) / group);
  }
  __device__ __forceinline__ Span span() const { return {span(0).from, span(present() - 1).to}; }

  template <int kCount, int kThreadCount, class Tile>
  __device__ __forceinline__ void copy_queries(const Tile& tile) const {
    constexpr int kWidth = Tile::kPieces;
    const int index = threadIdx.x % kWidth;
    for (int row = threadIdx.x / kWidth; row < kCount; row += kThreadCount / kWidth) {
      const bool exists = row < present();
      tile.template copy_row<kWidth>(row, tile.data_of(a.q) + (exists ? query_at(row) * dim() : 0), exists,
                                     static_cast<int>(dim()), index);
    }
  }
  template <int kCount, int kThreadCount, class Tile>
  __device__ __forceinline__ void copy_keys(const Tile& keys, const Tile& values, int64_t j0, Span seen) const {
    constexpr int kWidth = Tile::kPieces;
    const int index = threadIdx.x % kWidth;
    for (int row = threadIdx.x / kWidth; row < kCount; row += kThreadCount / kWidth) {
      const int64_t place = seen.has(j0 + row) ? place_of(a, sequence, j0 + row, kv_head, op) : -1;
      const int64_t offset = place < 0 ? 0 : place * dim();
      const int size = static_cast<int>(dim());
      keys.template copy_row<kWidth>(row, keys.data_of(a.layer.keys) + offset, place >= 0, size, index);
      values.template copy_row<kWidth>(row, values.data_of(a.layer.values) + offset, place >= 0, size, index);
    }
  }
};

// Which sequence a block belongs to, and which of its blocks it is. All lanes of a warp call it and get the same.
struct Place {
  int64_t sequence, block;  // sequence -1: left over
  PagedSequence at;
};
__device__ __forceinline__ Place find_block(const PagedAttentionArgs& a, int64_t group, int64_t rows, int64_t block,
                                            const char* op) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t s0 = 0; s0 < a.sequences; s0 += kWarp) {
    const int64_t s = s0 + lane;
    int64_t blocks = 0;
    if (s < a.sequences) {
      const PagedSequence at = sequence_of(a, s);
      if (!at.good) report_out_of_range(a.fault, op, at.value, at.limit);
      blocks = ceil_div(at.rows * group, rows);
    }
    int64_t end = blocks;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int64_t before = __shfl_up_sync(kFullMask, end, step);
      if (lane >= step) end += before;
    }
    const unsigned beyond = __ballot_sync(kFullMask, end > block);
    if (beyond != 0) {
      const int owner = __ffs(static_cast<int>(beyond)) - 1;
      const int64_t begin = __shfl_sync(kFullMask, end - blocks, owner);
      return {s0 + owner, block - begin, sequence_of(a, s0 + owner)};
    }
    block -= __shfl_sync(kFullMask, end, kWarp - 1);
  }
  return {-1, 0, {}};
}

template <class T, int kDim, bool kDecode>
__global__ void __launch_bounds__(kThreads)
    paged_attention_mma_kernel(PagedAttentionArgs a, Split split, const char* op) {
  if (!kSm80) return;
  BNB_DYNAMIC_SHARED(memory);
  constexpr int kRows = kBlockRows<kDecode>;
  const int64_t item = blockIdx.x / split.splits, group = a.heads / a.layer.kv_heads;
  const Place place = find_block(a, group, kRows, item % split.blocks, op);
  if (place.sequence < 0) return;
  const Paged<kRows> problem = {a, op, place.sequence, item / split.blocks, group, place.block * kRows, place.at};
  Rows<Paged<kRows>, T, kDim, kDecode>(problem, split, memory).run();
}

// Rows that no sequence has become zeros.
template <class T>
__global__ void __launch_bounds__(kMapThreads) clear_rows_kernel(PagedAttentionArgs a) {
  const int64_t elements = a.heads * a.layer.dim;
  for (int64_t t = blockIdx.x; t < a.tokens; t += gridDim.x) {
    const int64_t s = sequence_at(a, t);
    if (s >= 0 && s < a.sequences) {
      const PagedSequence at = sequence_of(a, s);
      if (t >= at.first && t < at.first + at.rows) continue;
    }
    for (int64_t i = threadIdx.x; i < elements; i += blockDim.x) static_cast<T*>(a.y)[t * elements + i] = T{};
  }
}

template <class T, int kDim, bool kDecode>
bool run(const PagedAttentionArgs& a, CudaStream& s) {
  const int64_t group = a.heads / a.layer.kv_heads;
  const int64_t blocks = a.tokens * group / kBlockRows<kDecode> + min(a.sequences, a.tokens);
  const int64_t items = a.layer.kv_heads * blocks;
  Split split;
  if (!split_keys<kDim, kDecode>(s, blocks, items, a.max_pages * kPageRows, split)) return false;
  launch(s, clear_rows_kernel<T>, stride_grid(s, a.tokens, 1), kMapThreads, 0, a);
  launch(s, paged_attention_mma_kernel<T, kDim, kDecode>, dim3(static_cast<unsigned>(items * split.splits)), kThreads,
         kSharedBytes<kDim, kDecode>, a, split, kernels::paged_attention.name);
  return true;
}

template <class T, int kDim>
bool choose(const PagedAttentionArgs& a, CudaStream& s) {
  const bool decode = a.tokens <= a.sequences && a.heads / a.layer.kv_heads <= 16;
  return decode ? run<T, kDim, true>(a, s) : run<T, kDim, false>(a, s);
}

template <class T>
bool choose_dim(const PagedAttentionArgs& a, CudaStream& s) {
  const int64_t dim = a.layer.dim;
  return dim <= 64 ? choose<T, 64>(a, s) : dim <= 128 ? choose<T, 128>(a, s) : choose<T, 256>(a, s);
}

}  // namespace

bool paged_attention_mma(const PagedAttentionArgs& a, CudaStream& s) {
  if (a.dtype == DType::float32 || a.dtype != a.layer.dtype || s.gpu.cc < 80 || a.layer.dim % 8 != 0 ||
      a.layer.dim > 256 || !aligned_for(16, a.q, a.layer.keys, a.layer.values, a.y))
    return false;
  return a.dtype == DType::float16 ? choose_dim<f16>(a, s) : choose_dim<bf16>(a, s);
}

}  // namespace bnb::cuda
