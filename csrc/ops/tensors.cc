// Making, viewing and moving tensors: no arithmetic.

#include <optional>

#include "core/gate.h"
#include "core/graph.h"
#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

// A copy between two devices. It runs on a stream that can reach both; the other one stands still meanwhile: what
// was queued there before must be done, and what comes after may write to either end.
struct Crossing {
  void* to;
  const void* from;
  size_t nbytes;
  Gate ready, done;
};
struct CopyArgs {
  void* to;
  const void* from;
  size_t nbytes;
};

void check_known(const char* op, DType dtype) {
  const int code = static_cast<int>(dtype);
  check_dtype(code >= 0 && code < kDTypeCount, op, "unknown dtype ", code);
}

}  // namespace

Tensor empty(const Shape& shape, DType dtype, Device& device) {
  check_known("empty", dtype);
  return Tensor::empty(shape, dtype, device);
}

Tensor view(const Tensor& x, const Shape& shape, DType dtype, int64_t offset) {
  check_known("view", dtype);
  int64_t numel = 1;
  for (const int64_t dim : shape)
    check_shape(dim >= 0 && !__builtin_mul_overflow(numel, dim, &numel), "view", "invalid shape ", shape);
  const int64_t nbytes = static_cast<int64_t>(x.nbytes()), size = static_cast<int64_t>(size_of(dtype));
  check_shape(offset >= 0 && offset % size == 0 && offset <= nbytes && numel <= (nbytes - offset) / size, "view",
              "shape ", shape, " of ", name_of(dtype), " from byte ", offset, " must lie within the ", nbytes,
              " bytes of x");
  return x.view(shape, dtype, static_cast<size_t>(offset));
}

Tensor to_device(const Tensor& x, Device& device) {
  Graph::check_not_recording(device, "toDevice");
  Graph::check_not_recording(x.device(), "toDevice");
  Tensor y = Tensor::empty(x.shape(), x.dtype(), device);
  if (&x.device() == &device) {
    device.stream().push_always(
        "toDevice", CopyArgs{y.data(), x.data(), x.nbytes()},
        +[](Device& d, const CopyArgs& c) { d.runtime().copy(d, c.to, c.from, c.nbytes); });
    return y;
  }
  Device& copies = device.type() == DeviceType::cpu ? x.device() : device;
  Device& waits = &copies == &device ? x.device() : device;
  auto* crossing = new Crossing{y.data(), x.data(), x.nbytes(), {}, {}};
  waits.stream().push_always(
      "toDevice", crossing, +[](Device& d, Crossing* const& c) {
        // What a GPU could not finish is reported by its next read.
        try {
          if (d.runtime().finish) d.runtime().finish(d);
        } catch (const Error&) {}
        c->ready.open();
        c->done.wait();
        delete c;
      });
  copies.stream().push_always(
      "toDevice", crossing, +[](Device& d, Crossing* const& c) {
        c->ready.wait();
        std::optional<Error> error;
        try {
          d.runtime().copy(d, c->to, c->from, c->nbytes);
        } catch (const Error& e) {
          error = e;
        }
        c->done.open();
        if (error) throw *error;
      });
  return y;
}

}  // namespace bnb::ops
