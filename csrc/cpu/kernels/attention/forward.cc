// Attention in blocks of queries and keys, so that scores never leave the cache.
//
// Layout    q [batch, queries, heads, dim], k and v [batch, keys, kv_heads, dim].
// Work      an item is a block of rows of one key head (cpu/attention_rows.h).
// Numerics  float32, rounded once to the dtype of q; the online softmax goes through the keys in order.
// Needs     nothing; starts that make no sense are reported.
#include "cpu/attention_head.h"

namespace bnb::BNB_ISA {

void attention(const AttentionArgs& args) {
  AttentionArgs a = args;
  if (!check_starts(a)) return;
  const int64_t group = a.heads / a.kv_heads, rows = a.queries * group;
  const int64_t per_block = rows <= kFewRows ? larger(1, rows) : block_rows(group, a.dim);
  const int64_t blocks = ceil_div(rows, per_block);
  const int64_t work = per_block * (a.keys + 1) * a.dim;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.batch * a.kv_heads * blocks, 1 + 65536 / (work + 1), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; item++) {
        const int64_t head = item / blocks, first = item % blocks * per_block;
        const int64_t last = smaller(first + per_block, rows);
        const Head<T> h = {a, head / a.kv_heads, head % a.kv_heads};
        const Scratch<float> memory(Partial::floats(last - first, a.dim));
        const Partial partial = Partial::at(memory, last - first, a.dim);
        attend(h, first, last, span_of_rows(h, first, last), partial);
        finish_rows(h, first, last, partial);
      }
    });
  });
}

}  // namespace bnb::BNB_ISA
