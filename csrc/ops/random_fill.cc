// Tensors of random numbers from a seed and an offset in its stream.
#include "kernels/random_fill.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

Tensor random_fill(const Shape& shape, DType dtype, Device& device, Distribution distribution, double low, double high,
                   int64_t seed, int64_t offset) {
  constexpr const char* names[] = {"rand", "randn", "randint"};
  const int code = static_cast<int>(distribution);
  check_argument(code >= 0 && code < 3, "randomFill", "unknown distribution ", code);
  const char* op = names[code];
  check_option(seed >= 0 && offset >= 0, op, "seed and offset must not be negative, got ", seed, " and ", offset);
  const auto finite = [](double v) { return v - v == 0; };
  check_option(finite(low) && finite(high), op, "the bounds must be finite, got ", low, " and ", high);
  if (distribution == Distribution::integer) {
    check_dtype(dtype == DType::int32, op, "dtype must be int32, got ", name_of(dtype));
    const bool whole = low >= INT32_MIN && high <= -static_cast<double>(INT32_MIN) && low < high &&
                       low == static_cast<double>(static_cast<int64_t>(low)) &&
                       high == static_cast<double>(static_cast<int64_t>(high));
    check_option(whole, op, "low < high must be whole numbers in the range of int32, got ", low, " and ", high);
  } else {
    check_dtype(is_float(dtype), op, "dtype must be float32, float16 or bfloat16, got ", name_of(dtype));
  }
  Tensor y = Tensor::empty(shape, dtype, device);
  enqueue(kernels::random_fill, device,
          RandomFillArgs{.y = y.data(),
                         .n = y.numel(),
                         .seed = static_cast<uint64_t>(seed),
                         .offset = static_cast<uint64_t>(offset),
                         .low = low,
                         .high = high,
                         .distribution = distribution,
                         .dtype = dtype});
  return y;
}

}  // namespace bnb::ops
