// Attention: which kernel takes what.
#include "cuda/kernels/attention/heads.cuh"

namespace bnb::cuda {

void attention(const AttentionArgs& a, CudaStream& s) {
  if (!attention_mma(a, s)) attention_simt(a, s);
}

void attention_backward(const AttentionBackwardArgs& b, CudaStream& s) {
  const AttentionArgs& a = b.forward;
  const int64_t rows = a.batch * a.queries * a.heads;
  auto* delta = rows == 0 ? nullptr : static_cast<float*>(s.scratch(static_cast<size_t>(rows) * sizeof(float)));
  attention_delta(b, delta, s);
  if (b.dsinks) attention_sink_gradient(b, delta, s);
  if (!attention_backward_mma(b, delta, s)) attention_backward_simt(b, delta, s);
}

}  // namespace bnb::cuda
