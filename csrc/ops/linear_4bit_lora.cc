// y = x @ dequantize(w)^T + bias + residual + scaling * drop(x) A^T B^T in one call, and its gradients: a frozen 4-bit
// layer with an adapter. The adapter's products read x and dy as they are and add to what the base made, so that
// nothing as wide as x or y is written for it; what dropout left is made again on the way back.

#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

// [rows, cols] as it lies, or what its rows are read as columns.
struct LoraFactor {
  const Tensor& tensor;
  bool transpose = false;
};

// c = or += a b, of any dtypes, summed in float32.
void multiply_low(const LoraFactor& a, const LoraFactor& b, const Tensor& c, int64_t m, int64_t n, int64_t k,
                  bool accumulate) {
  if (m == 0 || n == 0 || (accumulate && k == 0)) return;
  enqueue(kernels::matmul, c.device(),
          MatmulArgs{.a = a.tensor.data(),
                     .b = b.tensor.data(),
                     .bias = nullptr,
                     .c = c.data(),
                     .batch = 1,
                     .m = m,
                     .n = n,
                     .k = k,
                     .stride_a = 0,
                     .stride_b = 0,
                     .dtype_a = a.tensor.dtype(),
                     .dtype_b = b.tensor.dtype(),
                     .dtype_c = c.dtype(),
                     .transpose_a = a.transpose,
                     .transpose_b = b.transpose,
                     .accumulate = accumulate});
}

// x with zeros where dropout is; what stays is not scaled: `LoraDropout::scale` goes with the adapter's scaling.
struct LoraDropout {
  double p;
  int64_t seed, offset;

  double scale() const { return p < 1 ? 1 / (1 - p) : 0; }

  Tensor of(const Tensor& x) const {
    if (p == 0) return x;
    const Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
    enqueue(kernels::dropout, x.device(),
            DropoutArgs{.x = x.data(),
                        .y = y.data(),
                        .n = x.numel(),
                        .seed = static_cast<uint64_t>(seed),
                        .offset = static_cast<uint64_t>(offset),
                        .threshold = static_cast<uint64_t>(p * 4294967296.0),
                        .scale = p < 1 ? 1.0f : 0.0f,
                        .dtype = x.dtype()});
    return y;
  }
};

struct LoraSizes {
  int64_t m, n, k, r;
};

LoraSizes check_lora(const char* op, const Tensor& x, const Quantized4Bit& weight, const Tensor& a, const Tensor& b,
                     const LoraDropout& dropout) {
  check_shape(weight.shape.ndim() == 2, op, "weight must be a matrix [outFeatures, inFeatures], got ", weight.shape);
  const int64_t n = weight.shape[0], k = weight.shape[1];
  check_float(op, "x", x);
  check_float(op, "a", a);
  check_same_dtype(op, "a", a, "b", b);
  check_same_device(op, x, weight.packed, a, b);
  check_shape(x.ndim() >= 1 && x.shape()[-1] == k, op, "the last axis of x must be ", k, ", got ", x.shape());
  check_shape(a.ndim() == 2 && a.shape()[1] == k, op, "a must have shape [r, ", k, "], got ", a.shape());
  check_shape_is(op, "b", b, {n, a.shape()[0]});
  check_option(dropout.p >= 0 && dropout.p <= 1, op, "p must be in [0, 1], got ", dropout.p);
  check_option(dropout.seed >= 0 && dropout.offset >= 0, op, "seed and offset must not be negative, got ", dropout.seed,
               " and ", dropout.offset);
  return {x.shape().product(0, -1), n, k, a.shape()[0]};
}

}  // namespace

std::tuple<Tensor, Tensor> linear_4bit_lora(const Tensor& x, const Quantized4Bit& weight,
                                            const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                                            const Tensor& a, const Tensor& b, double scaling, double p, int64_t seed,
                                            int64_t offset) {
  const LoraDropout dropout{p, seed, offset};
  const auto [m, n, k, r] = check_lora("linear4bitLora", x, weight, a, b, dropout);
  const Tensor y = linear_4bit(x, weight, bias, residual);
  const Tensor low = Tensor::empty({m, r}, DType::float32, x.device());
  multiply_low({dropout.of(x)}, {a, true}, low, m, r, k, false);
  const Tensor scaled = binary(BinaryOp::mul, low, std::nullopt, scaling * dropout.scale());
  multiply_low({scaled}, {b, true}, y, m, n, r, true);
  return {y, scaled};
}

std::tuple<std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>>
linear_4bit_lora_backward(const Tensor& dy, const Tensor& x, const Quantized4Bit& weight, const Tensor& low,
                          const Tensor& a, const Tensor& b, double scaling, double p, int64_t seed, int64_t offset,
                          DType bias_dtype, bool needs_x, bool needs_bias, bool needs_a, bool needs_b) {
  constexpr const char* op = "linear4bitLoraBackward";
  const LoraDropout dropout{p, seed, offset};
  const auto [m, n, k, r] = check_lora(op, x, weight, a, b, dropout);
  check_same_device(op, x, dy, low);
  check_same_dtype(op, "x", x, "dy", dy);
  check_shape_is(op, "dy", dy, x.shape().with_last(n));
  check_dtype_is(op, "low", low, DType::float32);
  check_shape_is(op, "low", low, {m, r});
  auto [dx, dbias] = linear_4bit_backward(dy, weight, bias_dtype, needs_x, needs_bias);
  std::optional<Tensor> da, db;
  if (needs_b) {
    db = Tensor::empty(b.shape(), b.dtype(), dy.device());
    multiply_low({dy, true}, {low}, *db, n, r, m, false);
  }
  if (!needs_x && !needs_a) return {dx, dbias, da, db};
  const Tensor narrow = Tensor::empty({m, r}, DType::float32, dy.device());
  multiply_low({dy}, {b}, narrow, m, r, n, false);
  const Tensor dlow = binary(BinaryOp::mul, narrow, std::nullopt, scaling * dropout.scale());
  if (needs_a) {
    da = Tensor::empty(a.shape(), a.dtype(), dy.device());
    multiply_low({dlow, true}, {dropout.of(x)}, *da, r, k, m, false);
  }
  if (needs_x && p == 0) multiply_low({dlow}, {a}, *dx, m, k, r, true);
  if (needs_x && p > 0) {
    Tensor own = Tensor::empty(x.shape(), x.dtype(), x.device());
    multiply_low({dlow}, {a}, own, m, k, r, false);
    own = dropout.of(own);  // what it was is freed before the sum takes memory
    dx = binary(BinaryOp::add, *dx, own, 0);
  }
  return {dx, dbias, da, db};
}

}  // namespace bnb::ops
