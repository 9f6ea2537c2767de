// What the kernels of attention over pages share: where things lie.
#pragma once
#include "cuda/kernel.cuh"
#include "kernels/paged_attention.h"

namespace bnb::cuda {
namespace {

// The last sequence that starts at or before a token, -1 without one.
__device__ __forceinline__ int64_t sequence_at(const PagedAttentionArgs& a, int64_t token) {
  int64_t low = 0, high = a.sequences;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (a.starts[middle] <= token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low - 1;
}

// Where key j of a head of sequence s lies: the index of its row in the pages. -1 where there is no such page, which is
// reported.
__device__ __forceinline__ int64_t place_of(const PagedAttentionArgs& a, int64_t s, int64_t j, int64_t kv_head,
                                            const char* op) {
  const int64_t page = a.table[s * a.max_pages + j / kPageRows];
  if (page < 0 || page >= a.layer.pages) {
    report_out_of_range(a.fault, op, page, a.layer.pages);
    return -1;
  }
  return a.layer.row_of(page * kPageRows + j % kPageRows, kv_head);
}

}  // namespace

// 16-bit queries and pages of one dtype on the matrix units; false where those cannot take the problem.
bool paged_attention_mma(const PagedAttentionArgs& a, CudaStream& s);
// Whatever the matrix units cannot take.
void paged_attention_simt(const PagedAttentionArgs& a, CudaStream& s);

}  // namespace bnb::cuda
