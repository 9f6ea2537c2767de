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

bool is_blocksize(int64_t n, int64_t smallest) { return n >= smallest && n <= 4096 && (n & (n - 1)) == 0; }

}  // namespace

Tensor empty(const Shape& shape, DType dtype, Device& device) { return Tensor::empty(shape, dtype, device); }

Tensor view(const Tensor& x, const Shape& shape, DType dtype, int64_t offset) {
  const int64_t numel = shape.numel();
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

Quantized4Bit quantized_4bit(const Tensor& packed, const Tensor& absmax, const std::optional<Tensor>& nested_absmax,
                             const std::optional<Tensor>& nested_code, const std::optional<Tensor>& offset,
                             const Shape& shape, int64_t blocksize, int64_t nested_blocksize, QuantType type,
                             DType dtype) {
  constexpr const char* op = "quantized4bit";
  const bool nested = nested_absmax.has_value();
  check_option(is_blocksize(blocksize, 32), op, "blocksize must be a power of two from 32 to 4096, got ", blocksize);
  check_option(static_cast<int>(type) >= 0 && static_cast<int>(type) <= 3, op, "unknown quantType ",
               static_cast<int>(type));
  check_dtype(is_float(dtype), op, "dtype must be float32, float16 or bfloat16");
  check_argument(nested == nested_code.has_value() && nested == offset.has_value(), op,
                 "nested statistics need all of nestedAbsmax, nestedCode and offset");
  const int64_t n = shape.numel(), blocks = (n + blocksize - 1) / blocksize, nbytes = (n + 1) / 2;
  check_shape(static_cast<int64_t>(packed.nbytes()) == nbytes, op, "packed must have ", nbytes, " bytes for shape ",
              shape, ", got ", packed.nbytes());
  check_shape(absmax.numel() == blocks, op, "absmax must have ", blocks, " elements, got ", absmax.numel());
  check_dtype_is(op, "absmax", absmax, nested ? DType::uint8 : DType::float32);
  check_same_device(op, packed, absmax);
  if (nested) {
    check_option(is_blocksize(nested_blocksize, 64), op, "nestedBlocksize must be a power of two from 64 to 4096, got ",
                 nested_blocksize);
    const int64_t groups = (blocks + nested_blocksize - 1) / nested_blocksize;
    check_dtype_is(op, "nestedAbsmax", *nested_absmax, DType::float32);
    check_dtype_is(op, "nestedCode", *nested_code, DType::float32);
    check_dtype_is(op, "offset", *offset, DType::float32);
    check_shape(nested_absmax->numel() == groups, op, "nestedAbsmax must have ", groups, " elements, got ",
                nested_absmax->numel());
    check_shape(nested_code->numel() == 256, op, "nestedCode must have 256 elements, got ", nested_code->numel());
    check_shape(offset->numel() == 1, op, "offset must have 1 element, got ", offset->numel());
    check_same_device(op, packed, *nested_absmax, *nested_code, *offset);
  }
  return {.packed = packed,
          .absmax = absmax,
          .nested_absmax = nested ? *nested_absmax : Tensor(),
          .nested_code = nested ? *nested_code : Tensor(),
          .offset = nested ? *offset : Tensor(),
          .shape = shape,
          .blocksize = blocksize,
          .nested_blocksize = nested ? nested_blocksize : 0,
          .type = type,
          .dtype = dtype};
}

}  // namespace bnb::ops
