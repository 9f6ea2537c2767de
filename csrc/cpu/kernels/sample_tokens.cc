// What stands around the draws of tokens: logits adjusted before, probabilities and counts after.
//
// Layout    logits [rows, n]; y float32.
// Work      a row per item; the best ones by insertion into a list of at most 20.
// Numerics  float32; the sum of exponentials in float64, in the order of the elements.
// Needs     what the contract says.
#include "kernels/sample_tokens.h"

#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

template <class T>
void adjust_row(const SampleAdjustArgs& a, int64_t r) {
  const T* x = static_cast<const T*>(a.logits) + r * a.n;
  float* y = a.y + r * a.n;
  const int32_t* counts = counts_of(a.counts, r, a.n);
  if (counts) {
    const float repetition = a.repetition[r], presence = a.presence[r], frequency = a.frequency[r];
    for (int64_t i = 0; i < a.n; i++)
      y[i] = sample_penalized(to_float(x[i]), counts[i], repetition, presence, frequency);
  } else {
    for (int64_t i = 0; i < a.n; i++) y[i] = to_float(x[i]);
  }
  const BiasRange biases = biases_of(a, r);
  for (int64_t e = biases.begin; e < biases.end; e++) {
    const int32_t id = a.bias_ids[e];
    if (id >= 0 && id < a.n) {
      y[id] += a.bias_values[e];
    } else {
      report_fault(a.fault, FaultCode::index_out_of_range, id, a.n);
    }
  }
  if (!a.mask) return;
  const uint32_t* mask = a.mask + r * ((a.n + 31) / 32);
  for (int64_t i = 0; i < a.n; i++)
    if (!(mask[i / 32] >> (i % 32) & 1)) y[i] = -__builtin_inff();
}

// The logarithm of the sum of exponentials.
template <class T>
float log_sum(const T* x, int64_t n) {
  float largest = -__builtin_inff();
  for (int64_t i = 0; i < n; i++) largest = to_float(x[i]) > largest ? to_float(x[i]) : largest;
  if (largest == -__builtin_inff()) return largest;
  double sum = 0;
  float e[F32::width];
  for (int64_t i = 0; i < n; i += F32::width) {
    const int64_t count = n - i < F32::width ? n - i : F32::width;
    store(e, exp(load_n(x + i, count) - set1(largest)));
    for (int64_t j = 0; j < count; j++) sum += static_cast<double>(e[j]);
  }
  return largest + reduce_max(log(set1(static_cast<float>(sum))));
}

template <class T>
void report_row(const SampleReportArgs& a, int64_t r) {
  const T* x = static_cast<const T*>(a.logits) + r * a.n;
  const int32_t drawn = a.drawn[r];
  if (int32_t* counts = counts_of(a.counts, r, a.n); counts && drawn >= 0) counts[drawn]++;
  if (!a.logprobs) return;
  const float total = log_sum(x, a.n);
  a.logprobs[r] = drawn < 0 ? __builtin_nanf("") : to_float(x[drawn]) - total;
  int32_t* ids = a.best_ids + r * a.best;
  int64_t found = 0;
  for (int64_t i = 0; a.best > 0 && i < a.n; i++) {
    const float v = to_float(x[i]);
    if (found == a.best && !(v > to_float(x[ids[found - 1]]))) continue;
    int64_t at = found < a.best ? found++ : found - 1;
    for (; at > 0 && v > to_float(x[ids[at - 1]]); at--) ids[at] = ids[at - 1];
    ids[at] = static_cast<int32_t>(i);
  }
  for (int64_t k = 0; k < a.best; k++) {
    if (k >= found) ids[k] = -1;
    a.best_logprobs[r * a.best + k] = k < found ? to_float(x[ids[k]]) - total : -__builtin_inff();
  }
}

}  // namespace

void sample_adjust(const SampleAdjustArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    parallel_for(a.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) adjust_row<decltype(t)>(a, r);
    });
  });
}

// In order: rows may share a row of counts.
void sample_report(const SampleReportArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    for (int64_t r = 0; r < a.rows; r++) report_row<decltype(t)>(a, r);
  });
}

}  // namespace bnb::BNB_ISA
