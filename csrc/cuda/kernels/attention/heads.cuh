// Where the rows of an attention problem lie. The queries of all heads that share a key head are rows of one matrix:
// r = position * group + head, so that a key that is loaded serves the whole group.
#pragma once
#include "cuda/kernel.cuh"
#include "kernels/attention.h"

namespace bnb::cuda {

constexpr float kLowest = -__builtin_inff();

// From the first to the last of the spans that are not empty. All lanes of a warp call it and get the same.
template <class F>
__device__ __forceinline__ Span union_of(int64_t begin, int64_t end, const F& span_at) {
  constexpr int64_t kFar = int64_t{1} << 60;
  Span all = {kFar, 0};
  for (int64_t i = begin + threadIdx.x % kWarp; i < end; i += kWarp) {
    const Span one = span_at(i);
    if (!one.empty()) all = {min(all.from, one.from), max(all.to, one.to)};
  }
  all.from = warp_reduce(all.from, [](int64_t a, int64_t b) { return a < b ? a : b; });
  all.to = warp_reduce(all.to, [](int64_t a, int64_t b) { return a > b ? a : b; });
  return all.empty() ? Span{0, 0} : all;
}

// One key head of one batch entry.
struct Head {
  int64_t batch, kv_head, group;
  __device__ Head(const AttentionArgs& a, int64_t index)
      : batch(index / a.kv_heads), kv_head(index % a.kv_heads), group(a.heads / a.kv_heads) {}
  __device__ int64_t rows(const AttentionArgs& a) const { return a.queries * group; }
  // Of row r: index into lse; times dim, the offset in q, y and dy.
  __device__ int64_t query_at(const AttentionArgs& a, int64_t r) const {
    return (batch * a.queries + r / group) * a.heads + kv_head * group + r % group;
  }
  // Of key j: offset in k and v.
  __device__ int64_t key_at(const AttentionArgs& a, int64_t j) const {
    return ((batch * a.keys + j) * a.kv_heads + kv_head) * a.dim;
  }
  // The keys that row r sees, and that any of `count` rows from `first` on sees.
  __device__ Span span(const AttentionArgs& a, int64_t r) const { return keys_of(a, r / group); }
  __device__ Span span(const AttentionArgs& a, int64_t first, int64_t count) const {
    return union_of(first / group, (min(first + count, rows(a)) - 1) / group + 1,
                    [&](int64_t i) { return keys_of(a, i); });
  }
  // The rows that see any of `count` keys from `first` on.
  __device__ Span rows_of(const AttentionArgs& a, int64_t first, int64_t count) const {
    const Span s = union_of(first, min(first + count, a.keys), [&](int64_t j) { return queries_of(a, j); });
    return {s.from * group, s.to * group};
  }
  // Without samples and a window: how many keys row r sees.
  __device__ int64_t seen(const AttentionArgs& a, int64_t r) const {
    return a.causal ? a.keys - a.queries + r / group + 1 : a.keys;
  }
};

// Bounds of samples that make no sense are reported; they lead nowhere outside of the tensors.
__device__ __forceinline__ void check_starts(const AttentionArgs& a, const char* op) {
  for (int64_t i = threadIdx.x; i <= a.samples; i += blockDim.x) {
    int64_t value;
    if (is_wrong_start(a, i, value)) report_out_of_range(a.fault, op, value, a.queries + 1);
  }
}

// Whether a query sees all keys, or all before its own, and scores are as they are.
inline bool is_plain(const AttentionArgs& a) {
  return !a.starts && !a.rule.sinks && a.rule.window == 0 && a.rule.softcap == 0;
}

// 16-bit dtypes on the matrix units; false where those cannot take the problem.
bool attention_mma(const AttentionArgs& a, CudaStream& s);
bool attention_backward_mma(const AttentionBackwardArgs& b, const float* delta, CudaStream& s);
// float32, and whatever the matrix units cannot take.
void attention_simt(const AttentionArgs& a, CudaStream& s);
void attention_backward_simt(const AttentionBackwardArgs& b, const float* delta, CudaStream& s);
// delta[batch, queries, heads] = sum of y * dy, the part of the gradient of the softmax that a row has in common.
void attention_delta(const AttentionBackwardArgs& b, float* delta, CudaStream& s);
// dsinks[heads] from lse and delta.
void attention_sink_gradient(const AttentionBackwardArgs& b, const float* delta, CudaStream& s);

}  // namespace bnb::cuda
