// Ops that move elements: permute, slice, concat, broadcastTo, copyInto, full.
#include "kernels/copy.h"

#include <cstring>

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

int checked_axis(const char* op, const Shape& shape, int32_t axis) {
  const int n = shape.ndim();
  check_shape(axis >= -n && axis < n, op, "axis must be in [-", n, ", ", n, "), got ", axis);
  return axis < 0 ? axis + n : axis;
}

// Copies a slab: along `axis`, `count` entries from `from_start` of one tensor to `to_start` of the other.
void copy_slab(const Tensor& from, int64_t from_start, const Tensor& to, int64_t to_start, int axis, int64_t count,
               const Position& position = {}) {
  const int64_t entry = from.shape().product(axis + 1, from.ndim()) * static_cast<int64_t>(size_of(from.dtype()));
  const int64_t rows = from.shape().product(0, axis);
  if (rows * entry * count == 0) return;
  enqueue(kernels::copy_rows, from.device(),
          CopyRowsArgs{.from = from.ptr<char>() + from_start * entry,
                       .to = to.ptr<char>() + to_start * entry,
                       .rows = rows,
                       .run_bytes = count * entry,
                       .from_pitch = from.shape()[axis] * entry,
                       .to_pitch = to.shape()[axis] * entry,
                       .position = position,
                       .position_bytes = entry});
}

// y = x read with the given strides; axes of size 1 are left out, neighbours that stay neighbours merged.
void copy_strided(const Tensor& x, const Tensor& y, const int64_t* strides) {
  static_assert(kCopyAxes == kMaxAxes);
  if (y.numel() == 0) return;
  CopyStridedArgs args{.x = x.data(),
                       .y = y.data(),
                       .dims = {},
                       .strides = {},
                       .ndim = 0,
                       .element_size = static_cast<int32_t>(size_of(x.dtype()))};
  for (int i = 0; i < y.ndim(); i++) {
    if (y.shape()[i] == 1) continue;
    const int last = args.ndim - 1;
    if (last >= 0 && args.strides[last] == strides[i] * y.shape()[i]) {
      args.dims[last] *= y.shape()[i];
      args.strides[last] = strides[i];
    } else {
      args.dims[args.ndim] = y.shape()[i];
      args.strides[args.ndim++] = strides[i];
    }
  }
  if (args.ndim == 0) {
    args.dims[0] = args.strides[0] = 1;
    args.ndim = 1;
  }
  enqueue(kernels::copy_strided, x.device(), args);
}

void strides_of(const Shape& shape, int64_t* strides) {
  int64_t stride = 1;
  for (int i = shape.ndim() - 1; i >= 0; i--) {
    strides[i] = stride;
    stride *= shape[i];
  }
}

}  // namespace

Tensor permute(const Tensor& x, const Shape& axes) {
  constexpr const char* op = "permute";
  check_shape(axes.ndim() == x.ndim(), op, "axes must name each of ", x.ndim(), " axes once, got ", axes);
  int64_t x_strides[kMaxAxes], strides[kMaxAxes];
  strides_of(x.shape(), x_strides);
  Shape shape;
  unsigned seen = 0;
  int previous = -1;
  bool in_order = true;  // but for axes of size 1
  for (int i = 0; i < axes.ndim(); i++) {
    const int64_t axis = axes[i] < 0 ? axes[i] + x.ndim() : axes[i];
    check_shape(axis >= 0 && axis < x.ndim() && !(seen >> axis & 1), op, "axes must name each of ", x.ndim(),
                " axes once, got ", axes);
    seen |= 1u << axis;
    const int at = static_cast<int>(axis);
    shape.push_back(x.shape()[at]);
    strides[i] = x_strides[at];
    if (shape[i] == 1) continue;
    in_order = in_order && at > previous;
    previous = at;
  }
  if (in_order) return x.view(shape);
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  copy_strided(x, y, strides);
  return y;
}

Tensor broadcast_to(const Tensor& x, const Shape& shape) {
  constexpr const char* op = "broadcastTo";
  check_shape(broadcast(op, x.shape(), shape) == shape, op, "x must broadcast to ", shape, ", got ", x.shape());
  int64_t x_strides[kMaxAxes], strides[kMaxAxes];
  strides_of(x.shape(), x_strides);
  for (int i = 0; i < shape.ndim(); i++) {
    const int at = i - (shape.ndim() - x.ndim());
    strides[i] = at < 0 || x.shape()[at] == 1 ? 0 : x_strides[at];
  }
  if (shape.numel() == x.numel()) return x.view(shape);
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  copy_strided(x, y, strides);
  return y;
}

Tensor slice(const Tensor& x, int32_t axis, int64_t start, int64_t end) {
  constexpr const char* op = "slice";
  const int at = checked_axis(op, x.shape(), axis);
  check_shape(start >= 0 && start <= end && end <= x.shape()[at], op,
              "start and end must satisfy 0 <= start <= end <= ", x.shape()[at], ", got ", start, " and ", end);
  Shape shape = x.shape();
  shape[at] = end - start;
  if (x.shape().product(0, at) == 1) {
    const int64_t entry = x.shape().product(at + 1, x.ndim()) * static_cast<int64_t>(size_of(x.dtype()));
    return x.view(shape, x.dtype(), static_cast<size_t>(start * entry));
  }
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  copy_slab(x, start, y, 0, at, end - start);
  return y;
}

Tensor slice_backward(const Tensor& dy, const Shape& shape, int32_t axis, int64_t start) {
  constexpr const char* op = "slice";
  const int at = checked_axis(op, shape, axis);
  Shape expected = shape;
  check_shape(dy.ndim() == shape.ndim() && start >= 0 && start + dy.shape()[at] <= shape[at], op,
              "dy must be a slice of ", shape, ", got ", dy.shape());
  expected[at] = dy.shape()[at];
  check_shape_is(op, "dy", dy, expected);
  const Tensor dx = full(shape, 0, dy.dtype(), dy.device());
  // dy is the slab: rows of it go to rows of dx.
  copy_slab(dy, 0, dx, start, at, dy.shape()[at]);
  return dx;
}

Tensor concat(const std::vector<Tensor>& xs, int32_t axis) {
  constexpr const char* op = "concat";
  check_argument(!xs.empty(), op, "needs at least one tensor");
  for (const Tensor& x : xs) check_argument(x.defined(), op, "every element must be a Tensor, got null");
  const Tensor& first = xs[0];
  const int at = checked_axis(op, first.shape(), axis);
  Shape shape = first.shape();
  shape[at] = 0;
  for (const Tensor& x : xs) {
    check_same_device(op, first, x);
    check_dtype(x.dtype() == first.dtype(), op, "all tensors must have one dtype, got ", name_of(first.dtype()),
                " and ", name_of(x.dtype()));
    bool fits = x.ndim() == first.ndim();
    for (int i = 0; fits && i < x.ndim(); i++) fits = i == at || x.shape()[i] == first.shape()[i];
    check_shape(fits, op, "shapes must agree but for axis ", axis, ", got ", first.shape(), " and ", x.shape());
    shape[at] += x.shape()[at];
  }
  Tensor y = Tensor::empty(shape, first.dtype(), first.device());
  int64_t start = 0;
  for (const Tensor& x : xs) {
    copy_slab(x, 0, y, start, at, x.shape()[at]);
    start += x.shape()[at];
  }
  return y;
}

void copy_into(const Tensor& dst, const Tensor& src, int32_t axis, int64_t start,
               const std::optional<Tensor>& position) {
  constexpr const char* op = "copyInto";
  check_same_device(op, dst, src);
  check_same_dtype(op, "dst", dst, "src", src);
  if (dst.ndim() == 0 && src.ndim() == 0) {
    check_shape(start == 0 && !position, op, "start must be 0 for scalars, got ", start);
    return copy_slab(src.view({1}), 0, dst.changed().view({1}), 0, 0, 1);
  }
  const int at = checked_axis(op, dst.shape(), axis);
  bool fits = src.ndim() == dst.ndim();
  for (int i = 0; fits && i < src.ndim(); i++) fits = i == at || src.shape()[i] == dst.shape()[i];
  check_shape(fits && start >= 0 && start <= dst.shape()[at] - src.shape()[at], op, "src must fit into dst ",
              dst.shape(), " along axis ", axis, " from ", start, ", got ", src.shape());
  const Position where = position_arg(op, dst, position, dst.shape()[at] - src.shape()[at] - start + 1);
  copy_slab(src, 0, dst.changed(), start, at, src.shape()[at], where);
}

Tensor full(const Shape& shape, double value, DType dtype, Device& device) {
  const int code = static_cast<int>(dtype);
  check_dtype(code >= 0 && code < kDTypeCount, "full", "unknown dtype ", code);
  Tensor y = Tensor::empty(shape, dtype, device);
  uint64_t bits = 0;
  const auto put = [&](auto v) { std::memcpy(&bits, &v, sizeof v); };
  const auto whole = [&](double low, double high) {
    check_argument(value >= low && value <= high && value == static_cast<double>(static_cast<int64_t>(value)), "full",
                   "the value must be a whole number that fits ", name_of(dtype), ", got ", value);
    return static_cast<int64_t>(value);
  };
  switch (dtype) {
    case DType::float32: put(static_cast<float>(value)); break;
    case DType::float16: put(from_float<f16>(static_cast<float>(value))); break;
    case DType::bfloat16: put(from_float<bf16>(static_cast<float>(value))); break;
    case DType::int8: put(static_cast<int8_t>(whole(INT8_MIN, INT8_MAX))); break;
    case DType::uint8: put(static_cast<uint8_t>(whole(0, UINT8_MAX))); break;
    case DType::int32: put(static_cast<int32_t>(whole(INT32_MIN, INT32_MAX))); break;
    case DType::float64: put(value); break;
  }
  enqueue(kernels::fill, device,
          FillArgs{.y = y.data(), .n = y.numel(), .bits = bits, .element_size = static_cast<int32_t>(size_of(dtype))});
  return y;
}

}  // namespace bnb::ops
