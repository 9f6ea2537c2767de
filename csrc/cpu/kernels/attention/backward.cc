// Gradients of attention, which recompute the scores as in FlashAttention (Dao et al. 2022).
//
// Layout    as the forward pass.
// Work      an item is one key head of a batch entry: it goes through its blocks of queries, and the keys of each.
// Numerics  float32, rounded once; every sum runs in a fixed order. That of a sink's gradient is float64.
// Needs     nothing.
#include "cpu/attention_head.h"

namespace bnb::BNB_ISA {
namespace {

// y . dy, the part of the gradient of the softmax that is common to a row.
BNB_INLINE float row_delta(const float* y, const float* dy, int64_t dim) {
  F32 dot = zero();
  for_lanes(dim, [&](int64_t d, auto lanes) { dot = fma(lanes.load(y + d), lanes.load(dy + d), dot); });
  return reduce_add(dot);
}

// Gradients of one key head. Queries come in blocks, whose gradient is finished at once; those of keys and
// values collect in float32 over all blocks.
template <class T>
void backward_head(const Head<T>& h, const AttentionBackwardArgs& b) {
  const int64_t dim = h.a.dim, keys = h.a.keys;
  const float softcap = h.a.rule.softcap;
  const int64_t most = smaller(block_rows(h.group(), dim), h.rows());
  const int64_t a_floats = Carver::rounded(larger(row_floats(most, dim), row_floats(kKeys, most)));
  const int64_t b_floats =
      Carver::rounded(larger(col_floats(dim, most), larger(col_floats(kKeys, dim), col_floats(dim, kKeys))));
  const int64_t x_floats = Carver::rounded(most * larger(dim, kKeys));
  const int64_t p_floats = Carver::rounded(larger(row_floats(most, kKeys), row_floats(kKeys, most)));
  const Scratch<float> memory(2 * Carver::rounded(keys * dim) + 2 * a_floats + 5 * b_floats + 5 * x_floats + p_floats +
                              2 * Carver::rounded(most));
  Carver c = {memory};
  float *dk = c.take(keys * dim), *dv = c.take(keys * dim);
  float *q_rows = c.take(a_floats), *dy_rows = c.take(a_floats);
  float *q_cols = c.take(b_floats), *dy_cols = c.take(b_floats);
  float *k_scores = c.take(b_floats), *v_scores = c.take(b_floats), *k_cols = c.take(b_floats);
  float *q = c.take(x_floats), *dy = c.take(x_floats), *dq = c.take(x_floats);
  float *p = c.take(x_floats), *ds = c.take(x_floats);
  float* packed = c.take(p_floats);
  float *lse = c.take(most), *delta = c.take(most);
  const Scratch<float> stage(4 * larger(dim, kKeys));
  for (int64_t i = 0; i < keys * dim; i++) dk[i] = dv[i] = 0.0f;

  for (int64_t begin = 0; begin < h.rows(); begin += most) {
    const int64_t end = smaller(begin + most, h.rows()), m = end - begin;
    const RowPanels rows(m);
    const ColPanels depth(dim);
    // delta = y . dy, the part of the softmax gradient that is common to a row.
    h.gather(h.a.y, begin, end, 1.0f, dq);
    h.gather(b.dy, begin, end, 1.0f, dy);
    h.gather(h.a.q, begin, end, h.a.rule.scale, q);
    for (int64_t i = 0; i < m; i++) {
      delta[i] = row_delta(dq + i * dim, dy + i * dim, dim);
      lse[i] = h.a.lse[h.query_at(begin + i)];
    }
    for (int64_t i = 0; i < m * dim; i++) dq[i] = 0.0f;
    pack_all_transposed(q, dim, m, dim, rows.pitch, q_rows, stage);
    pack_all_transposed(dy, dim, m, dim, rows.pitch, dy_rows, stage);
    pack_all_straight(q, dim, dim, m, depth.pitch, q_cols);
    pack_all_straight(dy, dim, dim, m, depth.pitch, dy_cols);

    const Span all = span_of_rows(h, begin, end);
    for (int64_t j0 = all.from; j0 < all.to; j0 += kKeys) {
      const int64_t n = smaller(kKeys, all.to - j0);
      const ColPanels keys(n);
      const Run<T> k_rows = h.keys(j0), v_rows = h.values(j0);
      const RowPanels key_rows(n);
      pack_all_transposed(k_rows.row, k_rows.stride, n, dim, keys.pitch, k_scores, stage);
      pack_all_transposed(v_rows.row, v_rows.stride, n, dim, keys.pitch, v_scores, stage);
      multiply_packed(m, n, dim, q_rows, k_scores, p, kKeys, false);
      multiply_packed(m, n, dim, dy_rows, v_scores, ds, kKeys, false);
      for (int64_t i = 0; i < m; i++) {
        const Span seen = within(h.span(begin + i), j0, n);
        float *to_p = p + i * kKeys, *to_ds = ds + i * kKeys;
        for (int64_t j = 0; j < n; j += F32::width) {
          const int64_t count = smaller<int64_t>(F32::width, n - j);
          const Mask sees = lanes_within(j, seen);
          F32 s = load_part(to_p + j, count), slope = set1(1.0f);
          if (softcap > 0) {
            s = capped(s, softcap);
            const F32 bent = s / set1(softcap);
            slope = fnma(bent, bent, slope);
          }
          const F32 e = select(sees, exp(s - set1(lse[i])), zero());
          store_part(to_p + j, e, count);
          const F32 change = e * (load_part(to_ds + j, count) - set1(delta[i])) * slope;
          store_part(to_ds + j, select(sees, change, zero()), count);
        }
      }
      pack_all_straight(p, kKeys, n, m, key_rows.pitch, packed);
      multiply_packed(n, dim, m, packed, dy_cols, dv + j0 * dim, dim, true);
      pack_all_straight(ds, kKeys, n, m, key_rows.pitch, packed);
      multiply_packed(n, dim, m, packed, q_cols, dk + j0 * dim, dim, true);
      pack_all_transposed(ds, kKeys, m, n, rows.pitch, packed, stage);
      pack_all_straight(k_rows.row, k_rows.stride, dim, n, depth.pitch, k_cols);
      multiply_packed(m, dim, n, packed, k_cols, dq, dim, true);
    }
    for (int64_t i = 0; i < m; i++) {
      T* to = static_cast<T*>(b.dq) + h.query_at(begin + i) * dim;
      const float* from = dq + i * dim;
      for_lanes(dim, [&](int64_t d, auto lanes) { lanes.store(to + d, lanes.load(from + d) * set1(h.a.rule.scale)); });
    }
  }
  for (int64_t j = 0; j < keys; j++) {
    T *to_k = static_cast<T*>(b.dk) + h.key_at(j), *to_v = static_cast<T*>(b.dv) + h.key_at(j);
    for_lanes(dim, [&](int64_t d, auto lanes) {
      lanes.store(to_k + d, lanes.load(dk + j * dim + d));
      lanes.store(to_v + d, lanes.load(dv + j * dim + d));
    });
  }
}

// A sink has the weight exp(sink - lse) and no value: dsink = -sum of weight * delta over the rows of its head.
template <class T>
void sink_gradient(const AttentionBackwardArgs& b, int64_t head) {
  const AttentionArgs& a = b.forward;
  const auto *y = static_cast<const T*>(a.y), *dy = static_cast<const T*>(b.dy);
  const float sink = a.rule.sinks[head];
  double sum = 0;
  for (int64_t at = head; at < a.batch * a.queries * a.heads; at += a.heads) {
    F32 dot = zero();
    for_lanes(a.dim, [&](int64_t d, auto lanes) {
      dot = fma(lanes.load(y + at * a.dim + d), lanes.load(dy + at * a.dim + d), dot);
    });
    sum -= static_cast<double>(exp_of(sink - a.lse[at])) * static_cast<double>(reduce_add(dot));
  }
  b.dsinks[head] = static_cast<float>(sum);
}

}  // namespace

void attention_backward(const AttentionBackwardArgs& b) {
  const AttentionArgs& a = b.forward;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.batch * a.kv_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) backward_head(Head<T>{a, i / a.kv_heads, i % a.kv_heads}, b);
    });
    if (!b.dsinks) return;
    parallel_for(a.heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; head++) sink_gradient<T>(b, head);
    });
  });
}

}  // namespace bnb::BNB_ISA
