// The smooth relu and its gradient.
//
// Layout    flat arrays of one size.
// Work      chunks of 16384 elements, one read and one write of each.
// Numerics  float32 with one rounding at the store. log(1 + exp(t)) is max(t, 0) + log1p(exp(-|t|)): nothing overflows,
//           and a far negative t keeps its digits.
// Needs     nothing: tails go through load_n and store_n.
#include "kernels/softplus.h"

#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 16384;

BNB_INLINE F32 softplus(F32 x, F32 beta, F32 threshold) {
  const F32 t = x * beta;
  // The order of operands lets NaN through.
  const F32 y = (max(zero(), t) + log1p(exp(-abs(t)))) / beta;
  return select(lt(threshold, t), x, y);
}

BNB_INLINE F32 softplus_gradient(F32 dy, F32 x, F32 beta, F32 threshold) {
  const F32 t = x * beta;
  return select(lt(threshold, t), dy, dy * sigmoid(t));
}

}  // namespace

void softplus(const SoftplusArgs& a) {
  const F32 beta = set1(a.beta), threshold = set1(a.threshold);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const T* x = static_cast<const T*>(a.x);
    T* y = static_cast<T*>(a.y);
    parallel_for(a.n, kChunkElements, [&](int64_t begin, int64_t end) {
      int64_t i = begin;
      for (; i + F32::width <= end; i += F32::width) store(y + i, softplus(load(x + i), beta, threshold));
      if (i < end) store_n(y + i, softplus(load_n(x + i, end - i), beta, threshold), end - i);
    });
  });
}

void softplus_backward(const SoftplusBackwardArgs& a) {
  const F32 beta = set1(a.beta), threshold = set1(a.threshold);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
    T* dx = static_cast<T*>(a.dx);
    parallel_for(a.n, kChunkElements, [&](int64_t begin, int64_t end) {
      int64_t i = begin;
      for (; i + F32::width <= end; i += F32::width) {
        store(dx + i, softplus_gradient(load(dy + i), load(x + i), beta, threshold));
      }
      if (i < end) {
        const int64_t n = end - i;
        store_n(dx + i, softplus_gradient(load_n(dy + i, n), load_n(x + i, n), beta, threshold), n);
      }
    });
  });
}

}  // namespace bnb::BNB_ISA
