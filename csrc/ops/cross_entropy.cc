// Mean cross entropy of logits against integer targets, and its gradient.

#include "kernels/cross_entropy.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

namespace {

void check_arguments(const char* op, const Tensor& logits, const Tensor& targets) {
  check_float(op, "logits", logits);
  check_same_device(op, logits, targets);
  check_indices(op, "targets", targets);
  Shape expected = targets.shape();
  expected.push_back(logits.ndim() > 0 ? logits.shape()[-1] : 0);
  check_shape(logits.shape() == expected, op, "targets must have the shape of logits without the last axis, got ",
              targets.shape(), " for ", logits.shape());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& logits, const Tensor& targets, int32_t ignore) {
  check_arguments("crossEntropy", logits, targets);
  Device& device = logits.device();
  Tensor loss = Tensor::empty({}, DType::float32, device);
  Tensor lse = Tensor::empty({targets.numel(), 2}, DType::float32, device);
  Tensor count = Tensor::empty({}, DType::float32, device);
  enqueue(kernels::cross_entropy, device,
          CrossEntropyArgs{
              .logits = logits.data(),
              .targets = targets.ptr<int32_t>(),
              .loss = loss.ptr<float>(),
              .lse = lse.ptr<float>(),
              .count = count.ptr<float>(),
              .rows = targets.numel(),
              .classes = logits.shape()[-1],
              .ignore = ignore,
              .dtype = logits.dtype(),
              .fault = device.fault(),
          });
  return {loss, lse, count};
}

Tensor cross_entropy_backward(const Tensor& dloss, const Tensor& logits, const Tensor& targets, const Tensor& lse,
                              const Tensor& count, int32_t ignore) {
  constexpr const char* op = "crossEntropyBackward";
  check_arguments(op, logits, targets);
  check_same_device(op, logits, dloss, lse, count);
  check_shape(dloss.numel() == 1 && count.numel() == 1 && lse.numel() == 2 * targets.numel(), op,
              "dloss must have one element, got ", dloss.shape());
  check_dtype_is(op, "dloss", dloss, DType::float32);
  check_dtype_is(op, "lse", lse, DType::float32);
  check_dtype_is(op, "count", count, DType::float32);
  Tensor dlogits = Tensor::empty(logits.shape(), logits.dtype(), logits.device());
  enqueue(kernels::cross_entropy_backward, logits.device(),
          CrossEntropyBackwardArgs{
              .dloss = dloss.ptr<float>(),
              .logits = logits.data(),
              .targets = targets.ptr<int32_t>(),
              .lse = lse.ptr<float>(),
              .count = count.ptr<float>(),
              .dlogits = dlogits.data(),
              .rows = targets.numel(),
              .classes = logits.shape()[-1],
              .ignore = ignore,
              .dtype = logits.dtype(),
          });
  return dlogits;
}

}  // namespace bnb::ops
