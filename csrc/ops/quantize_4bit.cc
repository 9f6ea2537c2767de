// Blockwise 4-bit quantization of a whole tensor, and its inverse.
#include "kernels/quantize_4bit.h"

#include "ops/ops.h"
#include "ops/quantized_view.h"
#include "ops/validate.h"

namespace bnb::ops {

std::tuple<Tensor, Tensor> quantize_4bit(const Tensor& x, int64_t blocksize, QuantType type, DType storage,
                                         const std::optional<Tensor>& absmax, const std::optional<Tensor>& out) {
  constexpr const char* op = "quantize4bit";
  check_float(op, "A", x);
  check_blocksize(op, "blocksize", blocksize, 32);
  check_option(static_cast<int>(type) >= 0 && static_cast<int>(type) <= 3, op,
               "quantType is unknown: ", static_cast<int>(type));
  check_option(type != QuantType::af4 || blocksize == 64, op, "af4 needs blocksize 64, got ", blocksize);
  check_dtype(storage != DType::int32, op, "quantStorage cannot be int32");

  const int64_t n = x.numel(), blocks = (n + blocksize - 1) / blocksize;
  const int64_t nbytes = (n + 1) / 2, size = static_cast<int64_t>(size_of(storage));
  check_shape(nbytes % size == 0, op, "the ", nbytes, " packed bytes of shape ", x.shape(),
              " must be a multiple of the size of quantStorage ", name_of(storage), ", ", size);
  if (out) {
    check_same_device(op, x, *out);
    check_shape(static_cast<int64_t>(out->nbytes()) == nbytes, op, "out must have ", nbytes, " bytes, got ",
                out->nbytes());
    check_apart(op, "out", *out, "A", x);
  }
  if (absmax) {
    check_same_device(op, x, *absmax);
    check_dtype_is(op, "absmax", *absmax, DType::float32);
    check_shape(absmax->numel() == blocks, op, "absmax must have ", blocks, " elements, got ", absmax->numel());
    check_apart(op, "absmax", *absmax, "A", x);
    if (out) check_apart(op, "absmax", *absmax, "out", *out);
  }

  const Tensor packed = out ? out->changed() : Tensor::empty({nbytes / size, 1}, storage, x.device());
  const Tensor scales = absmax ? absmax->changed() : Tensor::empty({blocks}, DType::float32, x.device());
  if (n > 0) {
    enqueue(kernels::quantize_4bit, x.device(),
            Quantize4BitArgs{
                .x = x.data(),
                .packed = packed.ptr<uint8_t>(),
                .absmax = scales.ptr<float>(),
                .n = n,
                .blocksize = blocksize,
                .type = type,
                .dtype = x.dtype(),
            });
  }
  return {packed, scales};
}

Quantized4Bit quantized_4bit(const Tensor& packed, const Scales& scales, const Shape& shape, QuantType type,
                             DType dtype, ActivationQuant activations) {
  constexpr const char* op = "quantized4bit";
  const int64_t blocksize = scales.blocksize;
  check_blocksize(op, "blocksize", blocksize, 32);
  check_option(static_cast<int>(type) >= 0 && static_cast<int>(type) <= 3, op, "unknown quantType ",
               static_cast<int>(type));
  check_dtype(is_float(dtype), op, "dtype must be float32, float16 or bfloat16");
  check_option(static_cast<int>(activations) >= 0 && static_cast<int>(activations) < kActivationQuantCount, op,
               "unknown activationQuant ", static_cast<int>(activations));
  check_same_device(op, packed, scales.absmax);
  const int64_t n = shape.numel(), blocks = (n + blocksize - 1) / blocksize, nbytes = (n + 1) / 2;
  check_shape(static_cast<int64_t>(packed.nbytes()) == nbytes, op, "packed must have ", nbytes, " bytes for shape ",
              shape, ", got ", packed.nbytes());
  check_shape(scales.blocks() == blocks, op, "absmax must have ", blocks, " elements, got ", scales.blocks());
  return {.packed = packed, .scales = scales, .shape = shape, .type = type, .dtype = dtype, .activations = activations};
}

Tensor dequantize_4bit(const Quantized4Bit& w, DType dtype, const std::optional<Tensor>& out) {
  constexpr const char* op = "dequantize4bit";
  check_dtype(is_float(dtype), op, "the result must be float32, float16 or bfloat16, got ", name_of(dtype));
  if (out) {
    check_same_device(op, w.packed, *out);
    check_dtype_is(op, "out", *out, dtype);
    check_shape_is(op, "out", *out, w.shape);
    check_apart(op, "out", *out, "A", w.packed);
    check_apart_from_scales(op, "out", *out, w.scales);
  }
  const Tensor y = out ? out->changed() : Tensor::empty(w.shape, dtype, w.device());
  if (y.numel() > 0) {
    enqueue(kernels::dequantize_4bit, w.device(),
            Dequantize4BitArgs{
                .packed = w.packed.ptr<uint8_t>(),
                .scales = scales_view(w.scales),
                .y = y.data(),
                .n = y.numel(),
                .blocksize = w.scales.blocksize,
                .type = w.type,
                .dtype = dtype,
            });
  }
  return y;
}

}  // namespace bnb::ops
