// Causal attention of the last tokens of any sequences over keys and values in pages. The rows of a sequence in q are
// its last positions; which they are, and which pages it has, only the device knows.
#pragma once
#include "core/kernel.h"
#include "kernels/pages.h"
#include "kernels/score_rule.h"

namespace bnb {

struct PagedAttentionArgs {
  const void* q;           // [tokens, heads, dim] dtype
  void* y;                 // as q
  const int32_t* starts;   // [sequences + 1], first row of each sequence; rows beyond are spare and give zeros
  const int32_t* lengths;  // [sequences], keys in use, those of the rows included
  const int32_t* table;    // [sequences, max_pages]
  KvPages layer;
  ScoreRule rule;
  int64_t tokens, heads, sequences, max_pages;
  DType dtype;
  Fault* fault;
};
BNB_KERNEL(paged_attention, PagedAttentionArgs)

// What the plan says of a sequence. `value` and `limit` say what is wrong with one that is no good.
struct PagedSequence {
  int64_t first, rows, keys;
  bool good;
  int64_t value, limit;
};
BNB_INLINE PagedSequence sequence_of(const PagedAttentionArgs& a, int64_t s) {
  const int64_t first = a.starts[s], end = a.starts[s + 1], keys = a.lengths[s], room = a.max_pages * kPageRows;
  PagedSequence q = {first, end - first, keys, true, 0, 0};
  const auto refuse = [&](int64_t value, int64_t limit) { q = {0, 0, 0, false, value, limit}; };
  if (first < 0 || first > a.tokens) {
    refuse(first, a.tokens + 1);
  } else if (end < first || end > a.tokens) {
    refuse(end, a.tokens + 1);
  } else if (end > first && (keys < end - first || keys > room)) {
    refuse(keys, room + 1);
  }
  return q;
}

}  // namespace bnb
