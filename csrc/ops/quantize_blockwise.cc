// Blockwise 8-bit quantization with a map of 256 values and its inverse, and the scales of blocks in both forms.
#include "kernels/quantize_blockwise.h"

#include "ops/ops.h"
#include "ops/quantized_view.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

int64_t blocks_of(int64_t n, int64_t blocksize) { return (n + blocksize - 1) / blocksize; }

}  // namespace

std::tuple<Tensor, Tensor> quantize_blockwise(const Tensor& x, const std::optional<Tensor>& code, bool is_signed,
                                              const std::optional<Tensor>& offset, int64_t blocksize,
                                              const std::optional<Tensor>& absmax, const std::optional<Tensor>& out) {
  constexpr const char* op = "quantizeBlockwise";
  check_float(op, "A", x);
  check_blocksize(op, "blocksize", blocksize, 64);
  const int64_t blocks = blocks_of(x.numel(), blocksize);
  if (code) {
    check_same_device(op, x, *code);
    check_dtype_is(op, "code", *code, DType::float32);
    check_numel(op, "code", *code, 256);
  }
  if (offset) {
    check_same_device(op, x, *offset);
    check_dtype_is(op, "offset", *offset, DType::float32);
    check_numel(op, "offset", *offset, 1);
  }
  if (out) {
    check_same_device(op, x, *out);
    check_dtype_is(op, "out", *out, DType::uint8);
    check_numel(op, "out", *out, x.numel());
    check_apart(op, "out", *out, "A", x);
    if (code) check_apart(op, "out", *out, "code", *code);
    if (offset) check_apart(op, "out", *out, "offset", *offset);
  }
  if (absmax) {
    check_same_device(op, x, *absmax);
    check_dtype_is(op, "absmax", *absmax, DType::float32);
    check_numel(op, "absmax", *absmax, blocks);
    check_apart(op, "absmax", *absmax, "A", x);
    if (code) check_apart(op, "absmax", *absmax, "code", *code);
    if (offset) check_apart(op, "absmax", *absmax, "offset", *offset);
    if (out) check_apart(op, "absmax", *absmax, "out", *out);
  }

  const Tensor codes = out ? out->changed() : Tensor::empty(x.shape(), DType::uint8, x.device());
  const Tensor scales = absmax ? absmax->changed() : Tensor::empty({blocks}, DType::float32, x.device());
  if (x.numel() > 0) {
    enqueue(kernels::quantize_blockwise, x.device(),
            QuantizeBlockwiseArgs{
                .x = x.data(),
                .code = code ? code->ptr<float>() : nullptr,
                .offset = offset ? offset->ptr<float>() : nullptr,
                .codes = codes.ptr<uint8_t>(),
                .absmax = scales.ptr<float>(),
                .n = x.numel(),
                .blocksize = blocksize,
                .map = code        ? Map8Bit::custom
                       : is_signed ? Map8Bit::dynamic_signed
                                   : Map8Bit::dynamic_unsigned,
                .dtype = x.dtype(),
            });
  }
  return {codes, scales};
}

Scales block_scales(const Tensor& absmax, const std::optional<Tensor>& nested_absmax,
                    const std::optional<Tensor>& nested_code, const std::optional<Tensor>& offset, int64_t blocksize,
                    int64_t nested_blocksize) {
  constexpr const char* op = "blockScales";
  const bool nested = nested_absmax.has_value();
  check_argument(nested == nested_code.has_value() && nested == offset.has_value(), op,
                 "nested statistics need all of nestedAbsmax, nestedCode and offset");
  check_dtype_is(op, "absmax", absmax, nested ? DType::uint8 : DType::float32);
  Scales scales = {.absmax = absmax,
                   .nested_absmax = {},
                   .nested_code = {},
                   .offset = {},
                   .blocksize = blocksize,
                   .nested_blocksize = 0};
  if (!nested) return scales;
  check_blocksize(op, "nestedBlocksize", nested_blocksize, 64);
  check_same_device(op, absmax, *nested_absmax, *nested_code, *offset);
  check_dtype_is(op, "nestedAbsmax", *nested_absmax, DType::float32);
  check_dtype_is(op, "nestedCode", *nested_code, DType::float32);
  check_dtype_is(op, "offset", *offset, DType::float32);
  check_numel(op, "nestedAbsmax", *nested_absmax, blocks_of(absmax.numel(), nested_blocksize));
  check_numel(op, "nestedCode", *nested_code, 256);
  check_numel(op, "offset", *offset, 1);
  scales.nested_absmax = *nested_absmax;
  scales.nested_code = *nested_code;
  scales.offset = *offset;
  scales.nested_blocksize = nested_blocksize;
  return scales;
}

Tensor dequantize_blockwise(const Tensor& codes, const Tensor& code, const Scales& scales, DType dtype,
                            const std::optional<Tensor>& out) {
  constexpr const char* op = "dequantizeBlockwise";
  check_dtype_is(op, "A", codes, DType::uint8);
  check_dtype(is_float(dtype), op, "the result must be float32, float16 or bfloat16, got ", name_of(dtype));
  check_blocksize(op, "blocksize", scales.blocksize, 64);
  check_same_device(op, codes, code, scales.absmax);
  check_dtype_is(op, "code", code, DType::float32);
  check_numel(op, "code", code, 256);
  check_numel(op, "absmax", scales.absmax, blocks_of(codes.numel(), scales.blocksize));
  if (out) {
    check_same_device(op, codes, *out);
    check_dtype_is(op, "out", *out, dtype);
    check_shape_is(op, "out", *out, codes.shape());
    check_apart(op, "out", *out, "A", codes);
    check_apart(op, "out", *out, "code", code);
    check_apart_from_scales(op, "out", *out, scales);
  }

  const Tensor y = out ? out->changed() : Tensor::empty(codes.shape(), dtype, codes.device());
  if (y.numel() > 0) {
    enqueue(kernels::dequantize_blockwise, codes.device(),
            DequantizeBlockwiseArgs{
                .codes = codes.ptr<uint8_t>(),
                .code = code.ptr<float>(),
                .scales = scales_view(scales),
                .offset = nullptr,
                .y = y.data(),
                .n = y.numel(),
                .blocksize = scales.blocksize,
                .dtype = dtype,
            });
  }
  return y;
}

Tensor expand_scales(const Scales& scales) {
  check_argument(scales.is_nested(), "expandScales", "the scales must be quantized themselves");
  const Tensor y = Tensor::empty({scales.blocks()}, DType::float32, scales.device());
  if (y.numel() > 0) {
    enqueue(kernels::dequantize_blockwise, y.device(),
            DequantizeBlockwiseArgs{
                .codes = scales.absmax.ptr<uint8_t>(),
                .code = scales.nested_code.ptr<float>(),
                .scales = {.absmax = scales.nested_absmax.data(),
                           .nested_absmax = nullptr,
                           .nested_code = nullptr,
                           .offset = nullptr,
                           .nested_blocksize = 0},
                .offset = scales.offset.ptr<float>(),
                .y = y.data(),
                .n = y.numel(),
                .blocksize = scales.nested_blocksize,
                .dtype = DType::float32,
            });
  }
  return y;
}

Tensor mean_float64(const Tensor& x) {
  check_dtype_is("meanFloat64", "x", x, DType::float32);
  const Tensor mean = Tensor::empty({}, DType::float32, x.device());
  enqueue(kernels::mean_float64, x.device(),
          MeanFloat64Args{.x = x.ptr<float>(), .mean = mean.ptr<float>(), .n = x.numel()});
  return mean;
}

}  // namespace bnb::ops
