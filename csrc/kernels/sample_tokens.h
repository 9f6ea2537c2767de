// What stands around a draw (kernels/sample_token.h). Before it: penalties for tokens seen, biases of single tokens,
// and a mask of those allowed. After it: the logarithm of the probability of the token drawn, the most likely ones with
// theirs, and one more in the count of the token.
#pragma once
#include "core/kernel.h"

namespace bnb {

// A count of a token: how often it was generated, and whether the prompt has it.
constexpr int32_t kGeneratedMask = (1 << 30) - 1, kPromptBit = 1 << 30;
constexpr int kMostBest = 20;

// How often each row has seen each token.
struct TokenCounts {
  int32_t* table;       // [slots, n]; null where nothing is counted
  const int32_t* slot;  // [rows]: the row of the table, below 0 for none; null: each its own
  int64_t slots;
};

// y = logits with penalties, then biases, then -infinity where the mask has no bit.
struct SampleAdjustArgs {
  const void* logits;  // [rows, n] dtype
  float* y;            // [rows, n]
  int64_t rows, n;
  TokenCounts counts;
  // [rows]: divides positive logits of tokens seen, multiplies others; is taken off from those of tokens generated,
  // once, and as often as they were.
  const float *repetition, *presence, *frequency;
  const int32_t* bias_offsets;  // [rows + 1]: entries of each row; or null
  const int32_t* bias_ids;      // [entries]
  const float* bias_values;     // [entries]
  int64_t biases;
  const uint32_t* mask;  // [rows, ceil(n / 32)], bit i % 32 of word i / 32; or null
  Fault* fault;
  DType dtype;
};
BNB_KERNEL(sample_adjust, SampleAdjustArgs)

// log(softmax(logits)) at the tokens drawn and at the `best` largest, equal ones by index; and the counts.
struct SampleReportArgs {
  const void* logits;    // [rows, n] dtype
  const int32_t* drawn;  // [rows]; -1 for none
  float* logprobs;       // [rows], NaN for none; null where not wanted, then `best` is 0
  int32_t* best_ids;     // [rows, best], -1 beyond n
  float* best_logprobs;  // [rows, best], -infinity beyond n
  int64_t rows, n, best;
  TokenCounts counts;
  DType dtype;
};
BNB_KERNEL(sample_report, SampleReportArgs)

BNB_INLINE float sample_penalized(float x, int32_t count, float repetition, float presence, float frequency) {
  if (count == 0) return x;
  x = x > 0 ? x / repetition : x * repetition;
  const int32_t generated = count & kGeneratedMask;
  return generated > 0 ? x - presence - frequency * static_cast<float>(generated) : x;
}

// The row of the table, or null.
BNB_INLINE int32_t* counts_of(const TokenCounts& c, int64_t row, int64_t n) {
  const int64_t slot = !c.table ? -1 : c.slot ? c.slot[row] : row;
  return slot >= 0 && slot < c.slots ? c.table + slot * n : nullptr;
}

// Entries of a row; none where the offsets make no sense.
struct BiasRange {
  int64_t begin, end;
};
BNB_INLINE BiasRange biases_of(const SampleAdjustArgs& a, int64_t row) {
  if (!a.bias_offsets) return {0, 0};
  const int64_t begin = a.bias_offsets[row], end = a.bias_offsets[row + 1];
  return begin >= 0 && begin <= end && end <= a.biases ? BiasRange{begin, end} : BiasRange{0, 0};
}

}  // namespace bnb
