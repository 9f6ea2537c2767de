// Rows of several adapters: down to the rank of each, and up again onto what the base made of them.
//
// Layout    x [rows, inputs], A [adapters, rank, inputs], B [adapters, rank, outputs]: both are read along their rows.
// Work      down: an item is a row and 4 ranks, whose products with it share its loads. Up: a row and 1024 columns.
// Numerics  float32, rounded once into z. A row's sums go in an order of its own, whatever other rows there are.
// Needs     nothing; any size, also zero.
#include "kernels/lora_rows.h"

#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/work.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 16384, kColumns = 1024;

// h [rows, rank] = x A^T; rows without an adapter are left out.
template <class T>
void down(const LoraRowsArgs& a, float* h) {
  const int64_t groups = ceil_div(a.rank, 4);
  parallel_for(a.rows * groups, items_of(kChunkElements, 4 * a.inputs), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t t = item / groups, j = 4 * (item - t * groups), adapter = adapter_of(a, t);
      if (adapter < 0) continue;
      const T* x = static_cast<const T*>(a.x) + t * a.inputs;
      const T* w[4];
      // Behind the last rank stands the last one again.
      for (int64_t k = 0; k < 4; k++)
        w[k] = static_cast<const T*>(a.a) + (adapter * a.rank + (j + k < a.rank ? j + k : a.rank - 1)) * a.inputs;
      F32 s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
      for_lanes(a.inputs, [&](int64_t i, auto lanes) {
        const F32 v = lanes.load(x + i);
        s0 = fma(v, lanes.load(w[0] + i), s0);
        s1 = fma(v, lanes.load(w[1] + i), s1);
        s2 = fma(v, lanes.load(w[2] + i), s2);
        s3 = fma(v, lanes.load(w[3] + i), s3);
      });
      const float sums[4] = {reduce_add(s0), reduce_add(s1), reduce_add(s2), reduce_add(s3)};
      for (int64_t k = 0; k < 4 && j + k < a.rank; k++) h[t * a.rank + j + k] = sums[k];
    }
  });
}

// z = y + h B for n columns of a row; b is the first row of them.
template <class T>
BNB_INLINE void up_row(const LoraRowsArgs& a, const T* y, const float* h, const T* b, T* z, int64_t n) {
  constexpr int64_t W = F32::width;
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    F32 s0 = load(y + i), s1 = load(y + i + W), s2 = load(y + i + 2 * W), s3 = load(y + i + 3 * W);
    const T* row = b + i;
    for (int64_t j = 0; j < a.rank; j++, row += a.outputs) {
      const F32 v = set1(h[j]);
      s0 = fma(v, load(row), s0);
      s1 = fma(v, load(row + W), s1);
      s2 = fma(v, load(row + 2 * W), s2);
      s3 = fma(v, load(row + 3 * W), s3);
    }
    store(z + i, s0), store(z + i + W, s1), store(z + i + 2 * W, s2), store(z + i + 3 * W, s3);
  }
  for_lanes(n - i, [&](int64_t at, auto lanes) {
    F32 s = lanes.load(y + i + at);
    for (int64_t j = 0; j < a.rank; j++) s = fma(set1(h[j]), lanes.load(b + j * a.outputs + i + at), s);
    lanes.store(z + i + at, s);
  });
}

template <class T>
void up(const LoraRowsArgs& a, const float* h) {
  const int64_t pieces = ceil_div(a.outputs, kColumns);
  const int64_t columns = a.outputs < kColumns ? a.outputs : kColumns;
  parallel_for(a.rows * pieces, items_of(kChunkElements, (a.rank + 2) * columns), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t t = item / pieces, at = (item - t * pieces) * kColumns, adapter = adapter_of(a, t);
      const int64_t n = a.outputs - at < kColumns ? a.outputs - at : kColumns;
      const T* y = static_cast<const T*>(a.y) + t * a.outputs + at;
      T* z = static_cast<T*>(a.z) + t * a.outputs + at;
      if (adapter < 0) {
        for (int64_t i = 0; i < n; i++) z[i] = y[i];
      } else {
        up_row(a, y, h + t * a.rank, static_cast<const T*>(a.b) + adapter * a.rank * a.outputs + at, z, n);
      }
    }
  });
}

}  // namespace

void lora_rows(const LoraRowsArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const Scratch<float> h(a.rows * a.rank);
    down<T>(a, h);
    up<T>(a, h);
  });
}

}  // namespace bnb::BNB_ISA
