// g <- g * min(1, limit / (norm + 1e-6)) over a list of gradients, or g <- clamp(g, -limit, limit).
//
// Layout    any number of flat tensors, each of its own dtype.
// Work      parallel_for over chunks of 16 Ki elements: one pass for the norm, one for the scaling, which is
//           left out when nothing is to be scaled.
// Numerics  squares are added in float64, chunk by chunk, and the chunks in order: the norm does not depend on
//           the number of threads. A NaN anywhere makes the norm NaN.
// Needs     nothing beyond the contract.
#include "kernels/clip_gradients.h"

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

int64_t job_of(const ClipGradientsArgs& a, int64_t chunk) {
  int64_t low = 0, high = a.job_count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.jobs[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return low;
}

// Eight running sums keep the additions independent.
template <class T>
double squares(const T* g, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int k = 0; k < 8; k++) {
      const double x = static_cast<double>(to_float(g[i + k]));
      sums[k] += x * x;
    }
  }
  for (; i < n; i++) {
    const double x = static_cast<double>(to_float(g[i]));
    sums[0] += x * x;
  }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

template <class T>
double largest(const T* g, int64_t n) {
  float most = 0;
  bool has_nan = false;
  for (int64_t i = 0; i < n; i++) {
    const float x = __builtin_fabsf(to_float(g[i]));
    most = x > most ? x : most;
    has_nan |= x != x;
  }
  return has_nan ? __builtin_nan("") : static_cast<double>(most);
}

template <class T, class F>
void transform(T* g, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + F32::width <= n; i += F32::width) store(g + i, f(load(g + i)));
  if (i < n) store_n(g + i, f(load_n(g + i, static_cast<int>(n - i))), static_cast<int>(n - i));
}

// Calls f(pointer, count) for each chunk's elements.
template <class F>
void for_each_chunk(const ClipGradientsArgs& a, const F& f) {
  parallel_for(a.chunk_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; chunk++) {
      const ClipJob& job = a.jobs[job_of(a, chunk)];
      const int64_t at = (chunk - job.first_chunk) * kClipChunk;
      const int64_t n = job.n - at < kClipChunk ? job.n - at : kClipChunk;
      visit_float(job.dtype, [&](auto type) { f(static_cast<decltype(type)*>(job.g) + at, n, chunk); });
    }
  });
}

}  // namespace

void clip_gradients(const ClipGradientsArgs& a) {
  if (a.rule == ClipRule::value) {
    const F32 high = set1(a.limit), low = set1(-a.limit);
    // Comparisons are false for NaN, which therefore stays.
    for_each_chunk(a, [&](auto* g, int64_t n, int64_t) {
      transform(g, n, [&](F32 x) { return select(lt(high, x), high, select(lt(x, low), low, x)); });
    });
    return;
  }
  const bool use_max = a.rule == ClipRule::norm_max;
  for_each_chunk(
      a, [&](auto* g, int64_t n, int64_t chunk) { a.partials[chunk] = use_max ? largest(g, n) : squares(g, n); });
  double total = 0;
  for (int64_t chunk = 0; chunk < a.chunk_count; chunk++) {
    const double x = a.partials[chunk];
    if (!use_max) {
      total += x;
    } else if (!(x <= total)) {
      total = total != total ? total : x;
    }
  }
  const double norm = use_max ? total : __builtin_sqrt(total);
  *a.norm = static_cast<float>(norm);
  const double factor = static_cast<double>(a.limit) / (norm + 1e-6);
  if (factor >= 1) return;
  const F32 scale = set1(static_cast<float>(factor));
  for_each_chunk(a, [&](auto* g, int64_t n, int64_t) { transform(g, n, [&](F32 x) { return x * scale; }); });
}

}  // namespace bnb::BNB_ISA
