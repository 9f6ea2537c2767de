// Which experts each row chooses by its logits, and with which share.

#include "kernels/choose_experts.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

std::tuple<Tensor, Tensor> choose_experts(const Tensor& logits, int64_t k, bool normalize) {
  constexpr const char* op = "chooseExperts";
  check_float(op, "logits", logits);
  check_shape(logits.ndim() == 2, op, "logits must be [tokens, experts], got ", logits.shape());
  const int64_t rows = logits.shape()[0], n = logits.shape()[1];
  check_argument(k >= 1 && k <= n, op, "k must be from 1 to the number of experts (", n, "), got ", k);
  check_shape(n <= INT32_MAX, op, "there must be at most 2147483647 experts, got ", n);
  const Tensor shares = Tensor::empty({rows, k}, DType::float32, logits.device());
  const Tensor experts = Tensor::empty({rows, k}, DType::int32, logits.device());
  enqueue(kernels::choose_experts, logits.device(),
          ChooseExpertsArgs{.logits = logits.data(),
                            .shares = shares.ptr<float>(),
                            .experts = experts.ptr<int32_t>(),
                            .rows = rows,
                            .n = n,
                            .k = k,
                            .normalize = normalize,
                            .dtype = logits.dtype()});
  return {shares, experts};
}

Tensor choose_experts_backward(const Tensor& dshares, const Tensor& logits, const Tensor& shares, const Tensor& experts,
                               bool normalize) {
  constexpr const char* op = "chooseExpertsBackward";
  check_float(op, "logits", logits);
  check_shape(logits.ndim() == 2, op, "logits must be [tokens, experts], got ", logits.shape());
  check_same_device(op, dshares, logits, shares, experts);
  check_dtype_is(op, "dshares", dshares, DType::float32);
  check_dtype_is(op, "shares", shares, DType::float32);
  check_indices(op, "experts", experts);
  check_shape(shares.ndim() == 2 && shares.shape()[0] == logits.shape()[0], op, "shares must be [", logits.shape()[0],
              ", k], got ", shares.shape());
  check_shape_is(op, "experts", experts, shares.shape());
  check_shape_is(op, "dshares", dshares, shares.shape());
  const Tensor dlogits = Tensor::empty(logits.shape(), logits.dtype(), logits.device());
  enqueue(kernels::choose_experts_backward, logits.device(),
          ChooseExpertsBackwardArgs{.dshares = dshares.ptr<float>(),
                                    .logits = logits.data(),
                                    .shares = shares.ptr<float>(),
                                    .experts = experts.ptr<int32_t>(),
                                    .dlogits = dlogits.data(),
                                    .rows = logits.shape()[0],
                                    .n = logits.shape()[1],
                                    .k = shares.shape()[1],
                                    .normalize = normalize,
                                    .dtype = logits.dtype()});
  return dlogits;
}

}  // namespace bnb::ops
