// Checks shared by the ops. Messages: "op: what must hold, what came".
#pragma once
#include <optional>

#include "core/tensor.h"
#include "kernels/position.h"
#include "kernels/rope.h"

namespace bnb::ops {

// check_same_device("matmul", a, b): all tensors live on one device.
template <class... Rest>
void check_same_device(const char* op, const Tensor& first, const Rest&... rest) {
  const auto same = [&](const Tensor& t) {
    if (&t.device() != &first.device())
      fail(Code::device, op, "all tensors must be on one device, got ", first.device().str(), " and ",
           t.device().str());
  };
  (same(rest), ...);
}

// check_float("rmsNorm", "x", x): float32, float16 or bfloat16.
inline void check_float(const char* op, const char* name, const Tensor& t) {
  check_dtype(is_float(t.dtype()), op, name, " must be float32, float16 or bfloat16, got ", name_of(t.dtype()));
}

inline void check_dtype_is(const char* op, const char* name, const Tensor& t, DType dtype) {
  check_dtype(t.dtype() == dtype, op, name, " must be ", name_of(dtype), ", got ", name_of(t.dtype()));
}

// Numbers of rows, as token ids: lists of numbers become float32 unless told otherwise, so the error says how.
inline void check_indices(const char* op, const char* name, const Tensor& t) {
  check_dtype(t.dtype() == DType::int32, op, name, " must be int32, got ", name_of(t.dtype()),
              "; write tensor(values, { dtype: \"int32\" }) or cast(", name, ", \"int32\")");
}

inline void check_same_dtype(const char* op, const char* name_a, const Tensor& a, const char* name_b, const Tensor& b) {
  check_dtype(a.dtype() == b.dtype(), op, name_a, " and ", name_b, " must have one dtype, got ", name_of(a.dtype()),
              " and ", name_of(b.dtype()));
}

inline void check_shape_is(const char* op, const char* name, const Tensor& t, const Shape& shape) {
  check_shape(t.shape() == shape, op, name, " must have shape ", shape, ", got ", t.shape());
}

// What is written must not be what is read: the threads of a kernel go in no order.
inline void check_apart(const char* op, const char* written, const Tensor& to, const char* read, const Tensor& from) {
  check_argument(!to.overlaps(from), op, written, " must not share memory with ", read);
}

inline void check_numel(const char* op, const char* name, const Tensor& t, int64_t n) {
  check_shape(t.numel() == n, op, name, " must have ", n, " elements, got ", t.numel());
}

// A power of two from `smallest` (32 in 4 bits, 64 in 8) to 4096.
inline void check_blocksize(const char* op, const char* name, int64_t blocksize, int64_t smallest) {
  check_option(blocksize >= smallest && blocksize <= 4096 && (blocksize & (blocksize - 1)) == 0, op, name,
               " must be one of ", smallest == 32 ? "32, " : "", "64, 128, 256, 512, 1024, 2048, 4096, got ",
               blocksize);
}

// An int32 [1] beside x, whose value the kernel checks: it must stay below `limit`.
inline Position position_arg(const char* op, const Tensor& x, const std::optional<Tensor>& position, int64_t limit) {
  if (!position) return {};
  check_same_device(op, x, *position);
  check_dtype_is(op, "position", *position, DType::int32);
  check_shape(position->numel() == 1, op, "position must have 1 element, got ", position->shape());
  return {position->ptr<int32_t>(), limit, x.device().fault()};
}

// Tables of angles [positions, pairs] for heads of `dim` elements, of which the first 2 * pairs turn (ops/rope.cc).
Angles check_angles(const char* op, const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t dim);

}  // namespace bnb::ops
