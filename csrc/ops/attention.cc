// Scaled dot-product attention and its gradients.
#include "kernels/attention.h"

#include "ops/ops.h"
#include "ops/pages.h"

namespace bnb::ops {
namespace {

AttentionArgs check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, float scale,
                              bool causal, int64_t window, float softcap, const std::optional<Tensor>& sinks,
                              const std::optional<Tensor>& starts) {
  check_same_device(op, q, k, v);
  check_float(op, "q", q);
  check_same_dtype(op, "q", q, "k", k);
  check_same_dtype(op, "q", q, "v", v);
  check_shape(q.ndim() == 4 && k.ndim() == 4, op, "q and k must have four axes [batch, time, heads, dim], got ",
              q.shape(), " and ", k.shape());
  check_shape_is(op, "v", v, k.shape());
  const int64_t heads = q.shape()[2], kv_heads = k.shape()[2], dim = q.shape()[3];
  check_shape(k.shape()[0] == q.shape()[0] && k.shape()[3] == dim && dim >= 1, op,
              "q and k must have the same batch and dim, got ", q.shape(), " and ", k.shape());
  check_shape(kv_heads >= 1 && heads >= 1 && heads % kv_heads == 0, op, "the heads of q (", heads,
              ") must be a multiple of those of k (", kv_heads, ")");
  check_shape(!causal || k.shape()[1] >= q.shape()[1], op,
              "causal attention must have at least as many keys as queries, got ", q.shape(), " and ", k.shape());
  if (starts) {
    check_same_device(op, q, *starts);
    check_dtype_is(op, "starts", *starts, DType::int32);
    check_shape(starts->ndim() == 1 && starts->numel() >= 1, op, "starts must have the shape [samples + 1], got ",
                starts->shape());
    check_shape(q.shape()[0] == 1 && q.shape()[1] == k.shape()[1], op,
                "with starts, q and k must be one batch entry of as many queries as keys, got ", q.shape(), " and ",
                k.shape());
  }
  const ScoreRule rule = check_rule(op, q, heads, scale, window, softcap, sinks);
  return {.q = q.data(),
          .k = k.data(),
          .v = v.data(),
          .y = nullptr,
          .lse = nullptr,
          .starts = starts ? starts->ptr<int32_t>() : nullptr,
          .rule = rule,
          .batch = q.shape()[0],
          .queries = q.shape()[1],
          .keys = k.shape()[1],
          .heads = heads,
          .kv_heads = kv_heads,
          .dim = dim,
          .samples = starts ? starts->numel() - 1 : 0,
          .fault = q.device().fault(),
          .dtype = q.dtype(),
          .causal = causal};
}

}  // namespace

std::tuple<Tensor, std::optional<Tensor>> attention(const Tensor& q, const Tensor& k, const Tensor& v, float scale,
                                                    bool causal, int64_t window, float softcap,
                                                    const std::optional<Tensor>& sinks,
                                                    const std::optional<Tensor>& starts, bool keep_lse) {
  AttentionArgs args = check_attention("attention", q, k, v, scale, causal, window, softcap, sinks, starts);
  Tensor y = Tensor::empty(q.shape(), q.dtype(), q.device());
  std::optional<Tensor> lse;
  if (keep_lse) lse = Tensor::empty({args.batch, args.queries, args.heads}, DType::float32, q.device());
  if (y.numel() == 0) return {y, lse};
  args.y = y.data();
  args.lse = lse ? lse->ptr<float>() : nullptr;
  enqueue(kernels::attention, q.device(), args);
  return {y, lse};
}

std::tuple<Tensor, Tensor, Tensor, std::optional<Tensor>> attention_backward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& y, const Tensor& lse, const Tensor& dy,
    float scale, bool causal, int64_t window, float softcap, const std::optional<Tensor>& sinks,
    const std::optional<Tensor>& starts) {
  constexpr const char* op = "attentionBackward";
  AttentionArgs args = check_attention(op, q, k, v, scale, causal, window, softcap, sinks, starts);
  check_same_device(op, q, y, lse, dy);
  check_same_dtype(op, "q", q, "y", y);
  check_same_dtype(op, "q", q, "dy", dy);
  check_dtype_is(op, "lse", lse, DType::float32);
  check_shape_is(op, "y", y, q.shape());
  check_shape_is(op, "dy", dy, q.shape());
  check_shape_is(op, "lse", lse, {args.batch, args.queries, args.heads});
  Tensor dq = Tensor::empty(q.shape(), q.dtype(), q.device());
  Tensor dk = Tensor::empty(k.shape(), q.dtype(), q.device());
  Tensor dv = Tensor::empty(k.shape(), q.dtype(), q.device());
  std::optional<Tensor> dsinks;
  if (sinks) dsinks = Tensor::empty({args.heads}, DType::float32, q.device());
  args.y = y.data();
  args.lse = lse.ptr<float>();
  enqueue(kernels::attention_backward, q.device(),
          AttentionBackwardArgs{.forward = args,
                                .dy = dy.data(),
                                .dq = dq.data(),
                                .dk = dk.data(),
                                .dv = dv.data(),
                                .dsinks = dsinks ? dsinks->ptr<float>() : nullptr});
  return {dq, dk, dv, dsinks};
}

}  // namespace bnb::ops
