// The step before attention over pages: y = q turned, and at each token's slot k turned and v as it is, for the model's
// next tokens of any sequences. A negative slot takes nothing.
#pragma once
#include "core/kernel.h"
#include "kernels/pages.h"
#include "kernels/rope.h"

namespace bnb {

struct KvAppendArgs {
  const void* q;         // [tokens, heads, dim] dtype
  const void* k;         // [tokens, kv_heads, dim] dtype
  const void* v;         // as k
  const int32_t* slots;  // [tokens]
  void* y;               // as q
  KvPages layer;
  Angles angles;             // of 0 pairs: nothing turns
  const int32_t* positions;  // [tokens]
  int64_t tokens, heads;
  DType dtype;
  Fault* fault;
};
BNB_KERNEL(kv_append, KvAppendArgs)

}  // namespace bnb
