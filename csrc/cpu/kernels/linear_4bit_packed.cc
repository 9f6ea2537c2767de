// y = x @ dequantize(w)^T + bias for many rows of x, and for any K.
//
// Layout    x is packed as panels [k][columns m], w as rows [n][k] of a scratch panel, both in decoder order
//           (natural order for plan `plain`); sums stay in [n][m] until they are transposed into y.
// Work      An item is up to kItemRows rows of w times up to kItemColumns rows of x. For each 256 of K it
//           packs x, then decodes 96 rows of w at a time and multiplies: the decoded weights stay in L2.
// Numerics  Weights are fl(table * scale), products and sums float32, one rounding into y.
#include "cpu/decode_4bit.h"
#include "cpu/panel_product.h"
#include "kernels/linear_4bit.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kDepth = 256;          // of K at once
constexpr int64_t kPitch = kDepth + 16;  // of decoded rows: keeps them off one cache set
constexpr int64_t kDecodedRows = 96;
constexpr int64_t kItemRows = 512;
constexpr int64_t kItemColumns = 192;

struct Item {
  int64_t m0, m_count, n0, n_count, vectors;
  int64_t columns() const { return vectors * kWidth; }
};

// x[m0 .., k0 .. k0 + count) as panels over `steps` steps.
template <class T, bool permuted>
void pack_x(const Linear4BitArgs& a, const Item& item, int64_t k0, int64_t count, int64_t steps, float* panels) {
  const T* x = static_cast<const T*>(a.x) + item.m0 * a.k + k0;
  for (int64_t i = 0; i < item.vectors; i++) {
    for (int64_t s = 0; s < steps; s += kWidth) {
      F32 block[kWidth];
      const int64_t have = count - s;
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; r++) {
        const int64_t m = i * kWidth + r;
        const T* p = x + m * a.k + s;
        block[r] = m >= item.m_count || have <= 0 ? zero() : have >= kWidth ? load(p) : load_n(p, have);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; r++) {
        const int64_t step = permuted ? s - s % kRun + kRunPositions.of[s % kRun + r] : s + r;
        store(panel_vector(panels, item.vectors, steps, i, step), block[r]);
      }
    }
  }
}

// `count` weights from `first` on, times their scales, in decoder order. Rows lie far apart for the hardware's
// prefetcher, so each asks for the row kRowsAhead further on.
void decode_row(const Weight4Bit& w, const Decoder& decoder, int64_t first, int64_t count, int64_t row, float* out) {
  prefetch_weights(w, first + kRowsAhead * row, count);
  const int shift = granule_shift(w.blocksize);
  float buffer[kDepth / 32];
  const float* scales = granule_scales(w, first, count >> shift, shift, buffer);
  const uint8_t* packed = w.packed + first / 2;
  for (int64_t i = 0; i < count; i += kRun) {
    const bool half = kHasHalfRun && count - i < kRun;
#if BNB_ISA_LEVEL == 2
    const Decoder::Bytes bytes = half ? decoder.load_half_run(packed + i / 2) : decoder.load_run(packed + i / 2);
#else
    const Decoder::Bytes bytes = decoder.load_run(packed + i / 2);
#endif
    const F32 scale = run_scale(scales + (i >> shift), shift, half);
    F32 v[4];
    decoder.part<0>(bytes, v);
    for (int j = 0; j < 4; j++) store(out + i + j * kWidth, v[j] * scale);
    decoder.part<1>(bytes, v);
    for (int j = 0; j < 4; j++) store(out + i + (4 + j) * kWidth, v[j] * scale);
  }
}

// Sums lie as [n][m]: square blocks of them turn on their way into y.
void store_item(const Linear4BitArgs& a, const Item& item, const float* sums) {
  visit_float(a.y_dtype, [&](auto t) {
    using T = decltype(t);
    visit_float(a.bias_dtype, [&](auto b) {
      const auto* bias = static_cast<const decltype(b)*>(a.bias);
      for (int64_t m = 0; m < item.m_count; m += kWidth) {
        const int64_t rows = smaller<int64_t>(kWidth, item.m_count - m);
        for (int64_t n = 0; n < item.n_count; n += kWidth) {
          const int64_t lanes = smaller<int64_t>(kWidth, item.n_count - n);
          F32 block[kWidth];
#pragma GCC unroll 16
          for (int i = 0; i < kWidth; i++)
            block[i] = load(sums + (n + smaller<int64_t>(i, lanes - 1)) * item.columns() + m);
          transpose(block);
          const F32 more = bias ? load_part(bias + item.n0 + n, lanes) : zero();
          for (int64_t r = 0; r < rows; r++) {
            const int64_t at = (item.m0 + m + r) * a.n + item.n0 + n;
            F32 y = block[r] + more;
            if (a.residual) y += load_part(static_cast<const T*>(a.residual) + at, lanes);
            store_part(static_cast<T*>(a.y) + at, y, lanes);
          }
        }
      }
    });
  });
}

template <class T, bool permuted>
void item_product(const Linear4BitArgs& a, const Decoder& decoder, const Item& item) {
  const Scratch<float> sums(item.n_count * item.columns());
  const Scratch<float> panels(item.columns() * kDepth);
  const Scratch<float> rows(kDecodedRows * kPitch);
  for (int64_t k0 = 0; k0 < a.k; k0 += kDepth) {
    const int64_t count = a.k - k0 < kDepth ? a.k - k0 : kDepth;
    const int64_t unit = permuted ? kRun : kWidth;
    const int64_t steps = (count + unit - 1) / unit * unit;
    pack_x<T, permuted>(a, item, k0, count, steps, panels);
    for (int64_t n = 0; n < item.n_count; n += kDecodedRows) {
      const int64_t n_count = item.n_count - n < kDecodedRows ? item.n_count - n : kDecodedRows;
      for (int64_t r = 0; r < n_count; r++) {
        const int64_t first = (item.n0 + n + r) * a.k + k0;
        float* row = rows + r * kPitch;
        if constexpr (permuted) {
          decode_row(a.w, decoder, first, count, a.k, row);
        } else {
          decode_any(a.w, first, count, row);
          for (int64_t i = count; i < steps; i++) row[i] = 0;
        }
      }
      panels_product<kPitch>(item.vectors, n_count, steps, steps, panels, rows, sums + n * item.columns(),
                             item.columns(), k0 > 0);
    }
  }
  if (a.k == 0)
    for (int64_t i = 0; i < item.n_count * item.columns(); i++) sums[i] = 0;
  store_item(a, item, sums);
}

BNB_INLINE int64_t pieces_of(int64_t n, int64_t limit) { return (n + limit - 1) / limit; }

}  // namespace

void linear_4bit_packed(const Linear4BitArgs& a);

void linear_4bit_packed(const Linear4BitArgs& a) {
  // Even pieces; rows of w go to at least one item a thread while an item keeps 96 rows.
  const int64_t passes = pieces_of(a.m, kItemColumns);
  // Whole panels of two vectors: a single one multiplies at half the speed.
  const int64_t unit = a.m > kWidth ? 2 * kWidth : kWidth;
  const int64_t pass_rows = pieces_of(pieces_of(a.m, passes), unit) * unit;
  int64_t pieces = pieces_of(a.n, kItemRows);
  while (pieces * passes < thread_count() && a.n / (pieces + 1) >= kDecodedRows) pieces++;
  if (pieces * passes > 1 && pieces * passes < 4 * thread_count() && pieces * passes % thread_count() != 0 &&
      a.n / (pieces + 1) >= kDecodedRows)
    pieces++;
  const int64_t piece = pieces_of(a.n, pieces);
  parallel_for(passes * pieces, 1, [&](int64_t begin, int64_t end) {
    const Decoder decoder(a.w.type);
    for (int64_t i = begin; i < end; i++) {
      Item item;
      item.m0 = i / pieces * pass_rows;
      item.n0 = i % pieces * piece;
      item.m_count = a.m - item.m0 < pass_rows ? a.m - item.m0 : pass_rows;
      item.n_count = a.n - item.n0 < piece ? a.n - item.n0 : piece;
      if (item.m_count <= 0 || item.n_count <= 0) continue;
      item.vectors = pieces_of(item.m_count, kWidth);
      visit_float(a.dtype, [&](auto t) {
        if (a.plan == Linear4BitPlan::packed) {
          item_product<decltype(t), true>(a, decoder, item);
        } else {
          item_product<decltype(t), false>(a, decoder, item);
        }
      });
    }
  });
}

}  // namespace bnb::BNB_ISA
