// Matrix products and linear layers with their gradients.
#include "kernels/matmul.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

// One product of matrices that lie behind each other; stride 0 repeats a matrix.
struct Side {
  const void* data;
  bool transpose;
  int64_t stride;
};

void enqueue_product(Device& device, DType dtype, Side a, Side b, const void* bias, void* c, int64_t batch, int64_t m,
                     int64_t n, int64_t k) {
  if (batch == 0 || m == 0 || n == 0) return;
  enqueue(kernels::matmul, device,
          MatmulArgs{.a = a.data,
                     .b = b.data,
                     .bias = bias,
                     .c = c,
                     .batch = batch,
                     .m = m,
                     .n = n,
                     .k = k,
                     .stride_a = a.stride,
                     .stride_b = b.stride,
                     .dtype_a = dtype,
                     .dtype_b = dtype,
                     .dtype_c = dtype,
                     .transpose_a = a.transpose,
                     .transpose_b = b.transpose,
                     .accumulate = false});
}

struct Sizes {
  int64_t batch, m, n, k;
  bool shared_b;  // one matrix b for the whole batch
};

Sizes check_product(const char* op, const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b) {
  check_same_device(op, a, b);
  check_float(op, "a", a);
  check_same_dtype(op, "a", a, "b", b);
  check_shape(a.ndim() >= 2 && b.ndim() >= 2, op, "a and b must have at least two axes, got ", a.shape(), " and ",
              b.shape());
  const bool shared = b.ndim() == 2;
  bool fits = shared || a.ndim() == b.ndim();
  for (int i = 0; fits && !shared && i < a.ndim() - 2; i++) fits = a.shape()[i] == b.shape()[i];
  check_shape(fits, op, "the leading axes of a and b must be equal, or b must be a matrix, got ", a.shape(), " and ",
              b.shape());
  const int64_t m = a.shape()[transpose_a ? -1 : -2], k = a.shape()[transpose_a ? -2 : -1];
  const int64_t kb = b.shape()[transpose_b ? -1 : -2], n = b.shape()[transpose_b ? -2 : -1];
  check_shape(k == kb, op, "the inner sizes must agree, got ", k, " of ", a.shape(), " and ", kb, " of ", b.shape());
  const int64_t batch = a.shape().product(0, -2);
  // A batch of plain rows times one matrix is a single product.
  if (shared && !transpose_a) return {1, batch * m, n, k, true};
  return {batch, m, n, k, shared};
}

int64_t check_linear(const char* op, const Tensor& x, const Tensor& weight) {
  check_same_device(op, x, weight);
  check_float(op, "x", x);
  check_same_dtype(op, "x", x, "weight", weight);
  check_shape(weight.ndim() == 2, op, "weight must be a matrix, got ", weight.shape());
  check_shape(x.ndim() >= 1 && x.shape()[-1] == weight.shape()[1], op, "the last axis of x must be ", weight.shape()[1],
              ", got ", x.shape());
  return x.shape().product(0, -1);
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b) {
  const Sizes s = check_product("matmul", a, b, transpose_a, transpose_b);
  Shape shape = a.shape();
  if (transpose_a) shape[-2] = s.m;
  shape[-1] = s.n;
  Tensor c = Tensor::empty(shape, a.dtype(), a.device());
  enqueue_product(a.device(), a.dtype(), {a.data(), transpose_a, s.m * s.k},
                  {b.data(), transpose_b, s.shared_b ? 0 : s.n * s.k}, nullptr, c.data(), s.batch, s.m, s.n, s.k);
  return c;
}

std::tuple<std::optional<Tensor>, std::optional<Tensor>> matmul_backward(const Tensor& a, const Tensor& b,
                                                                         const Tensor& dy, bool transpose_a,
                                                                         bool transpose_b, bool needs_a, bool needs_b) {
  constexpr const char* op = "matmulBackward";
  const Sizes s = check_product(op, a, b, transpose_a, transpose_b);
  check_same_device(op, a, dy);
  check_same_dtype(op, "a", a, "dy", dy);
  check_shape(dy.numel() == size_product(s.batch, s.m, s.n), op, "dy must have the shape of the product, got ",
              dy.shape());
  Device& device = a.device();
  const DType dtype = a.dtype();
  const int64_t stride_b = s.shared_b ? 0 : s.n * s.k;
  const auto side_a = [&](bool transpose) { return Side{a.data(), transpose, s.m * s.k}; };
  const auto side_b = [&](bool transpose) { return Side{b.data(), transpose, stride_b}; };
  const auto side_y = [&](bool transpose) { return Side{dy.data(), transpose, s.m * s.n}; };

  std::optional<Tensor> da, db;
  if (needs_a) {
    da = Tensor::empty(a.shape(), dtype, device);
    if (transpose_a)
      enqueue_product(device, dtype, side_b(transpose_b), side_y(true), nullptr, da->data(), s.batch, s.k, s.m, s.n);
    else
      enqueue_product(device, dtype, side_y(false), side_b(!transpose_b), nullptr, da->data(), s.batch, s.m, s.k, s.n);
  }
  if (needs_b) {
    db = Tensor::empty(b.shape(), dtype, device);
    if (s.shared_b && transpose_a) {
      // One product over the rows of the whole batch: a [batch, K, M] as [K, batch M], dy as [batch M, N].
      const int64_t rows = size_product(s.batch, s.m);
      const Tensor columns = permute(a.view({s.batch, s.k, s.m}), {1, 0, 2});
      const Side all_a = {columns.data(), transpose_b, 0}, all_y = {dy.data(), transpose_b, 0};
      if (transpose_b)
        enqueue_product(device, dtype, all_y, all_a, nullptr, db->data(), 1, s.n, s.k, rows);
      else
        enqueue_product(device, dtype, all_a, all_y, nullptr, db->data(), 1, s.k, s.n, rows);
    } else if (transpose_b) {
      enqueue_product(device, dtype, side_y(true), side_a(transpose_a), nullptr, db->data(), s.batch, s.n, s.k, s.m);
    } else {
      enqueue_product(device, dtype, side_a(!transpose_a), side_y(false), nullptr, db->data(), s.batch, s.k, s.n, s.m);
    }
  }
  return {da, db};
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  constexpr const char* op = "linear";
  const int64_t rows = check_linear(op, x, weight);
  const int64_t n = weight.shape()[0], k = weight.shape()[1];
  if (bias) {
    check_same_device(op, x, *bias);
    check_same_dtype(op, "x", x, "bias", *bias);
    check_shape_is(op, "bias", *bias, {n});
  }
  Tensor y = Tensor::empty(x.shape().with_last(n), x.dtype(), x.device());
  enqueue_product(x.device(), x.dtype(), {x.data(), false, 0}, {weight.data(), true, 0}, bias ? bias->data() : nullptr,
                  y.data(), 1, rows, n, k);
  return y;
}

std::tuple<std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>> linear_backward(
    const Tensor& x, const Tensor& weight, const Tensor& dy, bool needs_x, bool needs_weight, bool needs_bias) {
  constexpr const char* op = "linearBackward";
  const int64_t rows = check_linear(op, x, weight);
  const int64_t n = weight.shape()[0], k = weight.shape()[1];
  check_same_device(op, x, dy);
  check_same_dtype(op, "x", x, "dy", dy);
  check_shape(dy.numel() == size_product(rows, n), op, "dy must have the shape of the output, got ", dy.shape());
  Device& device = x.device();
  const DType dtype = x.dtype();
  std::optional<Tensor> dx, dweight, dbias;
  if (needs_x) {
    dx = Tensor::empty(x.shape(), dtype, device);
    enqueue_product(device, dtype, {dy.data(), false, 0}, {weight.data(), false, 0}, nullptr, dx->data(), 1, rows, k,
                    n);
  }
  if (needs_weight) {
    dweight = Tensor::empty(weight.shape(), dtype, device);
    enqueue_product(device, dtype, {dy.data(), true, 0}, {x.data(), false, 0}, nullptr, dweight->data(), 1, n, k, rows);
  }
  if (needs_bias) {
    dbias = Tensor::empty({n}, dtype, device);
    enqueue(kernels::sum_rows, device,
            SumRowsArgs{.x = dy.data(), .y = dbias->data(), .rows = rows, .cols = n, .dtype = dtype});
  }
  return {dx, dweight, dbias};
}

Tensor fma_peak(int64_t iterations, Device& device) {
  // A matter of seconds; nothing could stop a kernel that ran for days.
  constexpr int64_t most = int64_t{1} << 28;
  check_option(iterations >= 1 && iterations <= most, "fmaPeak", "iterations must be at least 1 and at most ", most,
               ", got ", iterations);
  Tensor result = Tensor::empty({2}, DType::float64, device);
  enqueue(kernels::fma_peak, device, FmaPeakArgs{.result = result.ptr<double>(), .iterations = iterations});
  return result;
}

}  // namespace bnb::ops
