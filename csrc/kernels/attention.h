// Scaled dot-product attention with grouped key and value heads. Query i sits at position keys - queries + i and,
// when causal, sees the keys up to that position.
#pragma once
#include "core/kernel.h"
#include "kernels/score_rule.h"

namespace bnb {

struct AttentionArgs {
  const void* q;          // [batch, queries, heads, dim] dtype
  const void* k;          // [batch, keys, kv_heads, dim] dtype
  const void* v;          // as k
  void* y;                // as q
  float* lse;             // [batch, queries, heads], log of the sum of exponentials, for the backward pass; or null
  const int32_t* starts;  // [samples + 1], or null: the tokens of a sample see each other only; batch is 1, and
                          // queries and keys are one number
  ScoreRule rule;
  int64_t batch, queries, keys;
  int64_t heads, kv_heads, dim, samples;
  Fault* fault;
  DType dtype;
  bool causal;
};
BNB_KERNEL(attention, AttentionArgs)

struct AttentionBackwardArgs {
  AttentionArgs forward;  // y and lse as the forward pass left them
  const void* dy;         // as y
  void* dq;               // as q
  void* dk;               // as k
  void* dv;               // as v
  float* dsinks;          // [heads], or null
};
BNB_KERNEL(attention_backward, AttentionBackwardArgs)

BNB_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
BNB_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// The tokens of the sample that token t is in; none where it is in no sample.
BNB_INLINE Span sample_of(const AttentionArgs& a, int64_t t) {
  int64_t low = 0, high = a.samples;  // the last sample that starts at or before t
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (a.starts[middle] <= t) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == 0 || t >= a.starts[low]) return {0, 0};
  return {greater(a.starts[low - 1], 0), lesser(a.starts[low], a.queries)};
}

// The keys that query i sees.
BNB_INLINE Span keys_of(const AttentionArgs& a, int64_t i) {
  const int64_t p = a.keys - a.queries + i, window = a.rule.window;
  Span s = a.starts ? sample_of(a, i) : Span{0, a.keys};
  if (a.causal) s.to = lesser(s.to, p + 1);
  if (window > 0) {
    s.from = greater(s.from, p - window + 1);
    s.to = lesser(s.to, p + window);
  }
  return s;
}

// The queries that see key j.
BNB_INLINE Span queries_of(const AttentionArgs& a, int64_t j) {
  const int64_t i = j - (a.keys - a.queries), window = a.rule.window;
  if (j >= a.keys) return {0, 0};
  Span s = a.starts ? sample_of(a, j) : Span{0, a.queries};
  if (a.causal) s.from = greater(s.from, i);
  if (window > 0) {
    s.from = greater(s.from, i - window + 1);
    s.to = lesser(s.to, i + window);
  }
  return s;
}

// What is wrong with starts[i], as a value that is not in [0, queries]: the place, or the size of the sample that it
// ends.
BNB_INLINE bool is_wrong_start(const AttentionArgs& a, int64_t i, int64_t& value) {
  value = a.starts[i];
  if (value < 0 || value > a.queries) return true;
  if (i > 0) value -= a.starts[i - 1];
  return value < 0;
}

}  // namespace bnb
