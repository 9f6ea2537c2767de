// Rotary position embedding on half-split pairs, forward and inverse, alone or on the way into a cache.
//
// Layout    x [batch, length, heads, dim]; a pair is (i, i + dim/2), its angle in row offset + t.
// Work      an item is a run of (batch, t) positions; all heads of one share the loaded cosines.
// Numerics  float32, rounded once to the dtype of x.
// Needs     dim even.
#include "kernels/rope.h"

#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/position.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 16384;

BNB_INLINE int64_t grain_of(int64_t elements) {
  return elements < kChunkElements ? kChunkElements / (elements < 1 ? 1 : elements) : 1;
}

// The heads of one position, `elements` in all; direction 1 or -1.
template <class T>
BNB_INLINE void turn(const T* x, T* y, int64_t elements, int64_t dim, const float* cos, const float* sin,
                     float direction) {
  const int64_t half = dim / 2;
  for_lanes(half, [&](int64_t i, auto lanes) {
    const F32 c = lanes.load(cos + i), s = lanes.load(sin + i) * set1(direction);
    for (int64_t h = 0; h < elements; h += dim) {
      const F32 first = lanes.load(x + h + i), second = lanes.load(x + h + half + i);
      lanes.store(y + h + i, first * c - second * s);
      lanes.store(y + h + half + i, second * c + first * s);
    }
  });
}

template <class T>
void rotate(const RopeArgs& a) {
  const int64_t half = a.dim / 2, elements = a.heads * a.dim;
  parallel_for(a.batch * a.length, grain_of(elements), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const int64_t row = (a.offset + p % a.length) * half;
      turn(static_cast<const T*>(a.x) + p * elements, static_cast<T*>(a.y) + p * elements, elements, a.dim, a.cos + row,
           a.sin + row, a.inverse ? -1.0f : 1.0f);
    }
  });
}

template <class T>
void append(const RopeAppendArgs& a) {
  const int64_t half = a.dim / 2, q_elements = a.heads * a.dim, elements = a.kv_heads * a.dim;
  parallel_for(a.batch * a.length, grain_of(q_elements), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const int64_t at = a.offset + p % a.length, slot = (p / a.length * a.capacity + at) * elements;
      const float *cos = a.cos + at * half, *sin = a.sin + at * half;
      turn(static_cast<const T*>(a.q) + p * q_elements, static_cast<T*>(a.y) + p * q_elements, q_elements, a.dim, cos,
           sin, 1.0f);
      turn(static_cast<const T*>(a.k) + p * elements, static_cast<T*>(a.keys) + slot, elements, a.dim, cos, sin, 1.0f);
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
