// y = silu(gate) * up and its gradient.
//
// Layout    flat arrays of one size.
// Work      chunks of 8192 elements, one read and one write of each.
// Numerics  float32, rounded once. With s = sigmoid(gate): dup = dy * gate * s and
//           dgate = dy * up * s * (1 + gate * (1 - s)).
// Needs     nothing.
#include "kernels/swiglu.h"

#include "cpu/lanes.h"
#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 8192;

template <class T>
void forward(const SwigluArgs& a) {
  parallel_for(a.size, kChunkElements, [&](int64_t begin, int64_t end) {
    const T* gate = static_cast<const T*>(a.gate) + begin;
    const T* up = static_cast<const T*>(a.up) + begin;
    T* y = static_cast<T*>(a.y) + begin;
    for_lanes(end - begin, [&](int64_t i, auto lanes) {
      const F32 g = lanes.load(gate + i);
      lanes.store(y + i, g * sigmoid(g) * lanes.load(up + i));
    });
  });
}

template <class T>
void backward(const SwigluBackwardArgs& a) {
  parallel_for(a.size, kChunkElements, [&](int64_t begin, int64_t end) {
    const T* dy = static_cast<const T*>(a.dy) + begin;
    const T* gate = static_cast<const T*>(a.gate) + begin;
    const T* up = static_cast<const T*>(a.up) + begin;
    T* dgate = static_cast<T*>(a.dgate) + begin;
    T* dup = static_cast<T*>(a.dup) + begin;
    for_lanes(end - begin, [&](int64_t i, auto lanes) {
      const F32 d = lanes.load(dy + i), g = lanes.load(gate + i), s = sigmoid(g);
      lanes.store(dup + i, d * g * s);
      lanes.store(dgate + i, d * lanes.load(up + i) * s * fma(g, set1(1.0f) - s, set1(1.0f)));
    });
  });
}

}  // namespace

void swiglu(const SwigluArgs& a) {
  visit_float(a.dtype, [&](auto t) { forward<decltype(t)>(a); });
}

void swiglu_backward(const SwigluBackwardArgs& a) {
  visit_float(a.dtype, [&](auto t) { backward<decltype(t)>(a); });
}

}  // namespace bnb::BNB_ISA
