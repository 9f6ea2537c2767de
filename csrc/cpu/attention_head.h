// One key head of one batch entry of attention, and where its tensors begin: a problem of cpu/attention_rows.h.
#pragma once
#include "cpu/attention_rows.h"
#include "kernels/attention.h"

namespace bnb::BNB_ISA {
namespace {

template <class T>
struct Head {
  using Key = T;
  const AttentionArgs& a;
  int64_t batch, kv_head;

  int64_t dim() const { return a.dim; }
  const ScoreRule& rule() const { return a.rule; }
  int64_t group() const { return a.heads / a.kv_heads; }
  int64_t rows() const { return a.queries * group(); }
  int64_t head(int64_t r) const { return kv_head * group() + r % group(); }
  Span span(int64_t r) const { return keys_of(a, r / group()); }
  // Of row r: index into lse; times dim, the offset in q, y and dy.
  int64_t query_at(int64_t r) const { return (batch * a.queries + r / group()) * a.heads + head(r); }
  // Of key j: offset in k and v.
  int64_t key_at(int64_t j) const { return ((batch * a.keys + j) * a.kv_heads + kv_head) * a.dim; }

  Run<T> run(const void* from, int64_t j) const {
    return {static_cast<const T*>(from) + key_at(j), a.kv_heads * a.dim, a.keys - j, nullptr};
  }
  Run<T> keys(int64_t j) const { return run(a.k, j); }
  Run<T> values(int64_t j) const { return run(a.v, j); }

  // Rows [begin, end) of q, y or dy as float32, times a factor.
  void gather(const void* from, int64_t begin, int64_t end, float factor, float* to) const {
    for (int64_t r = begin; r < end; r++, to += a.dim) {
      const T* row = static_cast<const T*>(from) + query_at(r) * a.dim;
      for_lanes(a.dim, [&](int64_t i, auto lanes) { lanes.store(to + i, lanes.load(row + i) * set1(factor)); });
    }
  }
  void gather(int64_t begin, int64_t end, float factor, float* to) const { gather(a.q, begin, end, factor, to); }
  void finish(int64_t r, const float* out, float factor, float lse) const {
    T* y = static_cast<T*>(a.y) + query_at(r) * a.dim;
    for_lanes(a.dim, [&](int64_t i, auto lanes) { lanes.store(y + i, lanes.load(out + i) * set1(factor)); });
    if (a.lse) a.lse[query_at(r)] = lse;
  }
};

// False, and a report, where the bounds of samples make no sense.
BNB_INLINE bool check_starts(const AttentionArgs& a) {
  if (!a.starts) return true;
  for (int64_t i = 0; i <= a.samples; i++) {
    int64_t value;
    if (!is_wrong_start(a, i, value)) continue;
    report_fault(a.fault, FaultCode::index_out_of_range, value, a.queries + 1);
    return false;
  }
  return true;
}

}  // namespace
}  // namespace bnb::BNB_ISA
