// Attention and its gradients in float32 arithmetic, for every dtype and head size.
//
// Layout    a block owns a few rows of q (of k and v for the gradients of those), a few per warp, and passes over the
//           others 32 at a time, one per lane. Scores are summed over slices of 64 of the head size, staged as
//           float32; weights go through shared memory from the lane that made them to all lanes of the warp; results
//           collect in shared memory [rows, dim], where a lane owns every 32nd column.
// Work      four multiplications per word read from shared memory, far from the peak: this is the exact version. Keys
//           that no row of the block sees are left out.
// Numerics  the online softmax of Milakov and Gimelshein; backward recomputes scores from lse. All sums run in a fixed
//           order: dq over keys, dk and dv over queries, in separate kernels without atomics.
// Needs     room for one row of results per warp in shared memory: dim up to about 1400 (64 KB) or 6500 (227 KB).
#include "cuda/kernels/attention/heads.cuh"
#include "cuda/kernels/attention/stage.cuh"

namespace bnb::cuda {
namespace {

template <class T>
__device__ __forceinline__ Elements<T> elements(const void* p) {
  return {static_cast<const T*>(p)};
}

// The rows [first, first + kOwn) of a head become the block's own.
template <int kRows>
__device__ __forceinline__ void own_queries(Stage<kRows>& stage, const AttentionArgs& a, const Head& h, int64_t first) {
  const int t = threadIdx.x;
  if (t < Stage<kRows>::kOwn) stage.own_at[t] = first + t < h.rows(a) ? h.query_at(a, first + t) * a.dim : -1;
}

// Blocks of the last queries come first: those see the most keys.
__device__ __forceinline__ int64_t last_first(int64_t item, int64_t blocks) { return blocks - 1 - item % blocks; }

template <class T, int kRows>
__global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(AttentionArgs a, const char* op, int64_t blocks, int64_t items) {
  if (a.starts && blockIdx.x == 0) check_starts(a, op);
  BNB_DYNAMIC_SHARED(memory);
  BNB_SHARED(Stage<kRows>, stage);
  constexpr int kOwn = Stage<kRows>::kOwn;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* sums = reinterpret_cast<float*>(memory) + warp * kRows * a.dim;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Head h(a, item / blocks);
    const int64_t first = last_first(item, blocks) * kOwn, rows = h.rows(a);
    own_queries(stage, a, h, first);
    clear<kRows>(sums, a.dim);
    float top[kRows], sum[kRows];
    Span seen[kRows];
    for (int i = 0; i < kRows; i++) {
      top[i] = kLowest, sum[i] = 0;
      const int64_t r = first + warp * kRows + i;
      seen[i] = r < rows ? h.span(a, r) : Span{0, 0};
    }
    const Span keys = h.span(a, first, kOwn);
    for (int64_t j0 = keys.from; j0 < keys.to; j0 += kWarp) {
      const int n = static_cast<int>(min(keys.to - j0, int64_t{kWarp}));
      if (threadIdx.x < kWarp) stage.other_at[lane] = lane < n ? h.key_at(a, j0 + lane) : -1;
      float dot[kRows], factor[kRows];
      dots(stage, elements<T>(a.q), elements<T>(a.k), a.dim, dot);
#pragma unroll
      for (int i = 0; i < kRows; i++) {
        float slope;
        const float score = capped(a.rule, dot[i] * a.rule.scale, slope);
        stage.weight[0][warp][lane][i] = fold_score(score, seen[i].has(j0 + lane), top[i], sum[i], factor[i]);
      }
      __syncwarp();
      accumulate(stage, stage.weight[0][warp], elements<T>(a.v), n, a.dim, factor, sums);
      __syncthreads();
    }
    for (int i = 0; i < kRows; i++) {
      const int64_t r = first + warp * kRows + i;
      if (r >= rows) break;
      const int64_t at = h.query_at(a, r);
      float factor = a.rule.sinks ? add_sink(a.rule.sinks[at % a.heads], top[i], sum[i]) : 1.0f;
      factor = sum[i] == 0.0f ? 0.0f : factor / sum[i];
      for (int64_t d = lane; d < a.dim; d += kWarp)
        static_cast<T*>(a.y)[at * a.dim + d] = narrow<T>(sums[i * a.dim + d] * factor);
      if (a.lse && lane == 0) a.lse[at] = top[i] + logf(sum[i]);
    }
    __syncthreads();
  }
}

// One warp per row.
template <class T>
__global__ void delta_kernel(const T* y, const T* dy, float* delta, int64_t rows, int64_t dim) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t r = global_thread() / kWarp; r < rows; r += global_threads() / kWarp) {
    float sum = 0;
    for (int64_t d = lane; d < dim; d += kWarp) sum = fmaf(widen(y[r * dim + d]), widen(dy[r * dim + d]), sum);
    sum = warp_sum(sum);
    if (lane == 0) delta[r] = sum;
  }
}

// A sink has the weight exp(sink - lse) and no value. One block per head.
__global__ void __launch_bounds__(256)
    sink_gradient_kernel(const float* sinks, const float* lse, const float* delta, float* dsinks, int64_t rows) {
  const int64_t heads = gridDim.x, head = blockIdx.x;
  float sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += blockDim.x)
    sum = fmaf(-expf(sinks[head] - lse[r * heads + head]), delta[r * heads + head], sum);
  sum = block_sum(sum);
  if (threadIdx.x == 0) dsinks[head] = sum;
}

template <class T, int kRows>
__global__ void __launch_bounds__(kThreads, 4)
    query_gradient_kernel(AttentionBackwardArgs b, const float* delta, int64_t blocks, int64_t items) {
  BNB_DYNAMIC_SHARED(memory);
  BNB_SHARED(Stage<kRows>, stage);
  constexpr int kOwn = Stage<kRows>::kOwn;
  const AttentionArgs& a = b.forward;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* sums = reinterpret_cast<float*>(memory) + warp * kRows * a.dim;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Head h(a, item / blocks);
    const int64_t first = last_first(item, blocks) * kOwn, rows = h.rows(a);
    own_queries(stage, a, h, first);
    clear<kRows>(sums, a.dim);
    float lse[kRows], common[kRows], one[kRows];
    Span seen[kRows];
    for (int i = 0; i < kRows; i++) {
      const int64_t r = first + warp * kRows + i;
      const int64_t at = r < rows ? h.query_at(a, r) : -1;
      seen[i] = r < rows ? h.span(a, r) : Span{0, 0};
      lse[i] = at >= 0 ? a.lse[at] : 0.0f;
      common[i] = at >= 0 ? delta[at] : 0.0f;
      one[i] = 1.0f;
    }
    const Span keys = h.span(a, first, kOwn);
    for (int64_t j0 = keys.from; j0 < keys.to; j0 += kWarp) {
      const int n = static_cast<int>(min(keys.to - j0, int64_t{kWarp}));
      if (threadIdx.x < kWarp) stage.other_at[lane] = lane < n ? h.key_at(a, j0 + lane) : -1;
      float score[kRows], dp[kRows];
      dots(stage, elements<T>(a.q), elements<T>(a.k), a.dim, score);
      dots(stage, elements<T>(b.dy), elements<T>(a.v), a.dim, dp);
#pragma unroll
      for (int i = 0; i < kRows; i++) {
        const bool sees = seen[i].has(j0 + lane);
        float slope;
        const float s = capped(a.rule, score[i] * a.rule.scale, slope), p = sees ? expf(s - lse[i]) : 0.0f;
        stage.weight[0][warp][lane][i] = sees ? p * (dp[i] - common[i]) * slope : 0.0f;
      }
      __syncwarp();
      accumulate(stage, stage.weight[0][warp], elements<T>(a.k), n, a.dim, one, sums);
      __syncthreads();
    }
    for (int i = 0; i < kRows; i++) {
      const int64_t r = first + warp * kRows + i;
      if (r >= rows) break;
      const int64_t at = h.query_at(a, r) * a.dim;
      for (int64_t d = lane; d < a.dim; d += kWarp)
        static_cast<T*>(b.dq)[at + d] = narrow<T>(sums[i * a.dim + d] * a.rule.scale);
    }
    __syncthreads();
  }
}

template <class T, int kRows>
__global__ void __launch_bounds__(kThreads, 4)
    key_gradient_kernel(AttentionBackwardArgs b, const float* delta, int64_t blocks, int64_t items) {
  BNB_DYNAMIC_SHARED(memory);
  BNB_SHARED(Stage<kRows>, stage);
  constexpr int kOwn = Stage<kRows>::kOwn;
  const AttentionArgs& a = b.forward;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* dk = reinterpret_cast<float*>(memory) + warp * kRows * a.dim;
  float* dv = dk + kOwn * a.dim;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Head h(a, item / blocks);
    const int64_t first = item % blocks * kOwn;
    if (threadIdx.x < kOwn)
      stage.own_at[threadIdx.x] = first + threadIdx.x < a.keys ? h.key_at(a, first + threadIdx.x) : -1;
    clear<kRows>(dk, a.dim);
    clear<kRows>(dv, a.dim);
    float one[kRows];
    for (int i = 0; i < kRows; i++) one[i] = 1.0f;
    const Span seeing = h.rows_of(a, first, kOwn);
    for (int64_t r0 = seeing.from; r0 < seeing.to; r0 += kWarp) {
      const int n = static_cast<int>(min(seeing.to - r0, int64_t{kWarp}));
      const int64_t at = lane < n ? h.query_at(a, r0 + lane) : -1;
      if (threadIdx.x < kWarp) stage.other_at[lane] = lane < n ? at * a.dim : -1;
      const Span seen = lane < n ? h.span(a, r0 + lane) : Span{0, 0};
      const float lse = lane < n ? a.lse[at] : 0.0f, common = lane < n ? delta[at] : 0.0f;
      float score[kRows], dp[kRows];
      dots(stage, elements<T>(a.k), elements<T>(a.q), a.dim, score);
      dots(stage, elements<T>(a.v), elements<T>(b.dy), a.dim, dp);
#pragma unroll
      for (int i = 0; i < kRows; i++) {
        const bool sees = seen.has(first + warp * kRows + i);
        float slope;
        const float s = capped(a.rule, score[i] * a.rule.scale, slope), p = sees ? expf(s - lse) : 0.0f;
        stage.weight[0][warp][lane][i] = p;
        stage.weight[1][warp][lane][i] = sees ? p * (dp[i] - common) * slope : 0.0f;
      }
      __syncwarp();
      accumulate(stage, stage.weight[0][warp], elements<T>(b.dy), n, a.dim, one, dv);
      accumulate(stage, stage.weight[1][warp], elements<T>(a.q), n, a.dim, one, dk);
      __syncthreads();
    }
    for (int i = 0; i < kRows; i++) {
      const int64_t j = first + warp * kRows + i;
      if (j >= a.keys) break;
      const int64_t at = h.key_at(a, j);
      for (int64_t d = lane; d < a.dim; d += kWarp) {
        static_cast<T*>(b.dk)[at + d] = narrow<T>(dk[i * a.dim + d] * a.rule.scale);
        static_cast<T*>(b.dv)[at + d] = narrow<T>(dv[i * a.dim + d]);
      }
    }
    __syncthreads();
  }
}

// Launches kernel(args..., blocks, items): `count` rows per head, kOwn to a block.
template <int kRows, class... P, class... A>
void launch_heads(CudaStream& s, const AttentionArgs& a, int64_t count, size_t shared, void (*kernel)(P...),
                  const A&... args) {
  const int64_t blocks = ceil_div(count, Stage<kRows>::kOwn), items = a.batch * a.kv_heads * blocks;
  const int64_t most = int64_t{1} << 30;
  launch(s, kernel, dim3(static_cast<unsigned>(items < most ? items : most)), kThreads, shared, args..., blocks, items);
}

}  // namespace

void attention_simt(const AttentionArgs& a, CudaStream& s) {
  const int64_t rows = a.queries * (a.heads / a.kv_heads);
  choose_rows("attention", a.dim, 1, 4, s, [&](auto rows_per_warp, size_t shared) {
    constexpr int kRows = decltype(rows_per_warp)::value;
    visit_float(a.dtype, [&](auto t) {
      launch_heads<kRows>(s, a, rows, shared, forward_kernel<decltype(t), kRows>, a, "attention");
    });
  });
}

void attention_delta(const AttentionBackwardArgs& b, float* delta, CudaStream& s) {
  const AttentionArgs& a = b.forward;
  const int64_t rows = a.batch * a.queries * a.heads;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    launch(s, delta_kernel<T>, stride_grid(s, rows, 8), 256, 0, static_cast<const T*>(a.y), static_cast<const T*>(b.dy),
           delta, rows, a.dim);
  });
}

void attention_sink_gradient(const AttentionBackwardArgs& b, const float* delta, CudaStream& s) {
  const AttentionArgs& a = b.forward;
  launch(s, sink_gradient_kernel, dim3(static_cast<unsigned>(a.heads)), 256, 0, a.rule.sinks, a.lse, delta, b.dsinks,
         a.batch * a.queries);
}

void attention_backward_simt(const AttentionBackwardArgs& b, const float* delta, CudaStream& s) {
  const AttentionArgs& a = b.forward;
  const int64_t rows = a.queries * (a.heads / a.kv_heads);
  choose_rows("attention_backward", a.dim, 2, 4, s, [&](auto rows_per_warp, size_t shared) {
    constexpr int kRows = decltype(rows_per_warp)::value;
    visit_float(a.dtype, [&](auto t) {
      using T = decltype(t);
      launch_heads<kRows>(s, a, rows, shared / 2, query_gradient_kernel<T, kRows>, b, delta);
      launch_heads<kRows>(s, a, a.keys, shared, key_gradient_kernel<T, kRows>, b, delta);
    });
  });
}

}  // namespace bnb::cuda
