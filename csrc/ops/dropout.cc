// Dropout, forward and backward alike.
#include "kernels/dropout.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

Tensor dropout(const Tensor& x, double p, int64_t seed, int64_t offset) {
  check_float("dropout", "x", x);
  check_option(p >= 0 && p <= 1, "dropout", "p must be in [0, 1], got ", p);
  check_option(seed >= 0 && offset >= 0, "dropout", "seed and offset must not be negative, got ", seed, " and ",
               offset);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  enqueue(kernels::dropout, x.device(),
          DropoutArgs{.x = x.data(),
                      .y = y.data(),
                      .n = x.numel(),
                      .seed = static_cast<uint64_t>(seed),
                      .offset = static_cast<uint64_t>(offset),
                      .threshold = static_cast<uint64_t>(p * 4294967296.0),
                      .scale = p < 1 ? static_cast<float>(1 / (1 - p)) : 0.0f,
                      .dtype = x.dtype()});
  return y;
}

}  // namespace bnb::ops
