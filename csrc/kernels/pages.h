// Where the keys and values of sequences lie: pages of 16 tokens, anywhere in one tensor a layer. A slot names a
// token's place: page * 16 + row.
#pragma once
#include "core/kernel.h"

namespace bnb {

constexpr int64_t kPageRows = 16;

// One layer. int8 codes are symmetric, with a scale a token and head: x = code * scale.
struct KvPages {
  void* keys;           // [pages, kv_heads, 16, dim] dtype
  void* values;         // as keys
  float* key_scales;    // [pages, kv_heads, 16]; null unless the dtype is int8
  float* value_scales;  // as key_scales
  int64_t pages, kv_heads, dim;
  DType dtype;

  BNB_INLINE int64_t slots() const { return pages * kPageRows; }
  // Of a head's row of a slot: its index among all rows, which is also that of its scale.
  BNB_INLINE int64_t row_of(int64_t slot, int64_t head) const {
    return (slot / kPageRows * kv_heads + head) * kPageRows + slot % kPageRows;
  }
};

// Calls f with a value of the type that the elements of pages have.
template <class F>
BNB_HOST_INLINE void visit_pages(DType t, const F& f) {
  if (t == DType::int8) {
    f(int8_t{});
  } else {
    visit_float(t, f);
  }
}

}  // namespace bnb
