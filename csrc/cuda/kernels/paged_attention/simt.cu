// Causal attention over pages in float32 arithmetic, of the last tokens of any sequences.
//
// Layout    rows of one key head: r = token * group + head, over all tokens of the step. A block owns a few
// neighbouring
//           rows, a few per warp; it goes through the sequences that have any of them, and through the keys of each 32
//           at a time, one per lane, so that a key that is loaded serves the whole group. In decoding a warp owns one
//           row, so that hardly a block has two sequences.
// Work      where rows are too few to fill the card, the keys of each sequence are split over blocks: partial results
//           go to scratch memory, and the last block of an item to finish merges them in order. Pages that no row of
//           the block sees are not read.
// Numerics  the online softmax of Milakov and Gimelshein. Merging in order makes the result independent of timing.
// Needs     room for one row of results per warp in shared memory: dim up to about 6500 (227 KB). What is wrong with
// the
//           plan is reported, and gives zeros.
#include "cuda/kernels/attention/stage.cuh"
#include "cuda/kernels/paged_attention/paged.cuh"
#include "cuda/last_block.cuh"

namespace bnb::cuda {
namespace {

constexpr int kMostSplits = 32;

struct Split {
  int64_t blocks;  // of rows in a key head
  int splits;
  float* partials;    // [items * splits, own rows * (dim + 2)]: results, maxima, sums; null without splits
  int32_t* counters;  // [items]
};

// Elements of pages; those of a row that is not there are at negative offsets.
template <class Page>
struct PageElements {
  Elements<Page> all;
  __device__ __forceinline__ float operator[](int64_t i) const { return i < 0 ? 0.0f : all[i]; }
};

template <class Page, int kRows>
struct Block {
  static constexpr int kOwn = Stage<kRows>::kOwn;
  const PagedAttentionArgs& a;
  Stage<kRows>& stage;
  float* sums;  // of this warp
  int64_t kv_head, group, first, rows;
  float top[kRows], sum[kRows];

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ __forceinline__ int64_t row(int i) const { return first + warp() * kRows + i; }
  __device__ __forceinline__ int64_t head(int64_t r) const { return kv_head * group + r % group; }
  __device__ __forceinline__ int64_t offset(int64_t r) const { return (r / group * a.heads + head(r)) * a.layer.dim; }

  // The part of sequence s that rows of this block see.
  __device__ __forceinline__ void attend(int64_t s, int part, int splits, const char* op) {
    const PagedSequence q = sequence_of(a, s);
    if (!q.good && threadIdx.x == 0) report_out_of_range(a.fault, op, q.value, q.limit);
    const int64_t begin = max(q.first, first / group);
    const int64_t end = min(q.first + q.rows, (min(first + kOwn, rows) - 1) / group + 1);
    if (begin >= end) return;
    const int64_t before = q.keys - q.rows - q.first;  // a token sits at before + token
    const int64_t from = causal_span(a.rule, before + begin).from, to = before + end;
    const int64_t share = ceil_div(ceil_div(to - from, splits), kWarp) * kWarp;
    const int64_t low = from + part * share, high = min(to, low + share);
    Span seen[kRows];
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const int64_t token = row(i) / group;
      seen[i] = row(i) < rows && token >= begin && token < end ? causal_span(a.rule, before + token) : Span{0, 0};
    }
    const Elements<Page> keys{static_cast<const Page*>(a.layer.keys)};
    const PageElements<Page> values{{static_cast<const Page*>(a.layer.values)}};
    for (int64_t j0 = low; j0 < high; j0 += kWarp) {
      const int n = static_cast<int>(min(high - j0, int64_t{kWarp}));
      const int64_t at = lane() < n ? place_of(a, s, j0 + lane(), kv_head, op) : -1;
      if (threadIdx.x < kWarp) stage.other_at[lane()] = at * a.layer.dim;
      float key_scale = a.rule.scale, value_scale = 1.0f;
      if constexpr (sizeof(Page) == 1) {
        if (at >= 0) key_scale *= a.layer.key_scales[at], value_scale = a.layer.value_scales[at];
      }
      float dot[kRows], factor[kRows];
      dots(stage, AnyElements{a.q, a.dtype}, keys, a.layer.dim, dot);
#pragma unroll
      for (int i = 0; i < kRows; i++) {
        float slope;
        const float score = capped(a.rule, dot[i] * key_scale, slope);
        const bool sees = at >= 0 && seen[i].has(j0 + lane());
        stage.weight[0][warp()][lane()][i] = fold_score(score, sees, top[i], sum[i], factor[i]) * value_scale;
      }
      __syncwarp();
      accumulate(stage, stage.weight[0][warp()], values, n, a.layer.dim, factor, sums);
      __syncthreads();
    }
  }

  __device__ __forceinline__ void store(int64_t r, const float* out, float most, float total) const {
    float factor = a.rule.sinks ? add_sink(a.rule.sinks[head(r)], most, total) : 1.0f;
    factor = total == 0.0f ? 0.0f : factor / total;
    for (int64_t d = lane(); d < a.layer.dim; d += kWarp) {
      const float y = out[d] * factor;
      const int64_t at = offset(r) + d;
      if (a.dtype == DType::float32) {
        static_cast<float*>(a.y)[at] = y;
      } else if (a.dtype == DType::float16) {
        static_cast<f16*>(a.y)[at] = narrow<f16>(y);
      } else {
        static_cast<bf16*>(a.y)[at] = narrow<bf16>(y);
      }
    }
  }
};

template <class Page, int kRows>
__global__ void __launch_bounds__(kThreads, 4)
    paged_attention_kernel(PagedAttentionArgs a, Split split, int64_t items, const char* op) {
  BNB_DYNAMIC_SHARED(memory);
  BNB_SHARED(Stage<kRows>, stage);
  constexpr int kOwn = Stage<kRows>::kOwn;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t dim = a.layer.dim, group = a.heads / a.layer.kv_heads, rows = a.tokens * group;
  float* const sums = reinterpret_cast<float*>(memory) + warp * kRows * dim;
  for (int64_t work = blockIdx.x; work < items * split.splits; work += gridDim.x) {
    const int64_t item = work / split.splits, part = work % split.splits;
    Block<Page, kRows> b{a, stage, sums, item / split.blocks, group, item % split.blocks * kOwn, rows, {}, {}};
    if (threadIdx.x < kOwn)
      stage.own_at[threadIdx.x] = b.first + threadIdx.x < rows ? b.offset(b.first + threadIdx.x) : -1;
    clear<kRows>(sums, dim);
    for (int i = 0; i < kRows; i++) b.top[i] = kNothing, b.sum[i] = 0;
    const int64_t last = (min(b.first + kOwn, rows) - 1) / group;
    for (int64_t s = max(int64_t{0}, sequence_at(a, b.first / group)); s < a.sequences && a.starts[s] <= last; s++)
      b.attend(s, static_cast<int>(part), split.splits, op);
    if (split.splits == 1) {
      for (int i = 0; i < kRows; i++)
        if (b.row(i) < rows) b.store(b.row(i), sums + i * dim, b.top[i], b.sum[i]);
    } else {
      float* const all = split.partials + item * split.splits * kOwn * (dim + 2);
      float* const mine = all + part * kOwn * (dim + 2);
      for (int i = 0; i < kRows; i++) {
        const int own = warp * kRows + i;
        for (int64_t d = lane; d < dim; d += kWarp) mine[own * dim + d] = sums[i * dim + d];
        if (lane == 0) mine[kOwn * dim + own] = b.top[i], mine[kOwn * (dim + 1) + own] = b.sum[i];
      }
      if (last_of(split.counters + item, split.splits)) {
        for (int i = 0; i < kRows; i++) {
          if (b.row(i) >= rows) continue;
          const int own = warp * kRows + i;
          const auto part_of = [&](int p) { return all + p * kOwn * (dim + 2); };
          float most = kNothing, total = 0;
          for (int p = 0; p < split.splits; p++) most = fmaxf(most, part_of(p)[kOwn * dim + own]);
          for (int64_t d = lane; d < dim; d += kWarp) sums[i * dim + d] = 0;
          for (int p = 0; p < split.splits; p++) {
            const float* const from = part_of(p);
            const float weight = expf(from[kOwn * dim + own] - finite_shift(most));
            total = fmaf(from[kOwn * (dim + 1) + own], weight, total);
            for (int64_t d = lane; d < dim; d += kWarp)
              sums[i * dim + d] = fmaf(from[own * dim + d], weight, sums[i * dim + d]);
          }
          b.store(b.row(i), sums + i * dim, most, total);
        }
      }
    }
    __syncthreads();
  }
}

template <class Page, int kRows>
void run(const PagedAttentionArgs& a, CudaStream& s, size_t shared) {
  constexpr int kOwn = Stage<kRows>::kOwn;
  const int64_t rows = a.tokens * (a.heads / a.layer.kv_heads), blocks = ceil_div(rows, kOwn);
  const int64_t items = a.layer.kv_heads * blocks, most = int64_t{1} << 30;
  Split split{.blocks = blocks, .splits = 1, .partials = nullptr, .counters = s.counters};
  // As many blocks as the card holds at once, two to a multiprocessor, and no more parts than there may be pairs of
  // pages.
  const int64_t wanted = min(min(2 * int64_t{s.gpu.sms} / max(items, int64_t{1}), ceil_div(a.max_pages, int64_t{4})),
                             int64_t{kMostSplits});
  if (wanted > 1 && items <= kCounters) {
    split.splits = static_cast<int>(wanted);
    const int64_t floats = items * wanted * kOwn * (a.layer.dim + 2);
    split.partials = static_cast<float*>(s.scratch(static_cast<size_t>(floats) * sizeof(float)));
  }
  const int64_t grid = min(items * split.splits, most);
  launch(s, paged_attention_kernel<Page, kRows>, dim3(static_cast<unsigned>(grid)), kThreads, shared, a, split, items,
         kernels::paged_attention.name);
}

}  // namespace

void paged_attention_simt(const PagedAttentionArgs& a, CudaStream& s) {
  // With a row a sequence at most, neighbours share no keys.
  const int rows_per_warp = a.tokens <= a.sequences ? 1 : 4;
  choose_rows("pagedAttention", a.layer.dim, 1, rows_per_warp, s, [&](auto rows, size_t shared) {
    visit_pages(a.layer.dtype, [&](auto page) { run<decltype(page), decltype(rows)::value>(a, s, shared); });
  });
}

}  // namespace bnb::cuda
