// Conversion between element types.
//
// Layout    flat.
// Work      chunks of elements; float to float goes through vectors, the rest through plain loops.
// Numerics  to a float: nearest even through float32. To an integer: toward zero, saturating, NaN is 0.
// Needs     nothing.
#include "kernels/cast.h"

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "kernels/convert.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kGrain = 1 << 15;

template <class T>
constexpr bool kIsFloat = __is_same(T, float) || __is_same(T, f16) || __is_same(T, bf16);

template <class From, class To>
BNB_INLINE To convert(From v) {
  if constexpr (kIsFloat<From> && kIsFloat<To>) {
    return from_float<To>(to_float(v));
  } else if constexpr (kIsFloat<From>) {
    return saturate<To>(to_float(v));
  } else if constexpr (kIsFloat<To>) {
    return from_float<To>(static_cast<float>(v));
  } else {
    return saturate<To>(static_cast<int32_t>(v));
  }
}

template <class From, class To>
void cast_range(const From* x, To* y, int64_t n) {
  if constexpr (kIsFloat<From> && kIsFloat<To>) {
    int64_t i = 0;
    for (; i + F32::width <= n; i += F32::width) store(y + i, load(x + i));
    if (i < n) store_n(y + i, load_n(x + i, n - i), n - i);
  } else {
    for (int64_t i = 0; i < n; i++) y[i] = convert<From, To>(x[i]);
  }
}

template <class F>
BNB_INLINE void visit_type(DType t, const F& f) {
  switch (t) {
    case DType::float32: return f(float{});
    case DType::float16: return f(f16{});
    case DType::bfloat16: return f(bf16{});
    case DType::int8: return f(int8_t{});
    case DType::uint8: return f(uint8_t{});
    case DType::int32: return f(int32_t{});
    case DType::float64: return;  // refused by the op
  }
}

}  // namespace

void cast(const CastArgs& a) {
  visit_type(a.from, [&](auto from) {
    visit_type(a.to, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
        cast_range(static_cast<const From*>(a.x) + begin, static_cast<To*>(a.y) + begin, end - begin);
      });
    });
  });
}

}  // namespace bnb::BNB_ISA
