// The frame of an optimizer step, for both kinds of state. A parameter is cut into tiles of 256 elements; the
// States type brings a tile's states into float32 arrays and back.
//
// Layout    jobs own runs of chunks (64 tiles each); a chunk belongs to one job.
// Work      parallel_for over chunks. A job that needs norms is read twice: first for the sums of squares, one
//           pair per chunk, added in order on one thread, then for the update.
// Numerics  float32 throughout, p rounded once when stored. A partial tile is padded with NaN gradients, which
//           the rule for elements that are not finite leaves alone.
// Needs     OptimizerArgs with non-empty jobs.
#pragma once
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "kernels/optimizer_rules.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int kTile = kOptimizerBlock;

BNB_INLINE RuleConstants<F32> constants(const OptimizerJob& job, float trust_ratio) {
  return {job.scalars, trust_ratio, [](float x) { return set1(x); }};
}

struct Tile {
  int64_t index;  // of the tile in its parameter
  int n;          // elements, at most kTile; the arrays below always have kTile
  float* p;
  const float* g;
  float* s[3];
  alignas(64) float buffer[5][kTile];
};

template <class T>
void widen(const T* from, int n, float* to, float pad) {
  int i = 0;
  for (; i + F32::width <= n; i += F32::width) store(to + i, load(from + i));
  for (; i < n; i++) to[i] = to_float(from[i]);
  for (; i < kTile; i++) to[i] = pad;
}

template <class T>
void narrow(const float* from, int n, T* to) {
  int i = 0;
  for (; i + F32::width <= n; i += F32::width) store(to + i, load(from + i));
  for (; i < n; i++) to[i] = from_float<T>(from[i]);
}

// Points t.p and t.g at float32 values: the tensors themselves where they are, copies otherwise.
void open_values(const OptimizerJob& job, Tile& t) {
  const int64_t at = t.index * kTile;
  const bool whole = t.n == kTile;
  visit_float(job.p_dtype, [&](auto type) {
    auto* p = static_cast<decltype(type)*>(job.p) + at;
    t.p = t.buffer[0];
    if constexpr (sizeof(type) == sizeof(float)) {
      if (whole) {
        t.p = p;
        return;
      }
    }
    widen(p, t.n, t.buffer[0], 0.0f);
  });
  visit_float(job.g_dtype, [&](auto type) {
    const auto* g = static_cast<const decltype(type)*>(job.g) + at;
    t.g = t.buffer[1];
    if constexpr (sizeof(type) == sizeof(float)) {
      if (whole) {
        t.g = g;
        return;
      }
    }
    widen(g, t.n, t.buffer[1], __builtin_nanf(""));
  });
}

void close_values(const OptimizerJob& job, const Tile& t) {
  if (t.p != t.buffer[0]) return;
  visit_float(job.p_dtype, [&](auto type) { narrow(t.p, t.n, static_cast<decltype(type)*>(job.p) + t.index * kTile); });
}

// Which elements of a vector take part: all new values finite, and not a zero gradient that is to be skipped.
struct Guard {
  F32 skip_below;
  unsigned updated = 0;  // not 0 when some element took part
  int nonfinite = 0;
  explicit Guard(float skip) : skip_below(set1(skip)) {}

  // `finite` is whether what follows from the states is.
  template <int kStates>
  BNB_INLINE Mask check(F32 raw, const F32* s, Mask finite) {
    const F32 limit = set1(kLargestFloat);
    for (int k = 0; k < kStates; k++) finite = finite & le(abs(s[k]), limit);
    const Mask skipped = le(abs(raw), skip_below);
    const Mask fine = finite | skipped;
    if (!all(fine)) [[unlikely]]
      nonfinite += static_cast<int>(reduce_add(select(fine, zero(), set1(1.0f))));
    const Mask take = finite & ~skipped;
    updated |= static_cast<unsigned>(bits(take));
    return take;
  }
};

// Updates the float32 arrays of a tile in place.
template <class Rule>
BNB_INLINE Guard update_tile(const RuleConstants<F32>& c, const OptimizerJob& job, float step_size, Tile& t) {
  const OptimizerScalars& k = job.scalars;
  const F32 decay = set1(k.decay), step = set1(-step_size), grad_scale = set1(k.grad_scale);
  const F32 limit = set1(largest(job.p_dtype));
  Guard guard(k.skip_below);
  for (int i = 0; i < kTile; i += F32::width) {
    const F32 p = load(t.p + i), raw = load(t.g + i);
    F32 old[Rule::kStates], s[Rule::kStates];
    for (int j = 0; j < Rule::kStates; j++) s[j] = old[j] = load(t.s[j] + i);
    const F32 direction = Rule::direction(c, p, raw * grad_scale, s);
    const F32 moved = fma(step, direction, p * decay);
    const Mask take = guard.template check<Rule::kStates>(raw, s, le(abs(moved), limit));
    for (int j = 0; j < Rule::kStates; j++) store(t.s[j] + i, select(take, s[j], old[j]));
    store(t.p + i, select(take, moved, p));
  }
  return guard;
}

// Adds the squares of the parameter and of the direction (lars: of the gradient) over the elements that take part.
template <class Rule>
BNB_INLINE void sum_squares(const RuleConstants<F32>& c, const OptimizerScalars& k, Tile& t, double* sums) {
  const F32 grad_scale = set1(k.grad_scale);
  const F32 limit = set1(kLargestFloat);
  Guard guard(k.skip_below);
  F32 p2 = zero(), u2 = zero();
  for (int i = 0; i < kTile; i += F32::width) {
    const F32 p = load(t.p + i), raw = load(t.g + i);
    F32 s[Rule::kStates];
    for (int j = 0; j < Rule::kStates; j++) s[j] = load(t.s[j] + i);
    F32 u = Rule::direction(c, p, raw * grad_scale, s);
    if constexpr (__is_same(Rule, LarsRule)) u = raw * grad_scale;
    const Mask take = guard.template check<Rule::kStates>(raw, s, le(abs(p), limit) & le(abs(u), limit));
    p2 = p2 + select(take, p * p, zero());
    u2 = u2 + select(take, u * u, zero());
  }
  sums[0] += static_cast<double>(reduce_add(p2));
  sums[1] += static_cast<double>(reduce_add(u2));
}

// Calls f(tile) for the tiles of one chunk, with values and states open.
template <class States, class Rule, class F>
void for_each_tile(const OptimizerJob& job, int64_t chunk, const F& f) {
  const int64_t begin = (chunk - job.first_chunk) * (kOptimizerChunk / kTile);
  const int64_t tiles = (job.n + kTile - 1) / kTile;
  const int64_t end = begin + kOptimizerChunk / kTile < tiles ? begin + kOptimizerChunk / kTile : tiles;
  Tile t;
  for (t.index = begin; t.index < end; t.index++) {
    const int64_t left = job.n - t.index * kTile;
    t.n = static_cast<int>(left < kTile ? left : kTile);
    open_values(job, t);
    States::template open<Rule>(job, t);
    f(t);
  }
}

template <class States>
void sum_chunk(const OptimizerJob& job, int64_t chunk, double* sums) {
  sums[0] = sums[1] = 0;
  visit_rule(job.rule, [&](auto rule) {
    using Rule = decltype(rule);
    const auto c = constants(job, 1.0f);
    for_each_tile<States, Rule>(job, chunk, [&](Tile& t) { sum_squares<Rule>(c, job.scalars, t, sums); });
  });
}

// Returns the number of elements that were left alone because something was not finite.
template <class States>
int64_t step_chunk(const OptimizerJob& job, int64_t chunk, float scale) {
  int64_t nonfinite = 0;
  visit_rule(job.rule, [&](auto rule) {
    using Rule = decltype(rule);
    constexpr bool kIsLars = __is_same(Rule, LarsRule);
    const auto c = constants(job, kIsLars ? scale : 1.0f);
    const float step = kIsLars ? job.scalars.step : job.scalars.step * scale;
    for_each_tile<States, Rule>(job, chunk, [&](Tile& t) {
      const Guard guard = update_tile<Rule>(c, job, step, t);
      nonfinite += guard.nonfinite - (kTile - t.n);
      if (guard.updated == 0) return;
      close_values(job, t);
      States::template close<Rule>(job, t);
    });
  });
  return nonfinite;
}

template <class States>
void optimizer_step(const OptimizerArgs& a) {
  if (a.partials != nullptr) {
    parallel_for(a.chunk_count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; chunk++) {
        const OptimizerJob& job = a.jobs[job_of_chunk(a, chunk)];
        if (needs_norms(job)) sum_chunk<States>(job, chunk, a.partials + 2 * chunk);
      }
    });
    for (int64_t j = 0; j < a.job_count; j++) {
      a.scales[j] = 1.0f;
      if (!needs_norms(a.jobs[j])) continue;
      const int64_t end = j + 1 < a.job_count ? a.jobs[j + 1].first_chunk : a.chunk_count;
      double p_squares = 0, u_squares = 0;
      for (int64_t chunk = a.jobs[j].first_chunk; chunk < end; chunk++) {
        p_squares += a.partials[2 * chunk];
        u_squares += a.partials[2 * chunk + 1];
      }
      a.scales[j] = scale_from_norms(a.jobs[j], __builtin_sqrt(p_squares), __builtin_sqrt(u_squares));
    }
  }
  int64_t nonfinite = 0;
  parallel_for(a.chunk_count, 1, [&](int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t chunk = begin; chunk < end; chunk++) {
      const int64_t j = job_of_chunk(a, chunk);
      count += step_chunk<States>(a.jobs[j], chunk, a.scales != nullptr ? a.scales[j] : 1.0f);
    }
    if (count != 0) __atomic_fetch_add(&nonfinite, count, __ATOMIC_RELAXED);
  });
  if (nonfinite != 0) *a.nonfinite += static_cast<double>(nonfinite);
}

}  // namespace
}  // namespace bnb::BNB_ISA
