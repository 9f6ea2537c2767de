// y = x * rstd * weight per row, and its gradients.
//
// Layout    rows are contiguous; weight and dweight are one row.
// Work      forward: a chunk of rows per item. Backward: at most 64 blocks of consecutive rows; each writes
//           its dx and one partial row of dweight, and the partial rows are added in a second pass.
// Numerics  float32 whatever the dtype. The blocks depend on the shape alone, so the bits do not depend
//           on the number of threads.
// Needs     nothing; any size, also zero.
#include "kernels/rms_norm.h"

#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kMaxBlocks = 64;
constexpr int64_t kChunkElements = 16384;

BNB_INLINE int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }

template <class T>
void forward(const RmsNormArgs& a) {
  const T* weight = static_cast<const T*>(a.weight);
  parallel_for(a.rows, at_least_one(kChunkElements / at_least_one(a.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const T* x = static_cast<const T*>(a.x) + r * a.cols;
      T* y = static_cast<T*>(a.y) + r * a.cols;
      F32 squares = zero();
      for_lanes(a.cols, [&](int64_t i, auto lanes) {
        const F32 v = lanes.load(x + i);
        squares = fma(v, v, squares);
      });
      const float rstd = 1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(a.cols) + a.eps);
      a.rstd[r] = rstd;
      const F32 scale = set1(rstd);
      for_lanes(a.cols,
                [&](int64_t i, auto lanes) { lanes.store(y + i, lanes.load(x + i) * scale * lanes.load(weight + i)); });
    }
  });
}

// dx of one row, and its addition to `partial` [cols] unless that is null.
template <class T>
BNB_INLINE void backward_row(const RmsNormBackwardArgs& a, int64_t r, float* partial) {
  const T* x = static_cast<const T*>(a.x) + r * a.cols;
  const T* dy = static_cast<const T*>(a.dy) + r * a.cols;
  const T* weight = static_cast<const T*>(a.weight);
  T* dx = static_cast<T*>(a.dx) + r * a.cols;
  const F32 rstd = set1(a.rstd[r]);
  F32 dot = zero();
  for_lanes(a.cols, [&](int64_t i, auto lanes) {
    dot = fma(lanes.load(dy + i) * lanes.load(weight + i), lanes.load(x + i) * rstd, dot);
  });
  const F32 mean = set1(reduce_add(dot) / static_cast<float>(a.cols));
  for_lanes(a.cols, [&](int64_t i, auto lanes) {
    const F32 d = lanes.load(dy + i), n = lanes.load(x + i) * rstd;
    lanes.store(dx + i, rstd * (d * lanes.load(weight + i) - n * mean));
    if (partial) lanes.store(partial + i, fma(d, n, lanes.load(partial + i)));
  });
}

template <class T>
void backward(const RmsNormBackwardArgs& a) {
  const int64_t fair = at_least_one((a.rows + kMaxBlocks - 1) / kMaxBlocks);
  const int64_t least = at_least_one(kChunkElements / at_least_one(a.cols));
  const int64_t block = fair < least ? least : fair;
  const int64_t blocks = (a.rows + block - 1) / block;
  const Scratch<float> partials(blocks * a.cols, a.dweight);
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      float* partial = partials ? partials + b * a.cols : nullptr;
      if (partial) for_lanes(a.cols, [&](int64_t i, auto lanes) { lanes.store(partial + i, zero()); });
      const int64_t last = (b + 1) * block < a.rows ? (b + 1) * block : a.rows;
      for (int64_t r = b * block; r < last; r++) backward_row<T>(a, r, partial);
    }
  });
  if (!partials) return;
  for_lanes(a.cols, [&](int64_t i, auto lanes) {
    F32 sum = zero();
    for (int64_t b = 0; b < blocks; b++) sum = sum + lanes.load(partials + b * a.cols + i);
    lanes.store(static_cast<T*>(a.dweight) + i, sum);
  });
}

}  // namespace

void rms_norm(const RmsNormArgs& a) {
  visit_float(a.dtype, [&](auto t) { forward<decltype(t)>(a); });
}

void rms_norm_backward(const RmsNormBackwardArgs& a) {
  visit_float(a.dtype, [&](auto t) { backward<decltype(t)>(a); });
}

}  // namespace bnb::BNB_ISA
