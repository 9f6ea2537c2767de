// Rotary position embedding on half-split pairs, forward and inverse.
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

template <class T>
void rotate(const RopeArgs& a) {
  const int64_t half = a.dim / 2, position = a.heads * a.dim;
  const F32 direction = set1(a.inverse ? -1.0f : 1.0f);
  const int64_t grain = position < kChunkElements ? kChunkElements / (position < 1 ? 1 : position) : 1;
  parallel_for(a.batch * a.length, grain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const T* x = static_cast<const T*>(a.x) + p * position;
      T* y = static_cast<T*>(a.y) + p * position;
      const float* cos = a.cos + (a.offset + p % a.length) * half;
      const float* sin = a.sin + (a.offset + p % a.length) * half;
      for_lanes(half, [&](int64_t i, auto lanes) {
        const F32 c = lanes.load(cos + i), s = lanes.load(sin + i) * direction;
        for (int64_t h = 0; h < position; h += a.dim) {
          const F32 first = lanes.load(x + h + i), second = lanes.load(x + h + half + i);
          lanes.store(y + h + i, first * c - second * s);
          lanes.store(y + h + half + i, second * c + first * s);
        }
      });
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
