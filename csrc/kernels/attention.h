// Scaled dot-product attention with grouped key and value heads. Query i sits at position length - queries + i
// and, when causal, sees the keys up to that position.
#pragma once
#include "core/kernel.h"
#include "kernels/position.h"

namespace bnb {

struct AttentionArgs {
  const void* q;  // [batch, queries, heads, dim] dtype
  const void* k;  // [batch, keys, kv_heads, dim] dtype; only the first `length` keys count
  const void* v;  // as k
  void* y;        // as q
  float* lse;     // [batch, queries, heads], log of the sum of exponentials, for the backward pass; or null
  int64_t batch, queries, keys, length;
  int64_t heads, kv_heads, dim;
  Position position;  // added to length
  float scale;
  DType dtype;
  bool causal;
};
BNB_KERNEL(attention, AttentionArgs)

struct AttentionBackwardArgs {
  AttentionArgs forward;  // y and lse as the forward pass left them
  const void* dy;         // as y
  void* dq;               // as q
  void* dk;               // as k
  void* dv;               // as v
};
BNB_KERNEL(attention_backward, AttentionBackwardArgs)

}  // namespace bnb
