// dx = dy @ dequantize(w): the gradient of the 4-bit product for its input.
//
// Layout    Decoded rows are the vector operand: a strip of K as panels [n][columns k] in decoder order, dy
//           as rows [m][n]; sums stay in [m][k] and leave decoder order when they are stored.
// Work      An item is up to kItemRows rows of dy times a strip of kStrip columns of w. It walks N in steps of
//           128 rows, decoding each piece of w once for all its rows of dy.
// Numerics  Weights are fl(table * scale), products and sums float32, one rounding into dx.
#include "cpu/decode_4bit.h"
#include "cpu/panel_product.h"
#include "kernels/linear_4bit.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kDepth = 128;          // of N at once
constexpr int64_t kPitch = kDepth + 16;  // of the rows of dy
constexpr int64_t kPanel = kDepth + 1;   // steps of a panel: one more keeps the panels off one cache set
constexpr int64_t kStrip = 512;          // of K
constexpr int64_t kItemRows = 192;       // of M

struct Item {
  int64_t m0, m_count, k0, k_count, vectors;
  int64_t columns() const { return vectors * kWidth; }
};

// k_count weights from `first` on, times their scales, as row `s` of the panels.
void decode_into_panels(const Weight4Bit& w, const Decoder& decoder, int64_t first, int64_t row, const Item& item,
                        int64_t s, float* panels) {
  const int shift = granule_shift(w.blocksize);
  float buffer[kStrip / 32];
  const float* scales = granule_scales(w, first, item.k_count >> shift, shift, buffer);
  const uint8_t* packed = w.packed + first / 2;
  prefetch_weights(w, first + kRowsAhead * row, item.k_count);
  for (int64_t i = 0; i < item.k_count; i += kRun) {
    const bool half = kHasHalfRun && item.k_count - i < kRun;
#if BNB_ISA_LEVEL == 2
    const Decoder::Bytes bytes = half ? decoder.load_half_run(packed + i / 2) : decoder.load_run(packed + i / 2);
#else
    const Decoder::Bytes bytes = decoder.load_run(packed + i / 2);
#endif
    const F32 scale = run_scale(scales + (i >> shift), shift, half);
    F32 v[4];
    decoder.part<0>(bytes, v);
    for (int j = 0; j < 4; j++) store(panel_vector(panels, item.vectors, kPanel, i / kWidth + j, s), v[j] * scale);
    decoder.part<1>(bytes, v);
    for (int j = 0; j < 4; j++) store(panel_vector(panels, item.vectors, kPanel, i / kWidth + 4 + j, s), v[j] * scale);
  }
}

// The same for any shape, in natural order.
void decode_any_into_panels(const Weight4Bit& w, int64_t first, const Item& item, int64_t s, float* panels) {
  float row[kStrip];
  decode_any(w, first, item.k_count, row);
  for (int64_t i = 0; i < item.vectors; i++) {
    const int64_t left = item.k_count - i * kWidth;
    store(panel_vector(panels, item.vectors, kPanel, i, s), load_n(row + i * kWidth, left < kWidth ? left : kWidth));
  }
}

template <class T>
void copy_dy(const Linear4BitBackwardArgs& a, const Item& item, int64_t n0, int64_t count, float* rows) {
  for (int64_t m = 0; m < item.m_count; m++) {
    const T* dy = static_cast<const T*>(a.dy) + (item.m0 + m) * a.n + n0;
    float* row = rows + m * kPitch;
    for (int64_t i = 0; i < count; i += kWidth)
      store(row + i, count - i >= kWidth ? load(dy + i) : load_n(dy + i, count - i));
  }
}

template <class T, bool permuted>
void store_item(const Linear4BitBackwardArgs& a, const Item& item, const float* sums) {
  for (int64_t m = 0; m < item.m_count; m++) {
    T* dx = static_cast<T*>(a.dx) + (item.m0 + m) * a.k + item.k0;
    const float* row = sums + m * item.columns();
    for (int64_t i = 0; i < item.k_count; i += kRun) {
      const int64_t count = item.k_count - i < kRun ? item.k_count - i : kRun;
      for (int64_t p = 0; p < count; p++) dx[i + p] = from_float<T>(row[i + (permuted ? kRunPositions.of[p] : p)]);
    }
  }
}

template <class T, bool permuted>
void item_product(const Linear4BitBackwardArgs& a, const Decoder& decoder, const Item& item) {
  const Scratch<float> sums(item.m_count * item.columns());
  const Scratch<float> panels(item.columns() * kPanel);
  const Scratch<float> rows(item.m_count * kPitch);
  for (int64_t n0 = 0; n0 < a.n; n0 += kDepth) {
    const int64_t count = a.n - n0 < kDepth ? a.n - n0 : kDepth;
    copy_dy<T>(a, item, n0, count, rows);
    for (int64_t s = 0; s < count; s++) {
      const int64_t first = (n0 + s) * a.k + item.k0;
      if constexpr (permuted) {
        decode_into_panels(a.w, decoder, first, a.k, item, s, panels);
      } else {
        decode_any_into_panels(a.w, first, item, s, panels);
      }
    }
    panels_product<kPitch>(item.vectors, item.m_count, count, kPanel, panels, rows, sums, item.columns(), n0 > 0);
  }
  if (a.n == 0)
    for (int64_t i = 0; i < item.m_count * item.columns(); i++) sums[i] = 0;
  store_item<T, permuted>(a, item, sums);
}

BNB_INLINE int64_t pieces_of(int64_t n, int64_t limit) { return (n + limit - 1) / limit; }

}  // namespace

void linear_4bit_backward(const Linear4BitBackwardArgs& a) {
  if (a.m == 0 || a.k == 0) return;
  const int64_t passes = pieces_of(a.m, kItemRows);
  const int64_t pass_rows = pieces_of(a.m, passes);
  const int64_t strips = pieces_of(a.k, kStrip);
  parallel_for(passes * strips, 1, [&](int64_t begin, int64_t end) {
    const Decoder decoder(a.w.type);
    for (int64_t i = begin; i < end; i++) {
      Item item;
      item.m0 = i / strips * pass_rows;
      item.k0 = i % strips * kStrip;
      item.m_count = a.m - item.m0 < pass_rows ? a.m - item.m0 : pass_rows;
      item.k_count = a.k - item.k0 < kStrip ? a.k - item.k0 : kStrip;
      if (item.m_count <= 0) continue;
      visit_float(a.dtype, [&](auto t) {
        if (a.plan == Linear4BitPlan::packed) {
          item.vectors = pieces_of(item.k_count, kRun) * 8;
          item_product<decltype(t), true>(a, decoder, item);
        } else {
          item.vectors = pieces_of(item.k_count, kWidth);
          item_product<decltype(t), false>(a, decoder, item);
        }
      });
    }
  });
}

}  // namespace bnb::BNB_ISA
