// Rotary position embedding on half-split pairs, forward and inverse, alone or on the way into a cache.
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

template <class T>
void append(const RopeAppendArgs& a) {
  const int64_t half = a.dim / 2, q_elements = a.heads * a.dim, elements = a.kv_heads * a.dim;
  parallel_for(a.batch * a.length, grain_of(q_elements), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const int64_t at = a.offset + p % a.length, slot = (p / a.length * a.capacity + at) * elements;
      const Turn turn = {a.cos + at * half, a.sin + at * half, half};
      turn_heads(turn, static_cast<const T*>(a.q) + p * q_elements, static_cast<T*>(a.y) + p * q_elements, a.heads,
                 a.dim, 1.0f);
      turn_heads(turn, static_cast<const T*>(a.k) + p * elements, static_cast<T*>(a.keys) + slot, a.kv_heads, a.dim,
                 1.0f);
      const T* v = static_cast<const T*>(a.v) + p * elements;
      T* values = static_cast<T*>(a.values) + slot;
      for (int64_t i = 0; i < elements; i++) values[i] = v[i];
    }
  });
}

}  // namespace

void rope(const RopeArgs& args) {
  RopeArgs a = args;
  if (!resolve(a.position, a.offset)) return;
  visit_float(a.dtype, [&](auto t) { rotate<decltype(t)>(a); });
}

void rope_append(const RopeAppendArgs& args) {
  RopeAppendArgs a = args;
  if (!resolve(a.position, a.offset)) return;
  visit_float(a.dtype, [&](auto t) { append<decltype(t)>(a); });
}

}  // namespace bnb::BNB_ISA
