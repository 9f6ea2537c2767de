// The turn of rotary embedding, of the heads of one token.
#pragma once
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "kernels/rope.h"

namespace bnb::BNB_ISA {
namespace {

// The rows of the tables for a position; null where it is outside of them, which is reported.
struct Turn {
  const float *cos, *sin;
  int64_t pairs;
};
BNB_INLINE Turn turn_at(const Angles& angles, int64_t position, Fault* fault) {
  if (angles.pairs == 0) return {nullptr, nullptr, 0};
  if (position < 0 || position >= angles.positions) {
    report_fault(fault, FaultCode::index_out_of_range, position, angles.positions);
    return {nullptr, nullptr, 0};
  }
  return {angles.cos + position * angles.pairs, angles.sin + position * angles.pairs, angles.pairs};
}

// y = x [heads, dim] turned, in direction 1 or -1.
template <class X, class Y>
BNB_INLINE void turn_heads(const Turn& turn, const X* x, Y* y, int64_t heads, int64_t dim, float direction) {
  const int64_t pairs = turn.pairs, all = heads * dim, rest = 2 * pairs;
  for_lanes(pairs, [&](int64_t i, auto lanes) {
    const F32 c = lanes.load(turn.cos + i), s = lanes.load(turn.sin + i) * set1(direction);
    for (int64_t h = 0; h < all; h += dim) {
      const F32 first = lanes.load(x + h + i), second = lanes.load(x + h + pairs + i);
      lanes.store(y + h + i, first * c - second * s);
      lanes.store(y + h + pairs + i, second * c + first * s);
    }
  });
  for_lanes(dim - rest, [&](int64_t i, auto lanes) {
    for (int64_t h = rest; h < all; h += dim) lanes.store(y + h + i, lanes.load(x + h + i));
  });
}

}  // namespace
}  // namespace bnb::BNB_ISA
