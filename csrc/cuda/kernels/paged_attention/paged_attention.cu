// Attention over pages: which kernel takes what.
#include "cuda/kernels/paged_attention/paged.cuh"

namespace bnb::cuda {

void paged_attention(const PagedAttentionArgs& a, CudaStream& s) {
  if (!paged_attention_mma(a, s)) paged_attention_simt(a, s);
}

}  // namespace bnb::cuda
