// Dropout with a mask that is recomputed instead of stored.
//
// Layout    flat; element i takes word i % 4 of block offset + i / 4.
// Work      chunks of batches of 64 blocks.
// Numerics  one product in float32; a dropped element is 0 even where x is infinite or NaN.
// Needs     nothing.
#include "kernels/dropout.h"

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int kBlocks = 64;
constexpr int64_t kBatch = 4 * kBlocks;
constexpr uint32_t kSign = 0x80000000u;  // turns the order of unsigned words into that of signed ones

}  // namespace

void dropout(const DropoutArgs& a) {
  // With p = 1 the scale is 0, so that the one word at the saturated threshold does not matter.
  const uint32_t limit = a.threshold > 0xffffffffu ? 0xffffffffu : static_cast<uint32_t>(a.threshold);
  const int32_t threshold = static_cast<int32_t>(limit ^ kSign);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for((a.n + kBatch - 1) / kBatch, 32, [&](int64_t begin, int64_t end) {
      for (int64_t batch = begin; batch < end; batch++) {
        uint32_t word[4][kBlocks];
        philox_batch(a.seed, a.offset + static_cast<uint64_t>(batch) * kBlocks, word);
        // Copies, because a load behind the condition would keep the loop scalar.
        const float scale = a.scale;
        const int32_t least = threshold;
        float chosen[4][kBlocks], factor[kBatch];
        for (int k = 0; k < 4; k++)
          for (int j = 0; j < kBlocks; j++)
            chosen[k][j] = static_cast<int32_t>(word[k][j] ^ kSign) >= least ? scale : 0.0f;
        interleave(chosen, factor);

        const int64_t at = batch * kBatch, left = a.n - at, count = left < kBatch ? left : kBatch;
        const T* x = static_cast<const T*>(a.x) + at;
        T* y = static_cast<T*>(a.y) + at;
        for (int64_t i = 0; i < count; i += F32::width) {
          const int64_t n = count - i < F32::width ? count - i : F32::width;
          const F32 f = load(factor + i);
          store_part(y + i, select(lt(zero(), f), load_part(x + i, n) * f, zero()), n);
        }
      }
    });
  });
}

}  // namespace bnb::BNB_ISA
