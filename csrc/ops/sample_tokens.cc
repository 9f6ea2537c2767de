// Draws of tokens with a row of parameters for each row of logits, and what stands around them.

#include "kernels/sample_tokens.h"

#include "kernels/sample_token.h"
#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>> sample_tokens(
    const Tensor& logits, const Tensor& temperature, const Tensor& top_p, const Tensor& min_p, const Tensor& typical_p,
    const Tensor& repetition, const Tensor& presence, const Tensor& frequency, const Tensor& top_k, const Tensor& seed,
    const Tensor& step, const std::optional<Tensor>& counts, const std::optional<Tensor>& slots,
    const std::optional<Tensor>& bias_offsets, const std::optional<Tensor>& bias_ids,
    const std::optional<Tensor>& bias_values, const std::optional<Tensor>& mask, bool wants_logprobs, int64_t best) {
  constexpr const char* op = "sampleTokens";
  check_float(op, "logits", logits);
  check_shape(logits.ndim() == 2, op, "logits must be [rows, vocabulary], got ", logits.shape());
  const int64_t rows = logits.shape()[0], n = logits.shape()[1];
  check_shape(n > 0 && n <= kSampleMost, op, "the last axis of logits must have 1 to ", kSampleMost, " elements, got ",
              logits.shape());
  check_option(best >= 0 && best <= kMostBest, op, "best must be an integer from 0 to ", kMostBest, ", got ", best);
  const auto check = [&](const char* name, const Tensor& t, DType dtype, const Shape& shape) {
    check_same_device(op, logits, t);
    check_dtype_is(op, name, t, dtype);
    check_shape_is(op, name, t, shape);
  };
  check("temperature", temperature, DType::float32, {rows});
  check("topP", top_p, DType::float32, {rows});
  check("minP", min_p, DType::float32, {rows});
  check("typicalP", typical_p, DType::float32, {rows});
  check("repetition", repetition, DType::float32, {rows});
  check("presence", presence, DType::float32, {rows});
  check("frequency", frequency, DType::float32, {rows});
  check("topK", top_k, DType::int32, {rows});
  check("seed", seed, DType::int32, {rows, 2});
  check("step", step, DType::int32, {rows});
  if (counts) {
    check_same_device(op, logits, *counts);
    check_dtype_is(op, "counts", *counts, DType::int32);
    check_shape(counts->ndim() == 2 && counts->shape()[1] == n, op, "counts must be [slots, ", n, "], got ",
                counts->shape());
    check_shape(slots || counts->shape()[0] == rows, op, "counts must have a row for each of ", rows,
                " rows of logits, got ", counts->shape());
    if (slots) check("slots", *slots, DType::int32, {rows});
    check_apart(op, "counts", *counts, "logits", logits);
  }
  if (bias_offsets) {
    check("bias.offsets", *bias_offsets, DType::int32, {rows + 1});
    check_shape(bias_ids->ndim() == 1, op, "bias.ids must be [entries], got ", bias_ids->shape());
    check("bias.ids", *bias_ids, DType::int32, bias_ids->shape());
    check("bias.values", *bias_values, DType::float32, bias_ids->shape());
  }
  if (mask) check("mask", *mask, DType::int32, {rows, (n + 31) / 32});

  Device& device = logits.device();
  const auto optional = [&](bool wanted, const Shape& shape, DType dtype) {
    return wanted ? std::optional(Tensor::empty(shape, dtype, device)) : std::nullopt;
  };
  Tensor ids = Tensor::empty({rows}, DType::int32, device);
  const auto logprobs = optional(wants_logprobs || best > 0, {rows}, DType::float32);
  const auto best_ids = optional(best > 0, {rows, best}, DType::int32);
  const auto best_logprobs = optional(best > 0, {rows, best}, DType::float32);
  const auto done = [&] { return std::make_tuple(ids, logprobs, best_ids, best_logprobs); };
  if (rows == 0) return done();

  const TokenCounts seen = {counts ? counts->ptr<int32_t>() : nullptr, slots ? slots->ptr<int32_t>() : nullptr,
                            counts ? counts->shape()[0] : 0};
  Tensor adjusted = logits;
  if (counts || bias_offsets || mask) {
    adjusted = Tensor::empty(logits.shape(), DType::float32, device);
    enqueue(kernels::sample_adjust, device,
            SampleAdjustArgs{
                .logits = logits.data(),
                .y = adjusted.ptr<float>(),
                .rows = rows,
                .n = n,
                .counts = seen,
                .repetition = repetition.ptr<float>(),
                .presence = presence.ptr<float>(),
                .frequency = frequency.ptr<float>(),
                .bias_offsets = bias_offsets ? bias_offsets->ptr<int32_t>() : nullptr,
                .bias_ids = bias_offsets ? bias_ids->ptr<int32_t>() : nullptr,
                .bias_values = bias_offsets ? bias_values->ptr<float>() : nullptr,
                .biases = bias_offsets ? bias_ids->numel() : 0,
                .mask = mask ? mask->ptr<uint32_t>() : nullptr,
                .fault = device.fault(),
                .dtype = logits.dtype(),
            });
  }
  enqueue(kernels::sample_token, device,
          SampleTokenArgs{
              .logits = adjusted.data(),
              .y = ids.ptr<int32_t>(),
              .rows = rows,
              .n = n,
              .all = {},
              .each = {.temperature = temperature.ptr<float>(),
                       .top_p = top_p.ptr<float>(),
                       .min_p = min_p.ptr<float>(),
                       .typical_p = typical_p.ptr<float>(),
                       .top_k = top_k.ptr<int32_t>(),
                       .seed = seed.ptr<uint32_t>(),
                       .step = step.ptr<int32_t>()},
              .position = {},
              .dtype = adjusted.dtype(),
          });
  if (!logprobs && !counts) return done();
  if (counts) counts->changed();
  enqueue(kernels::sample_report, device,
          SampleReportArgs{
              .logits = adjusted.data(),
              .drawn = ids.ptr<int32_t>(),
              .logprobs = logprobs ? logprobs->ptr<float>() : nullptr,
              .best_ids = best > 0 ? best_ids->ptr<int32_t>() : nullptr,
              .best_logprobs = best > 0 ? best_logprobs->ptr<float>() : nullptr,
              .rows = rows,
              .n = n,
              .best = best,
              .counts = seen,
              .dtype = adjusted.dtype(),
          });
  return done();
}

}  // namespace bnb::ops
