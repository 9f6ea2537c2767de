// The next token of each row of logits: a draw from softmax(logits / temperature) cut to the top_k largest and those
// equal to the last of them, then to the fewest of these whose probabilities reach top_p, then to those with at least
// min_p of the largest probability, then to the most typical ones whose probabilities reach typical_p.
//
// Elements rank by logit, the largest first, equal ones by index. Their weights are whole numbers, so that sums have
// the same bits in any order and on any device: a draw is the first element in rank order at which the sum of weights
// exceeds the drawn part of the total. All cuts but the last leave the first of a ranking, so a cut is a sum of
// weights.
#pragma once
#include "core/kernel.h"
#include "core/random.h"
#include "kernels/position.h"

namespace bnb {

constexpr int64_t kSampleMost = int64_t{1} << 23;  // elements of a row, whose weights then add up in 64 bits

// How one row is drawn from. Numbers out of range mean what the nearest in range does, NaN that there is no cut.
struct RowSampling {
  float sharpness;   // log2(e) / temperature; 0 takes the first of the largest
  int64_t top_k;     // 1 to n
  double top_p;      // 1 keeps all
  double min_p;      // 0 keeps all
  double typical_p;  // 1 keeps all
  uint64_t seed;
  int64_t step;
  uint32_t row;  // each row of one seed and step has draws of its own
};

// A number of each for every row.
struct SamplingRows {
  const float *temperature, *top_p, *min_p, *typical_p;  // [rows]
  const int32_t* top_k;                                  // [rows]
  const uint32_t* seed;                                  // [rows, 2]: low and high word
  const int32_t* step;                                   // [rows]
};

struct SampleTokenArgs {
  const void* logits;  // [rows, n] dtype
  int32_t* y;          // [rows]; -1 for a row with a NaN or +infinity, or with nothing above -infinity
  int64_t rows, n;     // 0 < n <= kSampleMost
  RowSampling all;     // of every row, which has its number added to `row`; unless `each` has a temperature
  SamplingRows each;
  Position position;  // added to the step
  DType dtype;
};
BNB_KERNEL(sample_token, SampleTokenArgs)

// log2(e) / temperature. Below the coldest the difference of two neighbouring floats is beyond 41 halvings anyway.
BNB_INLINE float sample_sharpness(double temperature) {
  constexpr double log2e = 1.4426950408889634, coldest = 1e-30;
  if (!(temperature > 0)) return 0;
  return static_cast<float>(log2e / (temperature > coldest ? temperature : coldest));
}

BNB_INLINE RowSampling sampling_of(const SampleTokenArgs& a, int64_t row) {
  const SamplingRows& e = a.each;
  if (!e.temperature) {
    RowSampling s = a.all;
    s.row += static_cast<uint32_t>(row);
    return s;
  }
  const int64_t k = e.top_k[row];
  return {sample_sharpness(e.temperature[row]),
          k < 1 || k > a.n ? a.n : k,
          e.top_p[row],
          e.min_p[row],
          e.typical_p[row],
          static_cast<uint64_t>(e.seed[2 * row + 1]) << 32 | e.seed[2 * row],
          e.step[row],
          0};
}

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

// The least weight that min_p keeps.
BNB_INLINE uint64_t sample_least(double min_p) {
  const auto largest = static_cast<double>(sample_weight(0));
  if (!(min_p > 0)) return 0;
  const double least = min_p * largest;
  return static_cast<uint64_t>(least < largest ? least : largest);
}

// Elements by distance, 32 bins a halving: ascending with the rank. The last takes all that are far.
constexpr int kSampleBins = 2048;
BNB_INLINE int sample_bin(float distance) {
  const float at = distance * 32.0f;
  return at < static_cast<float>(kSampleBins - 1) ? static_cast<int>(at) : kSampleBins - 1;
}

// The least sum of weights that reaches top_p of the total, and the drawn part of one, both for "first to exceed".
BNB_INLINE uint64_t sample_nucleus(double top_p, uint64_t total) {
  const double wanted = top_p > 0 ? top_p * static_cast<double>(total) : 0;
  uint64_t sum = static_cast<uint64_t>(wanted);
  if (static_cast<double>(sum) < wanted) sum++;
  return (sum < 1 ? 1 : sum < total ? sum : total) - 1;
}
BNB_INLINE uint64_t sample_target(const RowSampling& s, uint64_t total) {
  const auto at = static_cast<uint64_t>(s.step);
  // The last word of the counter sets these numbers apart from those of random_fill.
  const PhiloxBlock block = philox(static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), s.row, 1,
                                   static_cast<uint32_t>(s.seed), static_cast<uint32_t>(s.seed >> 32));
  // total * word / 2^32
  return (total >> 32) * block.word[0] + (((total & 0xffffffffu) * block.word[0]) >> 32);
}

}  // namespace bnb
