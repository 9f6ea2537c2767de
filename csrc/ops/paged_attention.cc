// Attention over pages of keys and values, as a plan on the device says.
#include "kernels/paged_attention.h"

#include "ops/ops.h"
#include "ops/pages.h"

namespace bnb::ops {

Tensor paged_attention(const Tensor& q, const Tensor& keys, const Tensor& values,
                       const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales,
                       const Tensor& starts, const Tensor& lengths, const Tensor& pages, float scale, int64_t window,
                       float softcap, const std::optional<Tensor>& sinks) {
  constexpr const char* op = "pagedAttention";
  check_float(op, "q", q);
  const Shape& shape = q.shape();
  check_shape(q.ndim() == 3 && shape[2] >= 1, op, "q must have three axes [tokens, heads, dim], got ", shape);
  const KvPages layer = check_layer(op, q, shape[2], keys, values, key_scales, value_scales);
  const int64_t heads = shape[1];
  check_shape(heads >= 1 && heads % layer.kv_heads == 0, op, "the heads of q (", heads,
              ") must be a multiple of those of keys (", layer.kv_heads, ")");
  check_shape(pages.ndim() == 2, op, "pages must have two axes [sequences, maxPages], got ", pages.shape());
  const int64_t sequences = pages.shape()[0];
  check_same_device(op, q, pages);
  check_dtype_is(op, "pages", pages, DType::int32);
  check_plan(op, q, "starts", starts, sequences + 1);
  check_plan(op, q, "lengths", lengths, sequences);
  const ScoreRule rule = check_rule(op, q, heads, scale, window, softcap, sinks);
  Tensor y = Tensor::empty(shape, q.dtype(), q.device());
  if (y.numel() == 0) return y;
  enqueue(kernels::paged_attention, q.device(),
          PagedAttentionArgs{.q = q.data(),
                             .y = y.data(),
                             .starts = starts.ptr<int32_t>(),
                             .lengths = lengths.ptr<int32_t>(),
                             .table = pages.ptr<int32_t>(),
                             .layer = layer,
                             .rule = rule,
                             .tokens = shape[0],
                             .heads = heads,
                             .sequences = sequences,
                             .max_pages = pages.shape()[1],
                             .dtype = q.dtype(),
                             .fault = q.device().fault()});
  return y;
}

}  // namespace bnb::ops
