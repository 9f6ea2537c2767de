// y = f(x) and dx = dy * f'(x), elementwise.
//
// Layout    flat arrays of one size.
// Work      a thread takes runs of 16 bytes, grid-stride: one read and one write of each element. The function is
//           chosen once a run, so a dtype has one kernel; raising to a power, with its calls, has its own.
// Numerics  float32, rounded once. Division and square root are correctly rounded but for that of sigmoid, exp and
//           its kin are those of CUDA's library. x^p is float64 where p is neither 1/2 nor a small whole number.
// Needs     nothing: tails and misaligned views go element by element.
#include "cuda/map.cuh"
#include "cuda/math.cuh"
#include "kernels/elementwise.h"

namespace bnb::cuda {
namespace {

constexpr float kSqrtHalf = 0.70710678118654752f;
constexpr float kInvSqrt2Pi = 0.39894228040143268f;
constexpr float kGeluSlope = 1.5957691216057308f;  // 2 sqrt(2 / pi)
constexpr float kGeluCube = 0.044715f;
constexpr float kGeluFlat = 30.0f;        // beyond, the gradient is 0 or 1, and powers of x could be infinite
constexpr double kMaxWholeExponent = 16;  // above, repeated squaring loses more than a logarithm does

__device__ __forceinline__ float sign_of(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x; }
// The standard normal distribution function.
__device__ __forceinline__ float normal_cdf(float x) { return fmaf(0.5f, erff(x * kSqrtHalf), 0.5f); }

// (1 + tanh u) / 2 = sigmoid(2 u), the approximation of normal_cdf.
__device__ __forceinline__ float tanh_cdf(float x) { return sigmoid(kGeluSlope * x * fmaf(kGeluCube * x, x, 1.0f)); }

template <int V, class F>
__device__ __forceinline__ void each(float (&x)[V], F f) {
#pragma unroll
  for (int i = 0; i < V; i++) x[i] = f(x[i]);
}
template <int V, class F>
__device__ __forceinline__ void each(float (&dy)[V], const float (&saved)[V], F f) {
#pragma unroll
  for (int i = 0; i < V; i++) dy[i] = f(dy[i], saved[i]);
}

template <int V>
__device__ __forceinline__ void apply(UnaryOp op, float (&v)[V]) {
  switch (op) {
    case UnaryOp::neg: return each(v, [](float x) { return -x; });
    case UnaryOp::abs: return each(v, [](float x) { return fabsf(x); });
    case UnaryOp::sign: return each(v, [](float x) { return sign_of(x); });
    case UnaryOp::square: return each(v, [](float x) { return x * x; });
    case UnaryOp::reciprocal: return each(v, [](float x) { return 1.0f / x; });
    case UnaryOp::sqrt: return each(v, [](float x) { return sqrtf(x); });
    case UnaryOp::rsqrt: return each(v, [](float x) { return 1.0f / sqrtf(x); });
    case UnaryOp::exp: return each(v, [](float x) { return expf(x); });
    case UnaryOp::log: return each(v, [](float x) { return logf(x); });
    case UnaryOp::sigmoid: return each(v, [](float x) { return sigmoid(x); });
    case UnaryOp::tanh: return each(v, [](float x) { return tanhf(x); });
    case UnaryOp::relu: return each(v, [](float x) { return x <= 0 ? 0.0f : x; });  // NaN stays
    case UnaryOp::silu: return each(v, [](float x) { return x * sigmoid(x); });
    case UnaryOp::gelu: return each(v, [](float x) { return x * normal_cdf(x); });
    case UnaryOp::gelu_tanh: return each(v, [](float x) { return x * tanh_cdf(x); });
    case UnaryOp::pow: return;  // pow_kernel
  }
}

// d holds dy and receives dx; `saved` is y for the ops of which UnaryOp says so, else x.
template <int V>
__device__ __forceinline__ void apply_backward(UnaryOp op, float (&d)[V], const float (&saved)[V]) {
  switch (op) {
    case UnaryOp::neg: return each(d, saved, [](float dy, float) { return -dy; });
    case UnaryOp::abs: return each(d, saved, [](float dy, float s) { return dy * sign_of(s); });
    case UnaryOp::sign: return each(d, saved, [](float, float) { return 0.0f; });
    case UnaryOp::square: return each(d, saved, [](float dy, float s) { return 2.0f * dy * s; });
    case UnaryOp::reciprocal: return each(d, saved, [](float dy, float s) { return -(dy * s * s); });
    case UnaryOp::sqrt: return each(d, saved, [](float dy, float s) { return dy / (2.0f * s); });
    case UnaryOp::rsqrt: return each(d, saved, [](float dy, float s) { return -0.5f * dy * s * s * s; });
    case UnaryOp::exp: return each(d, saved, [](float dy, float s) { return dy * s; });
    case UnaryOp::log: return each(d, saved, [](float dy, float s) { return dy / s; });
    case UnaryOp::sigmoid: return each(d, saved, [](float dy, float s) { return dy * s * (1.0f - s); });
    case UnaryOp::tanh: return each(d, saved, [](float dy, float s) { return dy * fmaf(-s, s, 1.0f); });
    case UnaryOp::relu: return each(d, saved, [](float dy, float s) { return s > 0 ? dy : 0.0f; });
    case UnaryOp::silu:
      return each(d, saved, [](float dy, float s) {
        const float gate = sigmoid(s);
        return dy * gate * fmaf(s, 1.0f - gate, 1.0f);
      });
    case UnaryOp::gelu:
      return each(d, saved, [](float dy, float s) {
        const float density = kInvSqrt2Pi * expf(-0.5f * s * s);
        return dy * fmaf(s, density, normal_cdf(s));
      });
    case UnaryOp::gelu_tanh:
      return each(d, saved, [](float dy, float s) {
        const float gate = tanh_cdf(s), t = fminf(fmaxf(s, -kGeluFlat), kGeluFlat);
        const float slope = kGeluSlope * fmaf(3.0f * kGeluCube * t, t, 1.0f);
        return dy * fmaf(t * gate * (1.0f - gate), slope, gate);
      });
    case UnaryOp::pow: return;  // pow_backward_kernel
  }
}

template <class T>
__global__ void __launch_bounds__(kMapThreads) unary_kernel(const T* x, T* y, int64_t n, UnaryOp op, bool vectors) {
  constexpr int V = kVector<T>;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float v[V];
    load_floats(x + i, count, whole, v);
    apply(op, v);
    store_floats(y + i, count, whole, v);
  });
}

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    unary_backward_kernel(const T* dy, const T* saved, T* dx, int64_t n, UnaryOp op, bool vectors) {
  constexpr int V = kVector<T>;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float d[V], s[V];
    load_floats(dy + i, count, whole, d);
    load_floats(saved + i, count, whole, s);
    apply_backward(op, d, s);
    store_floats(dx + i, count, whole, d);
  });
}

// --- powers --------------------------------------------------------------------------------------------------------

enum class PowerKind : int32_t { root, whole, inverse, general };
struct Power {
  double exponent;
  uint32_t magnitude;  // of a whole exponent
  PowerKind kind;
};

Power power_of(double exponent) {
  if (exponent == 0.5) return {exponent, 0, PowerKind::root};
  const bool small = exponent >= -kMaxWholeExponent && exponent <= kMaxWholeExponent;
  const int32_t whole = small ? static_cast<int32_t>(exponent) : 0;
  if (exponent != whole) return {exponent, 0, PowerKind::general};
  return {exponent, static_cast<uint32_t>(whole < 0 ? -whole : whole),
          whole < 0 ? PowerKind::inverse : PowerKind::whole};
}

// x^k by repeated squaring: exact where the result is representable.
__device__ __forceinline__ float whole_power(float x, uint32_t k) {
  float result = 1.0f;
  for (; k; k >>= 1) {
    if (k & 1) result = result * x;
    x = x * x;
  }
  return result;
}

template <int V>
__device__ __forceinline__ void raise(const Power& p, float (&v)[V]) {
  switch (p.kind) {
    case PowerKind::root: return each(v, [](float x) { return sqrtf(x); });
    case PowerKind::whole: return each(v, [&](float x) { return whole_power(x, p.magnitude); });
    case PowerKind::inverse: return each(v, [&](float x) { return 1.0f / whole_power(x, p.magnitude); });
    case PowerKind::general:
      return each(v, [&](float x) { return static_cast<float>(pow(static_cast<double>(x), p.exponent)); });
  }
}

template <class T>
__global__ void __launch_bounds__(kMapThreads) pow_kernel(const T* x, T* y, int64_t n, Power p, bool vectors) {
  constexpr int V = kVector<T>;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float v[V];
    load_floats(x + i, count, whole, v);
    raise(p, v);
    store_floats(y + i, count, whole, v);
  });
}

// dx = dy * factor * x^p, where p is one less than the exponent of the function and factor is the exponent.
template <class T>
__global__ void __launch_bounds__(kMapThreads)
    pow_backward_kernel(const T* dy, const T* x, T* dx, int64_t n, float factor, Power p, bool vectors) {
  constexpr int V = kVector<T>;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float d[V], v[V];
    load_floats(dy + i, count, whole, d);
    load_floats(x + i, count, whole, v);
    raise(p, v);
    each(d, v, [&](float g, float power) { return g * factor * power; });
    store_floats(dx + i, count, whole, d);
  });
}

}  // namespace

void unary(const UnaryArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto* x = static_cast<const T*>(a.x);
    auto* y = static_cast<T*>(a.y);
    const dim3 grid = map_grid(s, a.n, kVector<T>);
    const bool vectors = vectors_fit<T, kVector<T>>(x, y);
    if (a.op == UnaryOp::pow) {
      launch(s, pow_kernel<T>, grid, dim3(kMapThreads), 0, x, y, a.n, power_of(a.exponent), vectors);
    } else {
      launch(s, unary_kernel<T>, grid, dim3(kMapThreads), 0, x, y, a.n, a.op, vectors);
    }
  });
}

void unary_backward(const UnaryBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto *dy = static_cast<const T*>(a.dy), *saved = static_cast<const T*>(a.saved);
    auto* dx = static_cast<T*>(a.dx);
    const dim3 grid = map_grid(s, a.n, kVector<T>);
    const bool vectors = vectors_fit<T, kVector<T>>(dy, saved, dx);
    if (a.op == UnaryOp::pow) {
      launch(s, pow_backward_kernel<T>, grid, dim3(kMapThreads), 0, dy, saved, dx, a.n, static_cast<float>(a.exponent),
             power_of(a.exponent == 0 ? 0 : a.exponent - 1), vectors);
    } else {
      launch(s, unary_backward_kernel<T>, grid, dim3(kMapThreads), 0, dy, saved, dx, a.n, a.op, vectors);
    }
  });
}

}  // namespace bnb::cuda
