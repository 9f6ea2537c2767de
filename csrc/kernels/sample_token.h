// The next token of each row of logits: a draw from softmax(logits / temperature) cut to the top_k largest, and then to
// the fewest of those whose probabilities reach top_p.
//
// Elements rank by logit, the largest first, equal ones by index. Their weights are whole numbers, so that sums have
// the same bits in any order and on any device: a draw is the first element in rank order at which the sum of weights
// exceeds the drawn part of the total.
#pragma once
#include "core/kernel.h"
#include "core/random.h"
#include "kernels/position.h"

namespace bnb {

constexpr int64_t kSampleMost = int64_t{1} << 23;  // elements of a row, whose weights then add up in 64 bits

struct SampleTokenArgs {
  const void* logits;  // [rows, n] dtype
  int32_t* y;          // [rows]; -1 for a row with a NaN or +infinity, or with nothing above -infinity
  int64_t rows, n;     // 0 < n <= kSampleMost
  float sharpness;     // log2(e) / temperature; 0 takes the first of the largest
  int64_t top_k;       // 1 to n
  double top_p;        // above 0, at most 1
  uint64_t seed;
  int64_t step;       // of the draw; every row has its own
  Position position;  // added to step
  DType dtype;
};
BNB_KERNEL(sample_token, SampleTokenArgs)

// Ascending with the logit; -0 and 0 are equal.
BNB_INLINE uint32_t sample_key(float logit) {
  const uint32_t bits = float_bits(logit + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
BNB_INLINE float sample_logit(uint32_t key) { return float_from_bits(key >> 31 ? key & 0x7fffffffu : ~key); }

// By how many halvings the probability of a logit is below that of the largest. Never NaN for a finite `top`.
BNB_INLINE float sample_distance(float top, float logit, float sharpness) { return (top - logit) * sharpness; }

// 2^-distance in units of 2^-40; zero from 41 halvings on. Relative error below 2^-22, and 2^-40 of the largest.
BNB_INLINE uint64_t sample_weight(float distance) {
  if (!(distance < 41.0f)) return 0;
  const int whole = static_cast<int>(distance);
  // exp(-ln 2 (f - 1/2)) by its series, f in [0, 1).
  const float t = (static_cast<float>(whole) + 0.5f - distance) * 0.69314718f;
  float series = 1.0f + t * (1.0f / 7);
  series = 1.0f + t * (1.0f / 6) * series;
  series = 1.0f + t * (1.0f / 5) * series;
  series = 1.0f + t * (1.0f / 4) * series;
  series = 1.0f + t * (1.0f / 3) * series;
  series = 1.0f + t * (1.0f / 2) * series;
  series = 1.0f + t * series;
  return (static_cast<uint64_t>(static_cast<uint32_t>(series * (0.70710678f * 16777216.0f))) << 16) >> whole;
}

// Elements by distance, 32 bins a halving: ascending with the rank. The last takes all that are far.
constexpr int kSampleBins = 2048;
BNB_INLINE int sample_bin(float distance) {
  const float at = distance * 32.0f;
  return at < static_cast<float>(kSampleBins - 1) ? static_cast<int>(at) : kSampleBins - 1;
}

// The least sum of weights that reaches top_p of the total, and the drawn part of one, both for "first to exceed".
BNB_INLINE uint64_t sample_nucleus(double top_p, uint64_t total) {
  const double wanted = top_p * static_cast<double>(total);
  uint64_t sum = static_cast<uint64_t>(wanted);
  if (static_cast<double>(sum) < wanted) sum++;
  return (sum < 1 ? 1 : sum < total ? sum : total) - 1;
}
BNB_INLINE uint64_t sample_target(uint64_t seed, int64_t step, int64_t row, uint64_t total) {
  const auto at = static_cast<uint64_t>(step);
  // The last word of the counter sets these numbers apart from those of random_fill.
  const PhiloxBlock block =
      philox(static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), static_cast<uint32_t>(row), 1,
             static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  // total * word / 2^32
  return (total >> 32) * block.word[0] + (((total & 0xffffffffu) * block.word[0]) >> 32);
}

}  // namespace bnb
