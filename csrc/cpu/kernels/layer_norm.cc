// y = (x - mean) * rstd * weight + bias per row, and its gradients.
//
// Layout    rows are contiguous; weight, bias and their gradients are one row.
// Work      forward: a chunk of rows per item. Backward: at most 64 blocks of consecutive rows; each writes
//           its dx and one partial row of dweight and dbias, and these are added in a second pass.
// Numerics  float32 whatever the dtype; the variance is that of the centred values (two passes), exact to
//           rounding also where the mean is large. Blocks depend on the shape alone.
// Needs     nothing; any size, also zero.
#include "kernels/layer_norm.h"

#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kMaxBlocks = 64;
constexpr int64_t kChunkElements = 16384;

BNB_INLINE int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }

template <class T>
BNB_INLINE F32 or_ones(const T* p, int64_t i, auto lanes) {
  return p ? lanes.load(p + i) : set1(1.0f);
}

template <class T>
void forward(const LayerNormArgs& a) {
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  const float cols = static_cast<float>(a.cols);
  parallel_for(a.rows, at_least_one(kChunkElements / at_least_one(a.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const T* x = static_cast<const T*>(a.x) + r * a.cols;
      T* y = static_cast<T*>(a.y) + r * a.cols;
      F32 sum = zero();
      for_lanes(a.cols, [&](int64_t i, auto lanes) { sum = sum + lanes.load(x + i); });
      const float mean = reduce_add(sum) / cols;
      const F32 centre = set1(mean);
      F32 squares = zero();
      for_lanes(a.cols, [&](int64_t i, auto lanes) {
        // Lanes beyond the row must not count as (0 - mean).
        const F32 d = lanes.keep(lanes.load(x + i) - centre);
        squares = fma(d, d, squares);
      });
      const float rstd = 1.0f / __builtin_sqrtf(reduce_add(squares) / cols + a.eps);
      a.mean[r] = mean;
      a.rstd[r] = rstd;
      const F32 scale = set1(rstd);
      for_lanes(a.cols, [&](int64_t i, auto lanes) {
        const F32 n = (lanes.load(x + i) - centre) * scale * or_ones(weight, i, lanes);
        lanes.store(y + i, bias ? n + lanes.load(bias + i) : n);
      });
    }
  });
}

// dx of one row, and its additions to the partial sums [cols] that are not null.
template <class T>
BNB_INLINE void backward_row(const LayerNormBackwardArgs& a, int64_t r, float* dweight, float* dbias) {
  const T* x = static_cast<const T*>(a.x) + r * a.cols;
  const T* dy = static_cast<const T*>(a.dy) + r * a.cols;
  const T* weight = static_cast<const T*>(a.weight);
  T* dx = static_cast<T*>(a.dx) + r * a.cols;
  const F32 rstd = set1(a.rstd[r]), centre = set1(a.mean[r]);
  F32 sum = zero(), dot = zero();
  for_lanes(a.cols, [&](int64_t i, auto lanes) {
    // Lanes beyond the row load dy = 0, so g and with it both sums stay unchanged there.
    const F32 g = lanes.load(dy + i) * or_ones(weight, i, lanes);
    sum = sum + g;
    dot = fma(g, (lanes.load(x + i) - centre) * rstd, dot);
  });
  const float cols = static_cast<float>(a.cols);
  const F32 mean_g = set1(reduce_add(sum) / cols), mean_gn = set1(reduce_add(dot) / cols);
  for_lanes(a.cols, [&](int64_t i, auto lanes) {
    const F32 d = lanes.load(dy + i), n = (lanes.load(x + i) - centre) * rstd;
    lanes.store(dx + i, rstd * (d * or_ones(weight, i, lanes) - mean_g - n * mean_gn));
    if (dweight) lanes.store(dweight + i, fma(d, n, lanes.load(dweight + i)));
    if (dbias) lanes.store(dbias + i, d + lanes.load(dbias + i));
  });
}

// out[cols] = the sum of `blocks` rows of partials, `stride` apart.
template <class T>
void add_partials(const float* partials, int64_t blocks, int64_t stride, int64_t cols, T* out) {
  for_lanes(cols, [&](int64_t i, auto lanes) {
    F32 sum = zero();
    for (int64_t b = 0; b < blocks; b++) sum = sum + lanes.load(partials + b * stride + i);
    lanes.store(out + i, sum);
  });
}

template <class T>
void backward(const LayerNormBackwardArgs& a) {
  const int64_t fair = at_least_one((a.rows + kMaxBlocks - 1) / kMaxBlocks);
  const int64_t least = at_least_one(kChunkElements / at_least_one(a.cols));
  const int64_t block = fair < least ? least : fair;
  const int64_t blocks = (a.rows + block - 1) / block;
  // One pair of rows [dweight | dbias] per block.
  const Scratch<float> partials(blocks * 2 * a.cols, a.dweight || a.dbias);
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      float* pair = partials ? partials + b * 2 * a.cols : nullptr;
      if (pair) for_lanes(2 * a.cols, [&](int64_t i, auto lanes) { lanes.store(pair + i, zero()); });
      const int64_t last = (b + 1) * block < a.rows ? (b + 1) * block : a.rows;
      for (int64_t r = b * block; r < last; r++) {
        backward_row<T>(a, r, a.dweight ? pair : nullptr, a.dbias ? pair + a.cols : nullptr);
      }
    }
  });
  if (a.dweight) add_partials(partials, blocks, 2 * a.cols, a.cols, static_cast<T*>(a.dweight));
  if (a.dbias) add_partials(partials + a.cols, blocks, 2 * a.cols, a.cols, static_cast<T*>(a.dbias));
}

}  // namespace

void layer_norm(const LayerNormArgs& a) {
  visit_float(a.dtype, [&](auto t) { forward<decltype(t)>(a); });
}

void layer_norm_backward(const LayerNormBackwardArgs& a) {
  visit_float(a.dtype, [&](auto t) { backward<decltype(t)>(a); });
}

}  // namespace bnb::BNB_ISA
