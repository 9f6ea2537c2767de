// Limits on both sides, and the gradient that passes between them.
//
// Layout    flat arrays of one size.
// Work      chunks of 16384 elements, one read and one write of each.
// Numerics  comparisons in float32; a limit is rounded to the dtype of x where it is written.
// Needs     low <= high.
#include "kernels/clamp.h"

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 16384;

}  // namespace

void clamp(const ClampArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const T* x = static_cast<const T*>(a.x);
    T* y = static_cast<T*>(a.y);
    parallel_for(a.n, kChunkElements, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const float v = to_float(x[i]);
        y[i] = from_float<T>(v < a.low ? a.low : v > a.high ? a.high : v);
      }
    });
  });
}

void clamp_backward(const ClampBackwardArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
    T* dx = static_cast<T*>(a.dx);
    parallel_for(a.n, kChunkElements, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const float v = to_float(x[i]);
        dx[i] = v >= a.low && v <= a.high ? dy[i] : T{};
      }
    });
  });
}

}  // namespace bnb::BNB_ISA
