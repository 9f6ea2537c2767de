// Elementwise functions and their gradients.
//
// Layout    operands are contiguous; a broadcast operand stands still along the axes of its *_repeats mask.
// Work      chunks of the output. Two operands: runs of the innermost axis, each operand a vector or one number.
// Numerics  float32 with one rounding at the store; div, sqrt are correctly rounded, exp and its kin within
//           a few ulp. int32 wraps.
// Needs     nothing: tails go through load_n and store_n.
#include "kernels/elementwise.h"

#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;

// y = f(x), and y = f(p, q), over n elements.
template <class T, class F>
BNB_INLINE void map(const T* x, T* y, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + F32::width <= n; i += F32::width) store(y + i, f(load(x + i)));
  if (i < n) store_n(y + i, f(load_n(x + i, n - i)), n - i);
}
template <class T, class F>
BNB_INLINE void map(const T* p, const T* q, T* y, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + F32::width <= n; i += F32::width) store(y + i, f(load(p + i), load(q + i)));
  if (i < n) store_n(y + i, f(load_n(p + i, n - i), load_n(q + i, n - i)), n - i);
}

// --- One operand -----------------------------------------------------------------------------------------

constexpr float kSqrtHalf = 0.70710678118654752f;
constexpr float kInvSqrt2Pi = 0.39894228040143268f;
constexpr float kGeluSlope = 1.5957691216057308f;  // 2 sqrt(2 / pi)
constexpr float kGeluCube = 0.044715f;
constexpr float kGeluFlat = 30.0f;  // beyond, the gradient is 0 or 1, and powers of x could be infinite

BNB_INLINE F32 is_positive(F32 x, F32 then) { return select(lt(zero(), x), then, zero()); }
// (1 + tanh u) / 2 = sigmoid(2 u), the approximation of normal_cdf.
BNB_INLINE F32 tanh_cdf(F32 x) { return sigmoid(set1(kGeluSlope) * x * fma(set1(kGeluCube) * x, x, set1(1.0f))); }
// The standard normal distribution function.
BNB_INLINE F32 normal_cdf(F32 x) {
  const F32 half = set1(0.5f);
  return fma(half, erf(x * set1(kSqrtHalf)), half);
}
BNB_INLINE F32 sign_of(F32 x) { return select(lt(zero(), x), set1(1.0f), select(lt(x, zero()), set1(-1.0f), x)); }

// x^k for a whole k >= 0 by repeated squaring: exact where the result is representable.
BNB_INLINE F32 power(F32 x, uint32_t k) {
  F32 result = set1(1.0f);
  for (; k; k >>= 1) {
    if (k & 1) result = result * x;
    x = x * x;
  }
  return result;
}

constexpr double kMaxWholeExponent = 16;  // above, repeated squaring loses more than a logarithm does

BNB_INLINE int64_t double_bits(double x) {
  int64_t u;
  __builtin_memcpy(&u, &x, sizeof u);
  return u;
}
BNB_INLINE double double_from_bits(int64_t u) {
  double x;
  __builtin_memcpy(&x, &u, sizeof x);
  return x;
}

// |x|^p in float64, so that the float32 result is rounded once: exp(p log x), the logarithm of the mantissa m
// in [sqrt(1/2), sqrt(2)) as 2 artanh((m - 1) / (m + 1)), the exponential by its series on |r| <= ln(2) / 2.
BNB_INLINE float power_of_magnitude(float x, double p) {
  const double ax = static_cast<double>(__builtin_fabsf(x));
  if (!(ax > 0 && ax < __builtin_inf())) {
    return ax != ax ? x : (ax == 0) == (p > 0) ? 0.0f : __builtin_inff();
  }
  const int64_t bits = double_bits(ax), e = (bits - 0x3fe6a09e667f3bcd) >> 52;  // sqrt(1/2)
  const double m = double_from_bits(bits - e * (int64_t{1} << 52));
  const double s = (m - 1) / (m + 1), z = s * s;
  double series = 1.0 / 15;
  for (int k = 13; k >= 1; k -= 2) series = series * z + 1.0 / k;
  double t = (static_cast<double>(e) + 2 * s * series * 1.4426950408889634) * p;  // base 2
  t = t > 1000 ? 1000 : t < -1000 ? -1000 : t;
  const double n = t + 6755399441055744.0 - 6755399441055744.0;  // nearest integer
  const double r = (t - n) * 0.69314718055994531;
  double y = 1;
  for (int k = 10; k >= 1; k--) y = y * r / k + 1;
  return static_cast<float>(y * double_from_bits((static_cast<int64_t>(n) + 1023) << 52));
}

// A negative x needs a whole exponent, whose last bit decides the sign; -infinity is excepted as in libm.
BNB_INLINE float power(float x, double p, bool is_whole, bool is_odd) {
  const float y = power_of_magnitude(x, p);
  if (x < 0 && is_whole) return is_odd ? -y : y;
  if (x < 0 && x > -__builtin_inff()) return __builtin_nanf("");
  return y;
}

// Calls f with a function of F32 that raises to the exponent.
template <class F>
BNB_INLINE void with_power(double exponent, const F& f) {
  const int32_t whole =
      exponent >= -kMaxWholeExponent && exponent <= kMaxWholeExponent ? static_cast<int32_t>(exponent) : 0;
  if (exponent == 0.5) {
    f([](F32 x) { return sqrt(x); });
  } else if (exponent == whole && whole >= 0) {
    f([=](F32 x) { return power(x, static_cast<uint32_t>(whole)); });
  } else if (exponent == whole) {
    f([=](F32 x) { return set1(1.0f) / power(x, static_cast<uint32_t>(-whole)); });
  } else {
    const double magnitude = __builtin_fabs(exponent);
    const bool is_whole =
        magnitude >= 4503599627370496.0 || magnitude == static_cast<double>(static_cast<int64_t>(magnitude));
    const bool is_odd = magnitude < 9007199254740992.0 && is_whole && (static_cast<int64_t>(magnitude) & 1);
    f([=](F32 x) {
      float lane[F32::width];
      store(lane, x);
      for (float& v : lane) v = power(v, exponent, is_whole, is_odd);
      return load(lane);
    });
  }
}

// Calls f with the function of F32 that op names.
template <class F>
BNB_INLINE void with_unary(const UnaryArgs& a, const F& f) {
  switch (a.op) {
    case UnaryOp::neg: return f([](F32 x) { return -x; });
    case UnaryOp::abs: return f([](F32 x) { return abs(x); });
    case UnaryOp::sign: return f([](F32 x) { return sign_of(x); });
    case UnaryOp::square: return f([](F32 x) { return x * x; });
    case UnaryOp::reciprocal: return f([](F32 x) { return set1(1.0f) / x; });
    case UnaryOp::sqrt: return f([](F32 x) { return sqrt(x); });
    case UnaryOp::rsqrt: return f([](F32 x) { return set1(1.0f) / sqrt(x); });
    case UnaryOp::exp: return f([](F32 x) { return exp(x); });
    case UnaryOp::log: return f([](F32 x) { return log(x); });
    case UnaryOp::sigmoid: return f([](F32 x) { return sigmoid(x); });
    case UnaryOp::tanh: return f([](F32 x) { return tanh(x); });
    case UnaryOp::relu: return f([](F32 x) { return select(le(x, zero()), zero(), x); });
    case UnaryOp::silu: return f([](F32 x) { return x * sigmoid(x); });
    case UnaryOp::gelu: return f([](F32 x) { return x * normal_cdf(x); });
    case UnaryOp::gelu_tanh: return f([](F32 x) { return x * tanh_cdf(x); });
    case UnaryOp::pow: return with_power(a.exponent, f);
  }
}

// Calls f with the function (dy, saved) -> dx. `s` is y for the ops of which UnaryOp says so, else x.
template <class F>
BNB_INLINE void with_unary_backward(const UnaryBackwardArgs& a, const F& f) {
  const F32 one = set1(1.0f), two = set1(2.0f);
  switch (a.op) {
    case UnaryOp::neg: return f([](F32 dy, F32) { return -dy; });
    case UnaryOp::abs: return f([](F32 dy, F32 s) { return dy * sign_of(s); });
    case UnaryOp::sign: return f([](F32, F32) { return zero(); });
    case UnaryOp::square: return f([=](F32 dy, F32 s) { return two * dy * s; });
    case UnaryOp::reciprocal: return f([](F32 dy, F32 s) { return -(dy * s * s); });
    case UnaryOp::sqrt: return f([=](F32 dy, F32 s) { return dy / (two * s); });
    case UnaryOp::rsqrt: return f([](F32 dy, F32 s) { return set1(-0.5f) * dy * s * s * s; });
    case UnaryOp::exp: return f([](F32 dy, F32 s) { return dy * s; });
    case UnaryOp::log: return f([](F32 dy, F32 s) { return dy / s; });
    case UnaryOp::sigmoid: return f([=](F32 dy, F32 s) { return dy * s * (one - s); });
    case UnaryOp::tanh: return f([=](F32 dy, F32 s) { return dy * fma(-s, s, one); });
    case UnaryOp::relu: return f([](F32 dy, F32 s) { return is_positive(s, dy); });
    case UnaryOp::silu:
      return f([=](F32 dy, F32 s) {
        const F32 gate = sigmoid(s);
        return dy * gate * fma(s, one - gate, one);
      });
    case UnaryOp::gelu:
      return f([](F32 dy, F32 s) {
        const F32 density = set1(kInvSqrt2Pi) * exp(set1(-0.5f) * s * s);
        return dy * fma(s, density, normal_cdf(s));
      });
    case UnaryOp::gelu_tanh:
      return f([=](F32 dy, F32 s) {
        const F32 gate = tanh_cdf(s), t = min(max(s, set1(-kGeluFlat)), set1(kGeluFlat));
        const F32 slope = set1(kGeluSlope) * fma(set1(3.0f * kGeluCube) * t, t, one);
        return dy * fma(t * gate * (one - gate), slope, gate);
      });
    case UnaryOp::pow: {
      const F32 p = set1(static_cast<float>(a.exponent));
      return with_power(a.exponent == 0 ? 0 : a.exponent - 1,
                        [&](const auto& g) { f([=](F32 dy, F32 s) { return dy * p * g(s); }); });
    }
  }
}

// --- Two operands ----------------------------------------------------------------------------------------

// What the innermost axis looks like to the operands.
enum class Run { vectors, a_is_one, b_is_one };

BNB_INLINE Run run_kind(const BroadcastAxes& axes) {
  const int last = axes.ndim - 1;
  if (axes.a_repeats >> last & 1) return Run::a_is_one;
  return axes.b_repeats >> last & 1 ? Run::b_is_one : Run::vectors;
}

// Calls f(offset in a, offset in b, offset in y, count) for the runs of the innermost axis that make up
// the elements [begin, end) of the output.
template <class F>
BNB_INLINE void for_each_run(const BroadcastAxes& axes, int64_t begin, int64_t end, const F& f) {
  const int last = axes.ndim - 1;
  int64_t index[kBroadcastAxes], a_stride[kBroadcastAxes], b_stride[kBroadcastAxes];
  int64_t a = 0, b = 0, a_size = 1, b_size = 1, rest = begin;
  for (int k = last; k >= 0; k--) {
    const bool a_repeats = axes.a_repeats >> k & 1, b_repeats = axes.b_repeats >> k & 1;
    a_stride[k] = a_repeats ? 0 : a_size;
    b_stride[k] = b_repeats ? 0 : b_size;
    a_size *= a_repeats ? 1 : axes.dims[k];
    b_size *= b_repeats ? 1 : axes.dims[k];
    index[k] = rest % axes.dims[k];
    rest /= axes.dims[k];
    a += index[k] * a_stride[k];
    b += index[k] * b_stride[k];
  }
  for (int64_t y = begin; y < end;) {
    const int64_t left = axes.dims[last] - index[last];
    const int64_t count = left < end - y ? left : end - y;
    f(a, b, y, count);
    y += count;
    a += count * a_stride[last];
    b += count * b_stride[last];
    index[last] += count;
    for (int k = last; k > 0 && index[k] == axes.dims[k]; k--) {
      a += a_stride[k - 1] - index[k] * a_stride[k];
      b += b_stride[k - 1] - index[k] * b_stride[k];
      index[k] = 0;
      index[k - 1]++;
    }
  }
}

// A NaN on either side gives NaN.
BNB_INLINE F32 larger(F32 a, F32 b) { return select(eq(b, b), select(lt(a, b), b, a), b); }
BNB_INLINE F32 smaller(F32 a, F32 b) { return select(eq(b, b), select(lt(b, a), b, a), b); }

template <class F>
BNB_INLINE void with_binary(BinaryOp op, const F& f) {
  switch (op) {
    case BinaryOp::add: return f([](F32 a, F32 b) { return a + b; });
    case BinaryOp::sub: return f([](F32 a, F32 b) { return a - b; });
    case BinaryOp::mul: return f([](F32 a, F32 b) { return a * b; });
    case BinaryOp::div: return f([](F32 a, F32 b) { return a / b; });
    case BinaryOp::maximum: return f([](F32 a, F32 b) { return larger(a, b); });
    case BinaryOp::minimum: return f([](F32 a, F32 b) { return smaller(a, b); });
  }
}

template <class F>
BNB_INLINE void with_integer_binary(BinaryOp op, const F& f) {
  // Unsigned, because a wrapping signed sum is undefined.
  const auto wrapping = [&](auto g) {
    f([g](int32_t a, int32_t b) {
      return static_cast<int32_t>(g(static_cast<uint32_t>(a), static_cast<uint32_t>(b)));
    });
  };
  switch (op) {
    case BinaryOp::add: return wrapping([](uint32_t a, uint32_t b) { return a + b; });
    case BinaryOp::sub: return wrapping([](uint32_t a, uint32_t b) { return a - b; });
    case BinaryOp::mul: return wrapping([](uint32_t a, uint32_t b) { return a * b; });
    case BinaryOp::maximum: return f([](int32_t a, int32_t b) { return a > b ? a : b; });
    case BinaryOp::minimum: return f([](int32_t a, int32_t b) { return a < b ? a : b; });
    case BinaryOp::div: return;  // refused by the op
  }
}

template <class T, class F>
void binary_float(const BinaryArgs& args, const F& f) {
  const T *a = static_cast<const T*>(args.a), *b = static_cast<const T*>(args.b);
  T* y = static_cast<T*>(args.y);
  if (!b) {
    const F32 number = set1(static_cast<float>(args.number));
    return parallel_for(args.n, kGrain, [&](int64_t begin, int64_t end) {
      map(a + begin, y + begin, end - begin, [&](F32 v) { return f(v, number); });
    });
  }
  const Run run = run_kind(args.axes);
  parallel_for(args.n, kGrain, [&](int64_t begin, int64_t end) {
    for_each_run(args.axes, begin, end, [&](int64_t ia, int64_t ib, int64_t iy, int64_t count) {
      if (run == Run::vectors) {
        map(a + ia, b + ib, y + iy, count, f);
      } else if (run == Run::a_is_one) {
        const F32 one = set1(to_float(a[ia]));
        map(b + ib, y + iy, count, [&](F32 v) { return f(one, v); });
      } else {
        const F32 one = set1(to_float(b[ib]));
        map(a + ia, y + iy, count, [&](F32 v) { return f(v, one); });
      }
    });
  });
}

template <class F>
void binary_integer(const BinaryArgs& args, const F& f) {
  const int32_t *a = static_cast<const int32_t*>(args.a), *b = static_cast<const int32_t*>(args.b);
  int32_t* y = static_cast<int32_t*>(args.y);
  if (!b) {
    const int32_t number = static_cast<int32_t>(args.number);
    return parallel_for(args.n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) y[i] = f(a[i], number);
    });
  }
  const Run run = run_kind(args.axes);
  parallel_for(args.n, kGrain, [&](int64_t begin, int64_t end) {
    for_each_run(args.axes, begin, end, [&](int64_t ia, int64_t ib, int64_t iy, int64_t count) {
      const int64_t a_step = run != Run::a_is_one, b_step = run != Run::b_is_one;
      for (int64_t i = 0; i < count; i++) y[iy + i] = f(a[ia + i * a_step], b[ib + i * b_step]);
    });
  });
}

struct Grads {
  F32 da, db;
};

template <class F>
BNB_INLINE void with_binary_backward(BinaryOp op, const F& f) {
  // A winner takes dy, at a tie each gets half.
  const auto shared = [](F32 dy, F32 a, F32 b) {
    return select(eq(a, b), dy * set1(0.5f), select(lt(b, a), dy, zero()));
  };
  switch (op) {
    case BinaryOp::mul: return f([](F32 dy, F32 a, F32 b) { return Grads{dy * b, dy * a}; });
    case BinaryOp::div:
      return f([](F32 dy, F32 a, F32 b) {
        const F32 da = dy / b;
        return Grads{da, -(da * a / b)};
      });
    case BinaryOp::maximum: return f([=](F32 dy, F32 a, F32 b) { return Grads{shared(dy, a, b), shared(dy, b, a)}; });
    case BinaryOp::minimum: return f([=](F32 dy, F32 a, F32 b) { return Grads{shared(dy, b, a), shared(dy, a, b)}; });
    case BinaryOp::add:
    case BinaryOp::sub: return;  // need no kernel
  }
}

// Stores n lanes of a gradient that may be wider than the operands, or unwanted.
template <class T>
BNB_INLINE void store_gradient(void* p, bool wide, int64_t i, F32 v, int64_t n) {
  if (!p) return;
  if (wide) {
    store_part(static_cast<float*>(p) + i, v, n);
  } else {
    store_part(static_cast<T*>(p) + i, v, n);
  }
}

template <class T, class F>
void binary_backward_float(const BinaryBackwardArgs& args, const F& f) {
  const T *a = static_cast<const T*>(args.a), *b = static_cast<const T*>(args.b);
  const T* dy = static_cast<const T*>(args.dy);
  const F32 number = set1(static_cast<float>(args.number));
  const bool a_wide = args.a_dtype == DType::float32, b_wide = args.b_dtype == DType::float32;
  const Run run = run_kind(args.axes);
  parallel_for(args.n, kGrain, [&](int64_t begin, int64_t end) {
    for_each_run(args.axes, begin, end, [&](int64_t ia, int64_t ib, int64_t iy, int64_t count) {
      for (int64_t i = 0; i < count; i += F32::width) {
        const int64_t n = count - i < F32::width ? count - i : F32::width;
        const F32 va = !a ? number : run == Run::a_is_one ? set1(to_float(a[ia])) : load_part(a + ia + i, n);
        const F32 vb = !b ? number : run == Run::b_is_one ? set1(to_float(b[ib])) : load_part(b + ib + i, n);
        const Grads g = f(load_part(dy + iy + i, n), va, vb);
        store_gradient<T>(args.da, a_wide, iy + i, g.da, n);
        store_gradient<T>(args.db, b_wide, iy + i, g.db, n);
      }
    });
  });
}

}  // namespace

void unary(const UnaryArgs& a) {
  with_unary(a, [&](const auto& f) {
    visit_float(a.dtype, [&](auto t) {
      using T = decltype(t);
      parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
        map(static_cast<const T*>(a.x) + begin, static_cast<T*>(a.y) + begin, end - begin, f);
      });
    });
  });
}

void unary_backward(const UnaryBackwardArgs& a) {
  with_unary_backward(a, [&](const auto& f) {
    visit_float(a.dtype, [&](auto t) {
      using T = decltype(t);
      parallel_for(a.n, kGrain, [&](int64_t begin, int64_t end) {
        map(static_cast<const T*>(a.dy) + begin, static_cast<const T*>(a.saved) + begin, static_cast<T*>(a.dx) + begin,
            end - begin, f);
      });
    });
  });
}

void binary(const BinaryArgs& a) {
  if (a.dtype == DType::int32) {
    with_integer_binary(a.op, [&](const auto& f) { binary_integer(a, f); });
  } else {
    with_binary(a.op, [&](const auto& f) { visit_float(a.dtype, [&](auto t) { binary_float<decltype(t)>(a, f); }); });
  }
}

void binary_backward(const BinaryBackwardArgs& a) {
  with_binary_backward(
      a.op, [&](const auto& f) { visit_float(a.dtype, [&](auto t) { binary_backward_float<decltype(t)>(a, f); }); });
}

}  // namespace bnb::BNB_ISA
