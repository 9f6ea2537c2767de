// Rotary position embedding on half-split pairs, forward and inverse.
//
// Layout    x [batch, length, heads, dim]; a pair is (i, i + pairs), its angle in the row of the token's position.
// Work      an item is a run of tokens; all heads of one share the loaded cosines.
// Numerics  float32, rounded once to the dtype of x.
// Needs     nothing.
#include "kernels/rope.h"

#include "cpu/parallel.h"
#include "cpu/position.h"
#include "cpu/turn.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 16384;

BNB_INLINE int64_t grain_of(int64_t elements) {
  return elements < kChunkElements ? kChunkElements / (elements < 1 ? 1 : elements) : 1;
}

template <class T>
void rotate(const RopeArgs& a) {
  const int64_t elements = a.heads * a.dim;
  parallel_for(a.batch * a.length, grain_of(elements), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const int64_t at = a.positions ? a.positions[p] : a.offset + p % a.length;
      turn_heads(turn_at(a.angles, at, a.fault), static_cast<const T*>(a.x) + p * elements,
                 static_cast<T*>(a.y) + p * elements, a.heads, a.dim, a.inverse ? -1.0f : 1.0f);
    }
  });
}

}  // namespace

void rope(const RopeArgs& args) {
  RopeArgs a = args;
  if (!resolve(a.position, a.offset)) return;
  visit_float(a.dtype, [&](auto t) { rotate<decltype(t)>(a); });
}

}  // namespace bnb::BNB_ISA
