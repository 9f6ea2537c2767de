// Draws of tokens from rows of logits.

#include "kernels/sample_token.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

Tensor sample_token(const Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed, int64_t step,
                    const std::optional<Tensor>& position) {
  constexpr const char* op = "sampleToken";
  check_float(op, "logits", logits);
  check_shape(logits.ndim() > 0, op, "logits must have an axis of tokens, got ", logits.shape());
  const int64_t n = logits.shape()[-1];
  check_shape(n > 0 && n <= kSampleMost, op, "the last axis of logits must have 1 to ", kSampleMost, " elements, got ",
              logits.shape());
  check_option(temperature >= 0 && temperature - temperature == 0, op,
               "temperature must be a number of at least 0, got ", temperature);
  check_option(top_k >= 0, op, "topK must be an integer of at least 0, got ", top_k);
  check_option(top_p > 0 && top_p <= 1, op, "topP must be above 0 and at most 1, got ", top_p);
  check_option(seed >= 0 && step >= 0, op, "seed and step must not be negative, got ", seed, " and ", step);
  Tensor y = Tensor::empty(logits.shape().without_last(), DType::int32, logits.device());
  if (y.numel() == 0) return y;
  enqueue(kernels::sample_token, logits.device(),
          SampleTokenArgs{
              .logits = logits.data(),
              .y = y.ptr<int32_t>(),
              .rows = y.numel(),
              .n = n,
              .all = {.sharpness = sample_sharpness(temperature),
                      .top_k = top_k == 0 || top_k > n ? n : top_k,
                      .top_p = top_p,
                      .min_p = 0,
                      .typical_p = 1,
                      .seed = static_cast<uint64_t>(seed),
                      .step = step,
                      .row = 0},
              .each = {},
              .position = position_arg(op, logits, position, int64_t{1} << 31),
              .dtype = logits.dtype(),
          });
  return y;
}

}  // namespace bnb::ops
