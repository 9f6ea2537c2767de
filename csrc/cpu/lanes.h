// A loop over an array in vectors, with one body for the whole vectors and for the rest. The body gets the
// index and `lanes`, which loads and stores there; lanes beyond the end load as zero and are not stored.
#pragma once
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

struct WholeVector {
  template <class T>
  BNB_INLINE F32 load(const T* p) const {
    return bnb::BNB_ISA::load(p);
  }
  // Like load; lanes beyond the end get `rest`.
  template <class T>
  BNB_INLINE F32 load_or(const T* p, float) const {
    return bnb::BNB_ISA::load(p);
  }
  template <class T>
  BNB_INLINE void store(T* p, F32 x) const {
    bnb::BNB_ISA::store(p, x);
  }
  // x with the lanes beyond the end set to zero.
  BNB_INLINE F32 keep(F32 x) const { return x; }
};

struct PartOfVector {
  int64_t n;

  template <class T>
  BNB_INLINE F32 load(const T* p) const {
    return load_n(p, n);
  }
  template <class T>
  BNB_INLINE F32 load_or(const T* p, float rest) const {
    return select(first_n(n), load_n(p, n), set1(rest));
  }
  template <class T>
  BNB_INLINE void store(T* p, F32 x) const {
    store_n(p, x, n);
  }
  BNB_INLINE F32 keep(F32 x) const { return select(first_n(n), x, zero()); }
};

// body(i, lanes) for i = 0, width, 2 width, ... < n.
template <class Body>
BNB_INLINE void for_lanes(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + F32::width <= n; i += F32::width) body(i, WholeVector{});
  if (i < n) body(i, PartOfVector{n - i});
}

}  // namespace
}  // namespace bnb::BNB_ISA
