// Uniform, normal and integer fills from Philox blocks.
//
// Layout    batches of kBlocks blocks, four elements a block; word k of a block goes to its element k.
// Work      chunks of batches.
// Numerics  plain loops of IEEE operations in a fixed order and own polynomials, without fused multiply-add:
//           every ISA gives the same bits. Normal values reach 5.77 standard deviations.
// Needs     nothing.
#include "kernels/random_fill.h"

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "kernels/box_muller.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int kBlocks = 64;
constexpr int64_t kBatch = 4 * kBlocks;

void normals(const uint32_t (&word)[4][kBlocks], float mean, float deviation, float* out) {
  float value[4][kBlocks];
  for (int pair = 0; pair < 4; pair += 2) {
    for (int j = 0; j < kBlocks; j++) {
      const float radius = __builtin_sqrtf(squared_radius(word[pair][j])) * deviation;
      float cosine, sine;
      turn(word[pair + 1][j] >> 8, cosine, sine);
      value[pair][j] = radius * cosine + mean;
      value[pair + 1][j] = radius * sine + mean;
    }
  }
  interleave(value, out);
}

void uniforms(const uint32_t (&word)[4][kBlocks], float low, float width, float* out) {
  float value[4][kBlocks];
  for (int k = 0; k < 4; k++)
    for (int j = 0; j < kBlocks; j++)
      value[k][j] = static_cast<float>(static_cast<int32_t>(word[k][j] >> 8)) * kUnit * width + low;
  interleave(value, out);
}

// Calls f(words, first element, count) for every batch.
template <class F>
BNB_INLINE void for_each_batch(const RandomFillArgs& a, const F& f) {
  parallel_for((a.n + kBatch - 1) / kBatch, 16, [&](int64_t begin, int64_t end) {
    for (int64_t batch = begin; batch < end; batch++) {
      const int64_t i = batch * kBatch, left = a.n - i;
      uint32_t word[4][kBlocks];
      philox_batch(a.seed, a.offset + static_cast<uint64_t>(batch) * kBlocks, word);
      f(word, i, left < kBatch ? left : kBatch);
    }
  });
}

void fill_integers(const RandomFillArgs& a) {
  int32_t* y = static_cast<int32_t*>(a.y);
  const int64_t low = static_cast<int64_t>(a.low);
  const uint64_t width = static_cast<uint64_t>(static_cast<int64_t>(a.high) - low);
  for_each_batch(a, [&](const uint32_t(&word)[4][kBlocks], int64_t at, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
      const int64_t step = static_cast<int64_t>((word[i % 4][i / 4] * width) >> 32);
      y[at + i] = static_cast<int32_t>(low + step);
    }
  });
}

}  // namespace

void random_fill(const RandomFillArgs& a) {
  if (a.distribution == Distribution::integer) return fill_integers(a);
  const float low = static_cast<float>(a.low);
  const float high = static_cast<float>(a.distribution == Distribution::uniform ? a.high - a.low : a.high);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    for_each_batch(a, [&](const uint32_t(&word)[4][kBlocks], int64_t at, int64_t count) {
      float value[kBatch];
      if (a.distribution == Distribution::uniform) {
        uniforms(word, low, high, value);
      } else {
        normals(word, low, high, value);
      }
      T* y = static_cast<T*>(a.y) + at;
      for (int64_t i = 0; i < count; i += F32::width) {
        store_part(y + i, load(value + i), count - i < F32::width ? count - i : F32::width);
      }
    });
  });
}

}  // namespace bnb::BNB_ISA
