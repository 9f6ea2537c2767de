// What becomes of the scores of attention before the softmax, and which keys a query sees.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct ScoreRule {
  const float* sinks;  // [heads] one more logit per head, which has no value; or null
  int64_t window;      // positions that a query sees on one side, its own included; 0: all of them
  float scale;         // of the scores
  float softcap;       // c: a scaled score s becomes c * tanh(s / c); 0: it stays
};

// Keys [from, to).
struct Span {
  int64_t from, to;
  BNB_INLINE bool empty() const { return from >= to; }
  BNB_INLINE bool has(int64_t j) const { return j >= from && j < to; }
};

// What a causal query at position p sees.
BNB_INLINE Span causal_span(const ScoreRule& rule, int64_t p) {
  return {rule.window > 0 && p + 1 > rule.window ? p + 1 - rule.window : 0, p + 1};
}

}  // namespace bnb
