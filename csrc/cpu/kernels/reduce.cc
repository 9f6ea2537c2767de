// Sum, mean, maximum, minimum and argmax over the middle axis of [outer, n, inner], and their gradients.
//
// Layout    inner = 1 reduces rows lane by lane; otherwise rows of `inner` columns are combined element by
//           element.
// Work      rows are cut into pieces of kRowPiece elements, columns into kColumnTile columns of kColumnPiece
//           rows. A second pass combines the pieces of a row or column.
// Numerics  float32. Runs of four accumulators in a piece, then halving trees over lanes and pieces: the
//           order depends on the shape and the vector width, never on the number of threads.
// Needs     n > 0 for max, min and argmax.
#include "kernels/reduce.h"

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/work.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;
constexpr int64_t kRowPiece = 4096;
constexpr int64_t kColumnPiece = 256;
constexpr int64_t kColumnTile = 512;

BNB_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
BNB_INLINE int64_t items_per_chunk(int64_t elements) { return items_of(kGrain, elements); }

struct Sum {
  static constexpr float identity = 0.0f;
  static BNB_INLINE F32 of(F32 a, F32 b) { return a + b; }
  static BNB_INLINE float of(float a, float b) { return a + b; }
};
struct Max {
  static constexpr float identity = -__builtin_inff();
  static BNB_INLINE F32 of(F32 a, F32 b) { return select(eq(b, b), select(lt(a, b), b, a), b); }
  static BNB_INLINE float of(float a, float b) { return a < b || b != b ? b : a; }
};
struct Min {
  static constexpr float identity = __builtin_inff();
  static BNB_INLINE F32 of(F32 a, F32 b) { return select(eq(b, b), select(lt(b, a), b, a), b); }
  static BNB_INLINE float of(float a, float b) { return b < a || b != b ? b : a; }
};

// Combines p[0], p[pitch], ..., p[(count - 1) * pitch] into p[0], for `width` neighbouring columns.
template <class Op>
BNB_INLINE void combine_tree(float* p, int64_t count, int64_t pitch, int64_t width) {
  while (count > 1) {
    const int64_t half = (count + 1) / 2;
    for (int64_t i = 0; i < count - half; i++) {
      float *to = p + i * pitch, *from = p + (i + half) * pitch;
      for (int64_t j = 0; j < width; j++) to[j] = Op::of(to[j], from[j]);
    }
    count = half;
  }
}

template <class Op, class T>
float reduce_piece(const T* x, int64_t n) {
  constexpr int64_t w = F32::width, kRun = 16 * 4 * w;
  const F32 identity = set1(Op::identity);
  F32 total = identity;
  int64_t i = 0;
  // Runs of 16 steps, so that no sum in a long row adds small terms to a large one for long.
  while (i + 4 * w <= n) {
    F32 acc[4] = {identity, identity, identity, identity};
    for (const int64_t end = min_of(n, i + kRun); i + 4 * w <= end; i += 4 * w) {
      for (int k = 0; k < 4; k++) acc[k] = Op::of(acc[k], load(x + i + k * w));
    }
    total = Op::of(total, Op::of(Op::of(acc[0], acc[1]), Op::of(acc[2], acc[3])));
  }
  for (; i + w <= n; i += w) total = Op::of(total, load(x + i));
  float lane[w];
  store(lane, total);
  for (int64_t k = 0; i < n; i++, k++) lane[k] = Op::of(lane[k], to_float(x[i]));
  combine_tree<Op>(lane, w, 1, 1);
  return lane[0];
}

// out[j] = Op over the rows of x[rows, cols], one row every `pitch` elements.
template <class Op, class T>
void reduce_tile(const T* x, int64_t rows, int64_t pitch, int64_t cols, float* out) {
  constexpr int64_t w = F32::width;
  for (int64_t r = 0; r < rows; r += 4) {
    const int64_t have = min_of(rows - r, 4);
    const T* row = x + r * pitch;
    for (int64_t j = 0; j < cols; j += w) {
      const int64_t n = min_of(cols - j, w);
      F32 v = load_part(row + j, n);
      if (have == 4) {
        v = Op::of(Op::of(v, load_part(row + pitch + j, n)),
                   Op::of(load_part(row + 2 * pitch + j, n), load_part(row + 3 * pitch + j, n)));
      } else {
        for (int64_t k = 1; k < have; k++) v = Op::of(v, load_part(row + k * pitch + j, n));
      }
      store(out + j, r ? Op::of(load(out + j), v) : v);  // out is a whole tile: writing past cols is fine
    }
  }
}

// Where results go: y in its dtype, divided by n for a mean.
BNB_INLINE void put(const ReduceArgs& a, int64_t i, float v) {
  if (a.op == ReduceOp::mean) v = v / static_cast<float>(a.n);
  if (a.y_dtype == DType::float32) {
    static_cast<float*>(a.y)[i] = v;
  } else if (a.y_dtype == DType::float16) {
    static_cast<f16*>(a.y)[i] = from_float<f16>(v);
  } else {
    static_cast<bf16*>(a.y)[i] = from_float<bf16>(v);
  }
}

template <class Op, class T>
void reduce_rows(const ReduceArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  const int64_t n = a.n, pieces = ceil_div(n, kRowPiece);
  if (pieces <= 1) {
    return parallel_for(a.outer, items_per_chunk(n + 1), [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; o++) put(a, o, reduce_piece<Op>(x + o * n, n));
    });
  }
  const Scratch<float> partial(a.outer * pieces);
  parallel_for(a.outer * pieces, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t o = i / pieces, at = i % pieces * kRowPiece;
      partial[i] = reduce_piece<Op>(x + o * n + at, min_of(n - at, kRowPiece));
    }
  });
  parallel_for(a.outer, items_per_chunk(pieces), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++) {
      combine_tree<Op>(partial + o * pieces, pieces, 1, 1);
      put(a, o, partial[o * pieces]);
    }
  });
}

template <class Op, class T>
void reduce_columns(const ReduceArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  const int64_t n = a.n, inner = a.inner;
  const int64_t pieces = n > kColumnPiece ? ceil_div(n, kColumnPiece) : 1;
  const int64_t tiles = ceil_div(inner, kColumnTile);
  const Scratch<float> partial(a.outer * pieces * inner, pieces > 1);
  const int64_t work = min_of(n + 1, kColumnPiece) * min_of(inner, kColumnTile);
  parallel_for(a.outer * pieces * tiles, items_per_chunk(work), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t tile = item % tiles, piece = item / tiles % pieces, o = item / tiles / pieces;
      const int64_t row = piece * kColumnPiece, col = tile * kColumnTile;
      const int64_t rows = pieces > 1 ? min_of(n - row, kColumnPiece) : n;
      const int64_t cols = min_of(inner - col, kColumnTile);
      float sums[kColumnTile] = {};  // zeros stand for n = 0
      reduce_tile<Op>(x + (o * n + row) * inner + col, rows, inner, cols, sums);
      if (partial) {
        __builtin_memcpy(partial + (o * pieces + piece) * inner + col, sums, cols * sizeof(float));
      } else {
        for (int64_t j = 0; j < cols; j++) put(a, o * inner + col + j, sums[j]);
      }
    }
  });
  if (!partial) return;
  parallel_for(a.outer * tiles, items_per_chunk(pieces * min_of(inner, kColumnTile)), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t o = item / tiles, col = item % tiles * kColumnTile;
      const int64_t cols = min_of(inner - col, kColumnTile);
      float* sums = partial + o * pieces * inner + col;
      combine_tree<Op>(sums, pieces, inner, cols);
      for (int64_t j = 0; j < cols; j++) put(a, o * inner + col + j, sums[j]);
    }
  });
}

template <class Op>
void reduce_with(const ReduceArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    if (a.inner == 1) {
      reduce_rows<Op, T>(a);
    } else {
      reduce_columns<Op, T>(a);
    }
  });
}

template <class T>
void argmax_rows(const ArgmaxArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  parallel_for(a.outer, items_per_chunk(a.n), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++) {
      const T* row = x + o * a.n;
      const float best = reduce_piece<Max>(row, a.n);
      int64_t i = 0;
      while (best == best ? to_float(row[i]) != best : to_float(row[i]) == to_float(row[i])) i++;
      a.y[o] = static_cast<int32_t>(i);
    }
  });
}

template <class T>
void argmax_columns(const ArgmaxArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  const int64_t tiles = ceil_div(a.inner, kColumnTile);
  parallel_for(a.outer * tiles, items_per_chunk(a.n * min_of(a.inner, kColumnTile)), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t o = item / tiles, col = item % tiles * kColumnTile;
      const int64_t cols = min_of(a.inner - col, kColumnTile);
      float best[kColumnTile];
      int32_t* y = a.y + o * a.inner + col;
      for (int64_t i = 0; i < a.n; i++) {
        const T* row = x + (o * a.n + i) * a.inner + col;
        for (int64_t j = 0; j < cols; j++) {
          const float v = to_float(row[j]);
          const bool wins = i == 0 || v > best[j] || (v != v && best[j] == best[j]);
          best[j] = wins ? v : best[j];
          y[j] = wins ? static_cast<int32_t>(i) : y[j];
        }
      }
    }
  });
}

// dx = scale * dy, repeated along n.
template <class T>
void spread(const ReduceBackwardArgs& a, float scale) {
  const T* dy = static_cast<const T*>(a.dy);
  T* dx = static_cast<T*>(a.dx);
  const int64_t run = a.inner == 1 ? a.n : a.inner;
  parallel_for(a.outer * a.n * a.inner, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t at = i % run, count = min_of(run - at, end - i);
      if (a.inner == 1) {
        const T v = from_float<T>(to_float(dy[i / run]) * scale);
        for (int64_t j = 0; j < count; j++) dx[i + j] = v;
      } else {
        const T* from = dy + i / run / a.n * a.inner + at;
        for (int64_t j = 0; j < count; j += F32::width) {
          const int64_t n = min_of(count - j, F32::width);
          store_part(dx + i + j, load_part(from + j, n) * set1(scale), n);
        }
      }
      i += count;
    }
  });
}

// dx = dy / (number of elements equal to y) where x == y, else 0.
template <class T>
void spread_to_equal(const ReduceBackwardArgs& a) {
  const T *dy = static_cast<const T*>(a.dy), *x = static_cast<const T*>(a.x), *y = static_cast<const T*>(a.y);
  T* dx = static_cast<T*>(a.dx);
  const int64_t tiles = ceil_div(a.inner, kColumnTile);
  parallel_for(a.outer * tiles, items_per_chunk(a.n * min_of(a.inner, kColumnTile)), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t o = item / tiles, col = item % tiles * kColumnTile;
      const int64_t cols = min_of(a.inner - col, kColumnTile), at = o * a.inner + col;
      float extreme[kColumnTile], share[kColumnTile];
      for (int64_t j = 0; j < cols; j++) {
        extreme[j] = to_float(y[at + j]);
        share[j] = 0;
      }
      const auto each_row = [&](const auto& f) {
        for (int64_t i = 0; i < a.n; i++) f((o * a.n + i) * a.inner + col);
      };
      each_row([&](int64_t row) {
        for (int64_t j = 0; j < cols; j++) share[j] += to_float(x[row + j]) == extreme[j] ? 1.0f : 0.0f;
      });
      for (int64_t j = 0; j < cols; j++) share[j] = to_float(dy[at + j]) / share[j];
      each_row([&](int64_t row) {
        for (int64_t j = 0; j < cols; j++) {
          dx[row + j] = from_float<T>(to_float(x[row + j]) == extreme[j] ? share[j] : 0.0f);
        }
      });
    }
  });
}

}  // namespace

void reduce(const ReduceArgs& a) {
  switch (a.op) {
    case ReduceOp::sum:
    case ReduceOp::mean: return reduce_with<Sum>(a);
    case ReduceOp::max: return reduce_with<Max>(a);
    case ReduceOp::min: return reduce_with<Min>(a);
  }
}

void argmax(const ArgmaxArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    if (a.inner == 1) {
      argmax_rows<decltype(t)>(a);
    } else {
      argmax_columns<decltype(t)>(a);
    }
  });
}

void reduce_backward(const ReduceBackwardArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    if (a.op == ReduceOp::sum || a.op == ReduceOp::mean) {
      spread<T>(a, a.op == ReduceOp::mean ? 1.0f / static_cast<float>(a.n) : 1.0f);
    } else {
      spread_to_equal<T>(a);
    }
  });
}

}  // namespace bnb::BNB_ISA
