// What the kernels of attention do with a block of rows and a range of keys, so that scores never leave the cache:
// the online softmax of Milakov and Gimelshein. The queries of all heads that share a key head are rows of one block:
// r = position * group + head. A problem `P` says where its rows and keys lie:
//   Key                                 type of an element of keys and values
//   dim() rule()                        head size, ScoreRule
//   gather(begin, end, factor, to)      queries as float32 [end - begin, dim], times a factor
//   span(r)                             keys that row r sees
//   keys(j) values(j)                   the run of rows that begins at key j
//   finish(r, out, factor, lse)         the result of row r
#pragma once
#include "cpu/gemm.h"
#include "cpu/lanes.h"
#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/reduce_four.h"
#include "kernels/score_rule.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kKeys = 64;    // keys per step
constexpr int64_t kFewRows = 8;  // at most so many rows read keys and values in place
constexpr int64_t kAtOnce = 16;  // keys that are asked for at once, before as many are used
constexpr float kLowest = -__builtin_inff();

BNB_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
BNB_INLINE int64_t between(int64_t low, int64_t x, int64_t high) { return larger(low, smaller(x, high)); }

// `count` rows that lie `stride` apart, with the scales of int8 codes.
template <class T>
struct Run {
  const T* row;
  int64_t stride, count;
  const float* scales;
};

// Elements of keys and values, in the lanes of for_lanes.
template <class Lanes, class T>
BNB_INLINE F32 load_key(const Lanes& lanes, const T* p) {
  return lanes.load(p);
}
BNB_INLINE F32 load_key(const WholeVector&, const int8_t* p) { return to_f32(load_i8(p)); }
BNB_INLINE F32 load_key(const PartOfVector& part, const int8_t* p) { return to_f32(load_i8_n(p, part.n)); }

// Hands out pieces of one scratch buffer, each on its own cache lines.
struct Carver {
  float* at;
  float* take(int64_t n) {
    float* p = at;
    at += rounded(n);
    return p;
  }
  static int64_t rounded(int64_t n) { return (n + 15) / 16 * 16; }
};

BNB_INLINE int64_t padded(int64_t n, int64_t pitch) { return ceil_div(n, pitch) * pitch; }
BNB_INLINE int64_t row_floats(int64_t rows, int64_t depth) { return (rows + kTileRows) * depth; }
BNB_INLINE int64_t col_floats(int64_t cols, int64_t depth) { return padded(cols, kTileCols) * depth; }

// Rows per block: what keeps the block's operands in L2, in whole positions.
BNB_INLINE int64_t block_rows(int64_t group, int64_t dim) {
  const int64_t rows = smaller<int64_t>(128, larger(16, 8192 / dim));
  return larger(1, rows / group) * group;
}

// What a block of rows has got of some keys: sums relative to a maximum.
struct Partial {
  float* out;  // [rows, dim]
  float* top;  // [rows]
  float* sum;  // [rows]
  static int64_t floats(int64_t rows, int64_t dim) { return rows * dim + 2 * rows; }
  static Partial at(float* p, int64_t rows, int64_t dim) { return {p, p + rows * dim, p + rows * dim + rows}; }
  void clear(int64_t rows, int64_t dim) const {
    for (int64_t i = 0; i < rows * dim; i++) out[i] = 0.0f;
    for (int64_t i = 0; i < rows; i++) top[i] = kLowest, sum[i] = 0.0f;
  }
};

BNB_INLINE float exp_of(float x) {
  alignas(64) float lane[F32::width];
  store(lane, exp(set1(x)));
  return lane[0];
}
// With nothing but -inf so far, any finite shift keeps the exponentials 0.
BNB_INLINE float shift_of(float top) { return top == kLowest ? 0.0f : top; }

BNB_INLINE void multiply_row(float* x, int64_t n, float factor) {
  for_lanes(n, [&](int64_t i, auto lanes) { lanes.store(x + i, lanes.load(x + i) * set1(factor)); });
}

BNB_INLINE F32 capped(F32 s, float softcap) { return tanh(s / set1(softcap)) * set1(softcap); }
BNB_INLINE void cap_scores(float* s, int64_t n, float softcap) {
  for_lanes(n, [&](int64_t j, auto lanes) { lanes.store(s + j, capped(lanes.load(s + j), softcap)); });
}

BNB_INLINE Mask lanes_within(int64_t j, Span seen) {
  return first_n(between(0, seen.to - j, F32::width)) & ~first_n(between(0, seen.from - j, F32::width));
}

// Scores become exponentials of the distance to the row's maximum so far; sums and earlier output follow. Those of the
// n scores that are not seen become 0.
BNB_INLINE void fold_row(float* s, int64_t n, Span seen, float& top, float& sum, float* out, int64_t dim) {
  F32 best = set1(kLowest);
  for (int64_t j = 0; j < n; j += F32::width) {
    const int64_t count = smaller<int64_t>(F32::width, n - j);
    best = max(select(lanes_within(j, seen), load_part(s + j, count), set1(kLowest)), best);
  }
  const float before = top, now = reduce_max(best);
  if (now > before) top = now;
  const F32 shift = set1(shift_of(top));
  F32 total = zero();
  for (int64_t j = 0; j < n; j += F32::width) {
    const int64_t count = smaller<int64_t>(F32::width, n - j);
    const F32 e = select(lanes_within(j, seen), exp(load_part(s + j, count) - shift), zero());
    total += e;
    store_part(s + j, e, count);
  }
  if (top != before && before != kLowest) {
    const float factor = exp_of(before - top);
    sum *= factor;
    multiply_row(out, dim, factor);
  }
  sum += reduce_add(total);
}

BNB_INLINE Span within(Span seen, int64_t j0, int64_t n) {
  return {between(0, seen.from - j0, n), between(0, seen.to - j0, n)};
}

// Rows of a run as float32 [n, dim].
template <class T, class Rows>
BNB_INLINE void gather_keys(const Rows& run_at, int64_t j0, int64_t n, int64_t dim, float* to) {
  for (int64_t j = 0; j < n;) {
    const Run<T> run = run_at(j0 + j);
    const int64_t end = smaller(n, j + run.count);
    for (int64_t i = 0; j < end; i++, j++) {
      const F32 scale = set1(run.scales ? run.scales[i] : 1.0f);
      const T* from = run.row + i * run.stride;
      for_lanes(dim, [&](int64_t d, auto lanes) {
        const F32 x = load_key(lanes, from + d);
        lanes.store(to + j * dim + d, run.scales ? x * scale : x);
      });
    }
  }
}

// Rows [begin, end) over keys [from, to), as products of packed matrices.
template <class P>
void attend_block(const P& p, int64_t begin, int64_t end, Span keys, const Partial& partial) {
  const int64_t m = end - begin, dim = p.dim();
  const Scratch<float> memory(Carver::rounded(row_floats(m, dim)) + Carver::rounded(col_floats(kKeys, dim)) +
                              Carver::rounded(col_floats(dim, kKeys)) + Carver::rounded(m * kKeys) +
                              Carver::rounded(row_floats(m, kKeys)) + Carver::rounded(kKeys * dim));
  Carver c = {memory};
  float* q = c.take(row_floats(m, dim));
  float* k = c.take(col_floats(kKeys, dim));
  float* v = c.take(col_floats(dim, kKeys));
  float* s = c.take(m * kKeys);
  float* w = c.take(row_floats(m, kKeys));
  float* rows_of = c.take(kKeys * dim);
  const Scratch<float> stage(4 * larger(dim, kKeys));

  const RowPanels rows(m);
  p.gather(begin, end, p.rule().scale, partial.out);
  pack_all_transposed(partial.out, dim, m, dim, rows.pitch, q, stage);
  partial.clear(m, dim);
  for (int64_t j0 = keys.from; j0 < keys.to; j0 += kKeys) {
    const int64_t n = smaller(kKeys, keys.to - j0);
    gather_keys<typename P::Key>([&](int64_t j) { return p.keys(j); }, j0, n, dim, rows_of);
    pack_all_transposed(rows_of, dim, n, dim, ColPanels(n).pitch, k, stage);
    multiply_packed(m, n, dim, q, k, s, kKeys, false);
    for (int64_t i = 0; i < m; i++) {
      float* row = s + i * kKeys;
      if (p.rule().softcap > 0) cap_scores(row, n, p.rule().softcap);
      fold_row(row, n, within(p.span(begin + i), j0, n), partial.top[i], partial.sum[i], partial.out + i * dim, dim);
    }
    pack_all_transposed(s, kKeys, m, n, rows.pitch, w, stage);
    gather_keys<typename P::Key>([&](int64_t j) { return p.values(j); }, j0, n, dim, rows_of);
    pack_all_straight(rows_of, dim, dim, n, ColPanels(dim).pitch, v);
    multiply_packed(m, dim, n, w, v, partial.out, dim, true);
  }
}

// Asks for `count` rows that a later step reads.
template <class T>
BNB_INLINE void prefetch_rows(const T* row, int64_t stride, int64_t count, int64_t dim) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t d = 0; d < dim; d += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + i * stride + d);
}

// s[i * kKeys + k] = row i of q times the k-th of J keys, for R rows: as many sums as one reduction takes.
template <int R, int J, class T>
BNB_INLINE void scores_of(const float* q, const Run<T>& run, int64_t at, int64_t dim, float* s) {
  F32 dot[J][R];
#pragma GCC unroll 4
  for (int k = 0; k < J; k++)
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) dot[k][i] = zero();
  const T* key = run.row + at * run.stride;
  for_lanes(dim, [&](int64_t d, auto lanes) {
#pragma GCC unroll 4
    for (int k = 0; k < J; k++) {
      const F32 x = load_key(lanes, key + k * run.stride + d);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) dot[k][i] = fma(x, lanes.load(q + i * dim + d), dot[k][i]);
    }
  });
  const auto scale = [&](int k) { return run.scales ? run.scales[at + k] : 1.0f; };
  if constexpr (R * J % 4 == 0) {
    const F32* all = &dot[0][0];
#pragma GCC unroll 2
    for (int i = 0; i < R * J; i += 4) {
      alignas(16) float four[4];
      reduce_add_four(all[i], all[i + 1], all[i + 2], all[i + 3], four);
#pragma GCC unroll 4
      for (int n = 0; n < 4; n++) s[(i + n) % R * kKeys + (i + n) / R] = four[n] * scale((i + n) / R);
    }
  } else {
    for (int k = 0; k < J; k++)
      for (int i = 0; i < R; i++) s[i * kKeys + k] = reduce_add(dot[k][i]) * scale(k);
  }
}

// out[i] += the sum of `count` values times row i of s, for V vectors of R rows, held in registers.
template <int R, int V, class Lanes, class T>
BNB_INLINE void add_values(const Lanes& lanes, const float* s, const Run<T>& run, int64_t count, int64_t dim, int64_t d,
                           float* out) {
  F32 acc[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) acc[i][v] = lanes.load(out + i * dim + d + v * F32::width);
  for (int64_t at = 0; at < count; at++) {
    F32 x[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) x[v] = load_key(lanes, run.row + at * run.stride + d + v * F32::width);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      const F32 weight = set1(s[i * kKeys + at]);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) acc[i][v] = fma(weight, x[v], acc[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) lanes.store(out + i * dim + d + v * F32::width, acc[i][v]);
}

// Few rows, such as one token of a decoder: packing would cost more than the products. R rows at a time; those beyond
// the last are zeros. What the next step reads is asked for, since a step's keys and values are short pieces of memory.
template <int R, class P>
void attend_few(const P& p, int64_t begin, int64_t end, Span keys, const Partial& partial) {
  // Sums in registers: of J keys, and of V vectors of the output.
  constexpr int J = R >= 4 ? 1 : 4 / R;
  constexpr int V = (BNB_ISA_LEVEL == 2 ? 16 : 8) / R;
  const int64_t dim = p.dim(), rows = end - begin;
  const Scratch<float> memory(2 * Carver::rounded(R * dim) + R * kKeys);
  Carver c = {memory};
  float* q = c.take(R * dim);
  float* out = c.take(R * dim);
  float* s = c.take(R * kKeys);
  for (int64_t i = 0; i < R * dim; i++) q[i] = out[i] = 0.0f;
  for (int i = 0; i < rows; i++) partial.top[i] = kLowest, partial.sum[i] = 0.0f;
  p.gather(begin, end, p.rule().scale, q);
  for (int64_t j0 = keys.from; j0 < keys.to; j0 += kKeys) {
    const int64_t n = smaller(kKeys, keys.to - j0);
    // Calls f(run, first key, number of keys) for the runs of this step, and asks for the same place of the next one.
    const auto for_runs = [&](const auto& run_at, const auto& f) {
      for (int64_t j = 0; j < n;) {
        const auto run = run_at(j0 + j);
        const int64_t count = smaller(smaller(n - j, kAtOnce), run.count), next = j0 + j + kKeys;
        if (next < keys.to) {
          const auto later = run_at(next);
          prefetch_rows(later.row, later.stride, smaller(count, smaller(later.count, keys.to - next)), dim);
        }
        f(run, j, count);
        j += count;
      }
    };
    for_runs([&](int64_t j) { return p.keys(j); },
             [&](const auto& run, int64_t j, int64_t count) {
               int64_t at = 0;
               for (; at + J <= count; at += J) scores_of<R, J>(q, run, at, dim, s + j + at);
               for (; at < count; at++) scores_of<R, 1>(q, run, at, dim, s + j + at);
             });
    for (int64_t i = 0; i < rows; i++) {
      if (p.rule().softcap > 0) cap_scores(s + i * kKeys, n, p.rule().softcap);
      fold_row(s + i * kKeys, n, within(p.span(begin + i), j0, n), partial.top[i], partial.sum[i], out + i * dim, dim);
    }
    for (int64_t i = rows; i < R; i++)
      for (int64_t j = 0; j < n; j++) s[i * kKeys + j] = 0.0f;
    for_runs([&](int64_t j) { return p.values(j); },
             [&](const auto& run, int64_t j, int64_t count) {
               if (run.scales) {
                 for (int64_t i = 0; i < rows; i++)
                   for (int64_t at = 0; at < count; at++) s[i * kKeys + j + at] *= run.scales[at];
               }
               int64_t d = 0;
               for (; d + V * F32::width <= dim; d += V * F32::width)
                 add_values<R, V>(WholeVector{}, s + j, run, count, dim, d, out);
               for_lanes(dim - d,
                         [&](int64_t i, auto lanes) { add_values<R, 1>(lanes, s + j, run, count, dim, d + i, out); });
             });
  }
  for (int64_t i = 0; i < rows * dim; i++) partial.out[i] = out[i];
}

template <class P>
void attend(const P& p, int64_t begin, int64_t end, Span keys, const Partial& partial) {
  const int64_t rows = end - begin;
  if (rows > kFewRows) {
    attend_block(p, begin, end, keys, partial);
  } else if (rows == 1) {
    attend_few<1>(p, begin, end, keys, partial);
  } else if (rows == 2) {
    attend_few<2>(p, begin, end, keys, partial);
  } else if (rows <= 4) {
    attend_few<4>(p, begin, end, keys, partial);
  } else {
    attend_few<8>(p, begin, end, keys, partial);
  }
}

// The keys that any of the rows sees.
template <class P>
Span span_of_rows(const P& p, int64_t begin, int64_t end) {
  Span all = {0, 0};
  for (int64_t r = begin; r < end; r++) {
    const Span one = p.span(r);
    if (one.empty()) continue;
    all = all.empty() ? one : Span{smaller(all.from, one.from), larger(all.to, one.to)};
  }
  return all;
}

// Adds what row i has got of other keys.
BNB_INLINE void merge_row(const Partial& into, const Partial& from, int64_t i, int64_t dim) {
  const float before = into.top[i], top = before > from.top[i] ? before : from.top[i];
  const float mine = exp_of(before - shift_of(top)), other = exp_of(from.top[i] - shift_of(top));
  into.top[i] = top;
  into.sum[i] = into.sum[i] * mine + from.sum[i] * other;
  float* to = into.out + i * dim;
  const float* add = from.out + i * dim;
  for_lanes(dim, [&](int64_t d, auto lanes) {
    lanes.store(to + d, fma(lanes.load(add + d), set1(other), lanes.load(to + d) * set1(mine)));
  });
}

// Divides by the sums, in which a sink takes part, and hands the rows over. A row that sees no key becomes 0.
template <class P>
void finish_rows(const P& p, int64_t begin, int64_t end, const Partial& partial) {
  for (int64_t r = begin; r < end; r++) {
    const int64_t i = r - begin;
    float top = partial.top[i], sum = partial.sum[i], factor = 1.0f;
    if (p.rule().sinks) {
      const float sink = p.rule().sinks[p.head(r)], high = sink > top ? sink : top;
      factor = exp_of(top - shift_of(high));
      sum = sum * factor + exp_of(sink - shift_of(high));
      top = high;
    }
    alignas(64) float lse[F32::width];
    store(lse, set1(top) + log(set1(sum)));
    p.finish(r, partial.out + i * p.dim(), sum == 0.0f ? 0.0f : factor / sum, lse[0]);
  }
}

}  // namespace
}  // namespace bnb::BNB_ISA
