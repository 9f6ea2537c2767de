// Attention in blocks of queries and keys, so that scores never leave the cache. The queries of all heads that
// share a key head are rows of one block: r = position * group + head. Forward uses the online softmax of
// Milakov and Gimelshein; backward recomputes the scores as in FlashAttention (Dao et al. 2022).
#include "kernels/attention.h"

#include "cpu/gemm.h"
#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/position.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kKeys = 64;    // keys per block
constexpr int64_t kFewRows = 8;  // at most so many queries per key head read keys and values in place
constexpr float kLowest = -__builtin_inff();

BNB_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// One key head of one batch entry, and where its tensors begin.
template <class T>
struct Head {
  const AttentionArgs& a;
  int64_t batch, kv_head;
  int64_t group() const { return a.heads / a.kv_heads; }
  int64_t rows() const { return a.queries * group(); }
  // Row r of q, y and dy; element offset, and the index into lse.
  int64_t query_at(int64_t r) const {
    return (batch * a.queries + r / group()) * a.heads + kv_head * group() + r % group();
  }
  int64_t key_at(int64_t j) const { return ((batch * a.keys + j) * a.kv_heads + kv_head) * a.dim; }
  int64_t key_stride() const { return a.kv_heads * a.dim; }
  const T* k(int64_t j) const { return static_cast<const T*>(a.k) + key_at(j); }
  const T* v(int64_t j) const { return static_cast<const T*>(a.v) + key_at(j); }
  // How many keys row r sees.
  int64_t seen(int64_t r) const { return a.causal ? a.length - a.queries + r / group() + 1 : a.length; }
  // Rows [begin, end) of q, y or dy as float32, times a factor.
  void gather(const void* from, int64_t begin, int64_t end, float factor, float* dst) const {
    for (int64_t r = begin; r < end; r++) {
      const T* row = static_cast<const T*>(from) + query_at(r) * a.dim;
      float* to = dst + (r - begin) * a.dim;
      for (int64_t d = 0; d < a.dim; d += F32::width) {
        const int64_t n = smaller<int64_t>(F32::width, a.dim - d);
        store_n(to + d, load_n(row + d, n) * set1(factor), n);
      }
    }
  }
};

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

int64_t padded(int64_t n, int64_t pitch) { return ceil_div(n, pitch) * pitch; }
int64_t row_floats(int64_t rows, int64_t depth) { return (rows + kTileRows) * depth; }
int64_t col_floats(int64_t cols, int64_t depth) { return padded(cols, kTileCols) * depth; }

// Queries per block: what keeps the block's operands in L2, in whole positions.
int64_t block_rows(int64_t group, int64_t dim) {
  const int64_t rows = smaller<int64_t>(128, larger(16, 8192 / dim));
  return larger(1, rows / group) * group;
}

// Scores become exponentials of the distance to the row's maximum so far; sums and earlier output follow.
// `seen` of the row's n scores count, the rest become 0.
BNB_INLINE void fold_row(float* s, int64_t n, int64_t seen, float& top, float& sum, float* out, int64_t dim) {
  F32 best = set1(kLowest);
  for (int64_t j = 0; j < seen; j += F32::width) {
    const int64_t count = smaller<int64_t>(F32::width, seen - j);
    best = max(select(first_n(count), load_n(s + j, count), set1(kLowest)), best);
  }
  const float before = top, now = reduce_max(best);
  if (now > before) top = now;
  // With nothing but -inf so far, any finite shift keeps the exponentials 0.
  const F32 shift = set1(top == kLowest ? 0.0f : top);
  F32 total = zero();
  for (int64_t j = 0; j < seen; j += F32::width) {
    const int64_t count = smaller<int64_t>(F32::width, seen - j);
    const F32 e = select(first_n(count), exp(load_n(s + j, count) - shift), zero());
    total += e;
    store_n(s + j, e, smaller<int64_t>(F32::width, n - j));
  }
  for (int64_t j = padded(seen, F32::width); j < n; j++) s[j] = 0.0f;
  if (top != before && before != kLowest) {
    alignas(64) float lane[F32::width];
    store(lane, exp(set1(before - top)));
    sum *= lane[0];
    for (int64_t d = 0; d < dim; d += F32::width) {
      const int64_t count = smaller<int64_t>(F32::width, dim - d);
      store_n(out + d, load_n(out + d, count) * set1(lane[0]), count);
    }
  }
  sum += reduce_add(total);
}

// Divides by the sums, writes y and lse. A row that sees no key becomes 0.
template <class T>
void finish_rows(const Head<T>& h, int64_t begin, int64_t end, const float* out, const float* top, const float* sum) {
  for (int64_t r = begin; r < end; r++) {
    const int64_t i = r - begin, at = h.query_at(r);
    const F32 factor = set1(sum[i] == 0.0f ? 0.0f : 1.0f / sum[i]);
    T* y = static_cast<T*>(h.a.y) + at * h.a.dim;
    for (int64_t d = 0; d < h.a.dim; d += F32::width) {
      const int64_t n = smaller<int64_t>(F32::width, h.a.dim - d);
      store_n(y + d, load_n(out + i * h.a.dim + d, n) * factor, n);
    }
    if (h.a.lse) store_n(h.a.lse + at, set1(top[i]) + log(set1(sum[i])), 1);
  }
}

template <class T>
void forward_block(const Head<T>& h, int64_t begin, int64_t end) {
  const int64_t m = end - begin, dim = h.a.dim;
  Carver c = {scratch<float>(0, 2 * Carver::rounded(row_floats(m, dim)) + Carver::rounded(col_floats(kKeys, dim)) +
                                    Carver::rounded(col_floats(dim, kKeys)) + Carver::rounded(m * kKeys) +
                                    Carver::rounded(row_floats(m, kKeys)) + 2 * Carver::rounded(m))};
  float* out = c.take(row_floats(m, dim));
  float* q = c.take(row_floats(m, dim));
  float* k = c.take(col_floats(kKeys, dim));
  float* v = c.take(col_floats(dim, kKeys));
  float* s = c.take(m * kKeys);
  float* p = c.take(row_floats(m, kKeys));
  float* top = c.take(m);
  float* sum = c.take(m);
  float* stage = scratch<float>(3, 4 * larger(dim, kKeys));

  const RowPanels rows(m);
  h.gather(h.a.q, begin, end, h.a.scale, out);
  pack_all_transposed(out, dim, m, dim, rows.pitch, q, stage);
  for (int64_t i = 0; i < m * dim; i++) out[i] = 0.0f;
  for (int64_t i = 0; i < m; i++) top[i] = kLowest, sum[i] = 0.0f;

  const int64_t last = smaller(h.a.length, h.seen(end - 1));
  for (int64_t j0 = 0; j0 < last; j0 += kKeys) {
    const int64_t n = smaller(kKeys, last - j0);
    pack_all_transposed(h.k(j0), h.key_stride(), n, dim, ColPanels(n).pitch, k, stage);
    multiply_packed(m, n, dim, q, k, s, kKeys, false);
    for (int64_t i = 0; i < m; i++) {
      const int64_t seen = larger(0, smaller(n, h.seen(begin + i) - j0));
      fold_row(s + i * kKeys, n, seen, top[i], sum[i], out + i * dim, dim);
    }
    pack_all_transposed(s, kKeys, m, n, rows.pitch, p, stage);
    pack_all_straight(h.v(j0), h.key_stride(), dim, n, ColPanels(dim).pitch, v);
    multiply_packed(m, dim, n, p, v, out, dim, true);
  }
  finish_rows(h, begin, end, out, top, sum);
}

// Few queries, such as one token of a decoder: packing would cost more than the products. R rows at a time,
// those beyond the last query are copies of nothing (zero).
template <int R, class T>
void forward_few(const Head<T>& h) {
  const int64_t dim = h.a.dim, rows = h.rows();
  Carver c = {scratch<float>(0, 2 * Carver::rounded(R * dim) + R * kKeys)};
  float* q = c.take(R * dim);
  float* out = c.take(R * dim);
  float* s = c.take(R * kKeys);
  float top[R], sum[R];
  for (int64_t i = 0; i < R * dim; i++) q[i] = out[i] = 0.0f;
  for (int i = 0; i < R; i++) top[i] = kLowest, sum[i] = 0.0f;
  h.gather(h.a.q, 0, rows, h.a.scale, q);
  const int64_t last = smaller(h.a.length, h.seen(rows - 1)), whole = dim / F32::width * F32::width;
  for (int64_t j0 = 0; j0 < last; j0 += kKeys) {
    const int64_t n = smaller(kKeys, last - j0);
    for (int64_t j = 0; j < n; j++) {
      const T* key = h.k(j0 + j);
      F32 dot[R];
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) dot[i] = zero();
      for (int64_t d = 0; d < whole; d += F32::width) {
        const F32 x = load(key + d);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) dot[i] = fma(x, load(q + i * dim + d), dot[i]);
      }
      if (whole < dim) {
        const F32 x = load_n(key + whole, dim - whole);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) dot[i] = fma(x, load_n(q + i * dim + whole, dim - whole), dot[i]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) s[i * kKeys + j] = reduce_add(dot[i]);
    }
    for (int64_t i = 0; i < rows; i++) {
      const int64_t seen = larger(0, smaller(n, h.seen(i) - j0));
      fold_row(s + i * kKeys, n, seen, top[i], sum[i], out + i * dim, dim);
    }
    for (int64_t i = rows; i < R; i++)
      for (int64_t j = 0; j < n; j++) s[i * kKeys + j] = 0.0f;
    for (int64_t d = 0; d < dim; d += F32::width) {
      const int64_t count = smaller<int64_t>(F32::width, dim - d);
      F32 acc[R];
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) acc[i] = load_n(out + i * dim + d, count);
      const T* value = h.v(j0) + d;
      for (int64_t j = 0; j < n; j++, value += h.key_stride()) {
        const F32 x = count == F32::width ? load(value) : load_n(value, count);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) acc[i] = fma(set1(s[i * kKeys + j]), x, acc[i]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) store_n(out + i * dim + d, acc[i], count);
    }
  }
  finish_rows(h, 0, rows, out, top, sum);
}

// Gradients of one key head. Queries come in blocks, whose gradient is finished at once; those of keys and
// values collect in float32 over all blocks.
template <class T>
void backward_head(const Head<T>& h, const AttentionBackwardArgs& b) {
  const int64_t dim = h.a.dim, length = h.a.length;
  const int64_t most = smaller(block_rows(h.group(), dim), h.rows());
  const int64_t a_floats = Carver::rounded(larger(row_floats(most, dim), row_floats(kKeys, most)));
  const int64_t b_floats =
      Carver::rounded(larger(col_floats(dim, most), larger(col_floats(kKeys, dim), col_floats(dim, kKeys))));
  const int64_t x_floats = Carver::rounded(most * larger(dim, kKeys));
  const int64_t p_floats = Carver::rounded(larger(row_floats(most, kKeys), row_floats(kKeys, most)));
  Carver c = {scratch<float>(0, 2 * Carver::rounded(length * dim) + 2 * a_floats + 5 * b_floats + 5 * x_floats +
                                    p_floats + 2 * Carver::rounded(most))};
  float *dk = c.take(length * dim), *dv = c.take(length * dim);
  float *q_rows = c.take(a_floats), *dy_rows = c.take(a_floats);
  float *q_cols = c.take(b_floats), *dy_cols = c.take(b_floats);
  float *k_scores = c.take(b_floats), *v_scores = c.take(b_floats), *k_cols = c.take(b_floats);
  float *q = c.take(x_floats), *dy = c.take(x_floats), *dq = c.take(x_floats);
  float *p = c.take(x_floats), *ds = c.take(x_floats);
  float* packed = c.take(p_floats);
  float *lse = c.take(most), *delta = c.take(most);
  float* stage = scratch<float>(3, 4 * larger(dim, kKeys));
  for (int64_t i = 0; i < length * dim; i++) dk[i] = dv[i] = 0.0f;

  for (int64_t begin = 0; begin < h.rows(); begin += most) {
    const int64_t end = smaller(begin + most, h.rows()), m = end - begin;
    const RowPanels rows(m);
    const ColPanels depth(dim);
    // delta = y . dy, the part of the softmax gradient that is common to a row.
    h.gather(h.a.y, begin, end, 1.0f, dq);
    h.gather(b.dy, begin, end, 1.0f, dy);
    h.gather(h.a.q, begin, end, h.a.scale, q);
    for (int64_t i = 0; i < m; i++) {
      F32 dot = zero();
      for (int64_t d = 0; d < dim; d += F32::width) {
        const int64_t n = smaller<int64_t>(F32::width, dim - d);
        dot = fma(load_n(dq + i * dim + d, n), load_n(dy + i * dim + d, n), dot);
      }
      delta[i] = reduce_add(dot);
      lse[i] = h.a.lse[h.query_at(begin + i)];
    }
    for (int64_t i = 0; i < m * dim; i++) dq[i] = 0.0f;
    pack_all_transposed(q, dim, m, dim, rows.pitch, q_rows, stage);
    pack_all_transposed(dy, dim, m, dim, rows.pitch, dy_rows, stage);
    pack_all_straight(q, dim, dim, m, depth.pitch, q_cols);
    pack_all_straight(dy, dim, dim, m, depth.pitch, dy_cols);

    const int64_t last = smaller(length, h.seen(end - 1));
    for (int64_t j0 = 0; j0 < last; j0 += kKeys) {
      const int64_t n = smaller(kKeys, last - j0);
      const ColPanels keys(n);
      const RowPanels key_rows(n);
      pack_all_transposed(h.k(j0), h.key_stride(), n, dim, keys.pitch, k_scores, stage);
      pack_all_transposed(h.v(j0), h.key_stride(), n, dim, keys.pitch, v_scores, stage);
      multiply_packed(m, n, dim, q_rows, k_scores, p, kKeys, false);
      multiply_packed(m, n, dim, dy_rows, v_scores, ds, kKeys, false);
      for (int64_t i = 0; i < m; i++) {
        const int64_t seen = larger(0, smaller(n, h.seen(begin + i) - j0));
        float *to_p = p + i * kKeys, *to_ds = ds + i * kKeys;
        for (int64_t j = 0; j < n; j += F32::width) {
          const int64_t count = smaller<int64_t>(F32::width, n - j);
          const Mask sees = first_n(larger(0, smaller<int64_t>(F32::width, seen - j)));
          const F32 e = select(sees, exp(load_n(to_p + j, count) - set1(lse[i])), zero());
          store_n(to_p + j, e, count);
          store_n(to_ds + j, select(sees, e * (load_n(to_ds + j, count) - set1(delta[i])), zero()), count);
        }
      }
      pack_all_straight(p, kKeys, n, m, key_rows.pitch, packed);
      multiply_packed(n, dim, m, packed, dy_cols, dv + j0 * dim, dim, true);
      pack_all_straight(ds, kKeys, n, m, key_rows.pitch, packed);
      multiply_packed(n, dim, m, packed, q_cols, dk + j0 * dim, dim, true);
      pack_all_transposed(ds, kKeys, m, n, rows.pitch, packed, stage);
      pack_all_straight(h.k(j0), h.key_stride(), dim, n, depth.pitch, k_cols);
      multiply_packed(m, dim, n, packed, k_cols, dq, dim, true);
    }
    for (int64_t i = 0; i < m; i++) {
      T* to = static_cast<T*>(b.dq) + h.query_at(begin + i) * dim;
      for (int64_t d = 0; d < dim; d += F32::width) {
        const int64_t n = smaller<int64_t>(F32::width, dim - d);
        store_n(to + d, load_n(dq + i * dim + d, n) * set1(h.a.scale), n);
      }
    }
  }
  for (int64_t j = 0; j < h.a.keys; j++) {
    T *to_k = static_cast<T*>(b.dk) + h.key_at(j), *to_v = static_cast<T*>(b.dv) + h.key_at(j);
    for (int64_t d = 0; d < dim; d += F32::width) {
      const int64_t n = smaller<int64_t>(F32::width, dim - d);
      store_n(to_k + d, j < length ? load_n(dk + j * dim + d, n) : zero(), n);
      store_n(to_v + d, j < length ? load_n(dv + j * dim + d, n) : zero(), n);
    }
  }
}

}  // namespace

void attention(const AttentionArgs& args) {
  AttentionArgs a = args;
  if (!resolve(a.position, a.length)) return;
  const int64_t group = a.heads / a.kv_heads, rows = a.queries * group;
  const bool few = rows <= kFewRows;
  const int64_t per_block = few ? larger(1, rows) : block_rows(group, a.dim);
  const int64_t blocks = ceil_div(rows, per_block);
  const int64_t work = per_block * (a.length + 1) * a.dim;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.batch * a.kv_heads * blocks, 1 + 65536 / (work + 1), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; item++) {
        const int64_t head = item / blocks, first = item % blocks * per_block;
        const Head<T> h = {a, head / a.kv_heads, head % a.kv_heads};
        if (!few) {
          forward_block(h, first, smaller(first + per_block, rows));
        } else if (rows == 1) {
          forward_few<1>(h);
        } else if (rows == 2) {
          forward_few<2>(h);
        } else if (rows <= 4) {
          forward_few<4>(h);
        } else {
          forward_few<8>(h);
        }
      }
    });
  });
}

void attention_backward(const AttentionBackwardArgs& b) {
  visit_float(b.forward.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(b.forward.batch * b.forward.kv_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        backward_head(Head<T>{b.forward, i / b.forward.kv_heads, i % b.forward.kv_heads}, b);
    });
  });
}

}  // namespace bnb::BNB_ISA
