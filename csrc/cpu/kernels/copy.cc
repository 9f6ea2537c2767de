// Slabs, permutations, repeats and fills, by element size alone.
//
// Layout    copy_strided walks y in order. When the innermost axis of x has stride 1 it copies runs, with
//           stride 0 it fills runs; when another axis has stride 1 the two are moved in square tiles.
// Work      chunks of runs; of tiles for a transposition.
// Numerics  bits are copied.
// Needs     dims without zeros.
#include "kernels/copy.h"

#include "cpu/parallel.h"
#include "cpu/position.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kGrainBytes = 1 << 17;
constexpr int64_t kTile = 32;

BNB_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

template <class F>
BNB_INLINE void visit_size(int32_t element_size, const F& f) {
  switch (element_size) {
    case 1: return f(uint8_t{});
    case 2: return f(uint16_t{});
    case 4: return f(uint32_t{});
    default: return f(uint64_t{});
  }
}

// x's offset of the y element `index` when only the first `ndim` axes vary, those in `skip` left out.
BNB_INLINE int64_t source_offset(const CopyStridedArgs& a, int64_t index, int ndim, int skip) {
  int64_t offset = 0;
  for (int k = ndim - 1; k >= 0; k--) {
    if (k == skip) continue;
    offset += index % a.dims[k] * a.strides[k];
    index /= a.dims[k];
  }
  return offset;
}

template <class T>
void copy_runs(const CopyStridedArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const int last = a.ndim - 1;
  const int64_t run = a.dims[last], stride = a.strides[last];
  int64_t n = 1;
  for (int k = 0; k < a.ndim; k++) n *= a.dims[k];
  parallel_for(n, kGrainBytes / static_cast<int64_t>(sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t at = i % run, count = min_of(run - at, end - i);
      const T* from = x + source_offset(a, i / run, last, -1) + at * stride;
      if (stride == 1) {
        __builtin_memcpy(y + i, from, static_cast<size_t>(count) * sizeof(T));
      } else {
        for (int64_t j = 0; j < count; j++) y[i + j] = from[j * stride];
      }
      i += count;
    }
  });
}

// Axis `unit` has stride 1 in x, the last axis another: tiles of the two, so that both sides use whole
// cache lines.
template <class T>
void copy_transposed(const CopyStridedArgs& a, int unit) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const int last = a.ndim - 1;
  const int64_t rows = a.dims[unit], cols = a.dims[last], x_pitch = a.strides[last];
  int64_t y_pitch = 1, outer = 1;
  for (int k = unit + 1; k < a.ndim; k++) y_pitch *= a.dims[k];
  for (int k = 0; k < last; k++) outer *= k == unit ? 1 : a.dims[k];
  const int64_t row_tiles = (rows + kTile - 1) / kTile;
  const int64_t grain = kGrainBytes / (min_of(rows, kTile) * cols * static_cast<int64_t>(sizeof(T)) + 1) + 1;
  parallel_for(outer * row_tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t o = item / row_tiles, row = item % row_tiles * kTile;
      // o counts the axes other than unit and last; those behind unit repeat within y_pitch.
      const int64_t behind = y_pitch / cols;
      const T* from = x + source_offset(a, o, last, unit);
      T* to = y + (o / behind * rows) * y_pitch + o % behind * cols;
      const int64_t row_end = min_of(row + kTile, rows);
      for (int64_t col = 0; col < cols; col += kTile) {
        const int64_t col_end = min_of(col + kTile, cols);
        for (int64_t r = row; r < row_end; r++) {
          for (int64_t c = col; c < col_end; c++) to[r * y_pitch + c] = from[c * x_pitch + r];
        }
      }
    }
  });
}

}  // namespace

void copy_rows(const CopyRowsArgs& a) {
  int64_t start = 0;
  if (!resolve(a.position, start)) return;
  char* to = static_cast<char*>(a.to) + start * a.position_bytes;
  const int64_t piece = min_of(a.run_bytes, kGrainBytes);
  const int64_t pieces = (a.run_bytes + piece - 1) / piece;
  parallel_for(a.rows * pieces, kGrainBytes / piece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = i / pieces, at = i % pieces * piece;
      __builtin_memcpy(to + row * a.to_pitch + at, static_cast<const char*>(a.from) + row * a.from_pitch + at,
                       static_cast<size_t>(min_of(a.run_bytes - at, piece)));
    }
  });
}

void copy_strided(const CopyStridedArgs& a) {
  const int last = a.ndim - 1;
  int unit = -1;
  for (int k = 0; k < last; k++)
    if (a.strides[k] == 1) unit = k;
  visit_size(a.element_size, [&](auto t) {
    using T = decltype(t);
    if (unit >= 0 && a.strides[last] > 1) {
      copy_transposed<T>(a, unit);
    } else {
      copy_runs<T>(a);
    }
  });
}

void fill(const FillArgs& a) {
  visit_size(a.element_size, [&](auto t) {
    using T = decltype(t);
    const T v = static_cast<T>(a.bits);
    parallel_for(a.n, kGrainBytes / static_cast<int64_t>(sizeof(T)), [&](int64_t begin, int64_t end) {
      T* y = static_cast<T*>(a.y);
      for (int64_t i = begin; i < end; i++) y[i] = v;
    });
  });
}

}  // namespace bnb::BNB_ISA
