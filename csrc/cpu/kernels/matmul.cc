// Matrix product: operands are packed into panels once per chunk (widening 16-bit floats on the way), tiles of
// c are handed to the threads. Products of a few rows stream b instead.
#include "kernels/matmul.h"

#include "cpu/gemm.h"
#include "cpu/parallel.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kDepth = 256;       // steps of the sum per packed block: a b panel fills about half of L1
constexpr int64_t kChunkRows = 1024;  // rows, columns and steps packed at a time: at most 12 MB together
constexpr int64_t kChunkCols = 2048;
constexpr int64_t kChunkDepth = 1024;
constexpr int64_t kBlockPanels = 16;    // row panels of one work item: its part of a stays in L2
constexpr int64_t kBlockCols = 128;     // columns of one work item
constexpr int64_t kSerialWork = 32768;  // multiply-adds below which threads do not pay

// On the streaming path: rows of a that share each load of b, and rows of b that share each load of a. Sums and
// operands fill 32 registers, or 16.
#if BNB_ISA_LEVEL >= 2 || defined(__aarch64__)
constexpr int kStreamedRows = 6;
template <int M>
constexpr int kDots = 4;
#else
constexpr int kStreamedRows = 4;
template <int M>
constexpr int kDots = M <= 2 ? 4 : 2;
#endif

// One operand of one matrix of the batch. "lane" is the index that stays (a row of a, a column of b).
struct Operand {
  const void* data;
  DType dtype;
  int64_t ld;
  bool contiguous_sum;  // whether the sum runs along the contiguous axis
  const char* at(int64_t lane, int64_t k) const {
    const int64_t index = contiguous_sum ? lane * ld + k : k * ld + lane;
    return static_cast<const char*>(data) + index * static_cast<int64_t>(size_of(dtype));
  }
};

struct Product {
  Operand a, b;
  const void* bias;
  char* c;
  DType dtype_c;
  int64_t m, n, k;
  bool accumulate, parallel;
  bool turned = false;  // c is the transposed product, [n, m]
};

template <class F>
BNB_INLINE void for_range(bool parallel, int64_t n, int64_t grain, const F& f) {
  if (parallel) {
    parallel_for(n, grain, f);
  } else if (n > 0) {
    f(int64_t{0}, n);
  }
}

void pack_panel(const Operand& x, int64_t lane, int64_t count, int64_t k, int64_t depth, int64_t pitch, float* dst) {
  visit_float(x.dtype, [&](auto t) {
    using T = decltype(t);
    const T* src = reinterpret_cast<const T*>(x.at(lane, k));
    if (!x.contiguous_sum) return pack_straight(src, x.ld, count, depth, pitch, dst);
    const Scratch<float> stage(4 * depth, sizeof(T) != 4);
    pack_transposed(src, x.ld, count, depth, pitch, dst, stage);
  });
}

// c = sums + bias (+ c), for a tile whose sums are complete.
template <class T>
void finish_tile(const Product& p, const float* sums, int64_t ld, int64_t row, int64_t col, int64_t rows,
                 int64_t cols) {
  const bool in_place = sums == reinterpret_cast<float*>(p.c) + row * p.n + col;
  const T* bias = p.bias ? static_cast<const T*>(p.bias) + col : nullptr;
  for (int64_t i = 0; i < rows; i++) {
    T* to = reinterpret_cast<T*>(p.c) + (row + i) * p.n + col;
    const float* from = sums + i * ld;
    for (int64_t j = 0; j < cols; j += F32::width) {
      const int64_t left = smaller<int64_t>(F32::width, cols - j);
      F32 y = load_n(from + j, left);
      if (bias) y += load_n(bias + j, left);
      if (p.accumulate && !in_place) y += load_n(to + j, left);
      store_n(to + j, y, left);
    }
  }
}

// One chunk: at most kChunkRows by kChunkCols of c. A part of kChunkDepth steps is packed whole; then each block of c
// stays in cache while the sum runs over the part.
void multiply_chunk(const Product& p, int64_t row0, int64_t m, int64_t col0, int64_t n) {
  const RowPanels rows(m);
  const ColPanels cols(n);
  const PanelProduct product = panel_product(rows, cols);
  const int64_t parts = p.k > 0 ? ceil_div(p.k, kChunkDepth) : 1;
  const int64_t part_depth = p.k > 0 ? ceil_div(p.k, parts) : 0;
  const int64_t steps = part_depth > 0 ? ceil_div(part_depth, kDepth) : 1;
  const int64_t depth = ceil_div(part_depth, steps);
  const bool narrow = p.dtype_c != DType::float32;
  const int64_t lanes_a = rows.count * rows.pitch, lanes_b = cols.count * cols.pitch;
  const Scratch<float> packed_a(lanes_a * part_depth);
  const Scratch<float> packed_b(lanes_b * part_depth);
  // 16-bit results are summed in float32 until the last step; with a single step a tile on the stack does.
  const Scratch<float> sums(m * n, narrow && parts * steps > 1);
  const int64_t block_cols = kBlockCols / cols.pitch;
  const int64_t col_blocks = ceil_div(cols.count, block_cols);
  // Enough items for the threads to end together.
  const int64_t items = p.parallel ? 4 * thread_count() : 1;
  const int64_t block_panels = smaller(kBlockPanels, ceil_div(rows.count, ceil_div(items, col_blocks)));
  const int64_t row_blocks = ceil_div(rows.count, block_panels);

  for (int64_t part = 0; part < parts; part++) {
    const int64_t k0 = part * part_depth;
    const int64_t k_end = smaller(k0 + part_depth, p.k);
    const auto steps_of_part = [&](const auto& f) {
      int64_t k = k0;
      do {
        f(k, smaller(depth, k_end - k));
        k += depth;
      } while (k < k_end);
    };
    for_range(p.parallel, rows.count + cols.count, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const bool is_a = i < rows.count;
        const int64_t pitch = is_a ? rows.pitch : cols.pitch;
        const int64_t lane = (is_a ? i : i - rows.count) * pitch;
        const int64_t count = smaller(pitch, (is_a ? m : n) - lane);
        steps_of_part([&](int64_t k, int64_t kc) {
          float* to = is_a ? packed_a + lanes_a * (k - k0) : packed_b + lanes_b * (k - k0);
          pack_panel(is_a ? p.a : p.b, (is_a ? row0 : col0) + lane, count, k, kc, pitch, to + lane * kc);
        });
      }
    });
    for_range(p.parallel, row_blocks * col_blocks, 1, [&](int64_t begin, int64_t end) {
      alignas(64) float tile[kTileRows * kTileCols];
      for (int64_t block = begin; block < end; block++) {
        const int64_t row_begin = block / col_blocks * block_panels;
        const int64_t row_end = smaller(row_begin + block_panels, rows.count);
        const int64_t col_begin = block % col_blocks * block_cols;
        const int64_t col_end = smaller(col_begin + block_cols, cols.count);
        steps_of_part([&](int64_t k, int64_t kc) {
          const bool last = k + kc >= p.k;
          const bool add = k > 0 || (!narrow && p.accumulate);
          const float* a = packed_a + lanes_a * (k - k0);
          const float* b = packed_b + lanes_b * (k - k0);
          for (int64_t jp = col_begin; jp < col_end; jp++) {
            for (int64_t ip = row_begin; ip < row_end; ip++) {
              const int64_t i = ip * rows.pitch, j = jp * cols.pitch;
              const int64_t tile_rows = smaller(rows.pitch, m - i), tile_cols = smaller(cols.pitch, n - j);
              float* to = !narrow ? reinterpret_cast<float*>(p.c) + (row0 + i) * p.n + col0 + j
                          : sums  ? sums + i * n + j
                                  : tile;
              const int64_t ld = !narrow ? p.n : sums ? n : kTileCols;
              product(kc, a + i * kc, b + j * kc, to, ld, tile_rows, tile_cols, add);
              if (!last || (!narrow && !p.bias)) continue;
              visit_float(p.dtype_c, [&](auto t) {
                finish_tile<decltype(t)>(p, to, ld, row0 + i, col0 + j, tile_rows, tile_cols);
              });
            }
          }
        });
      }
    });
  }
}

// c[j, i] = sums[i][j] + bias[i] (+ c[j, i]), for the columns [begin, end) of a turned product.
template <class T>
void finish_turned(const Product& p, const float* sums, int64_t begin, int64_t end) {
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t j = begin; j < end; j++) {
    T* to = reinterpret_cast<T*>(p.c) + j * p.m;
    for (int64_t i = 0; i < p.m; i++) {
      float y = sums[i * p.n + j];
      if (bias) y += to_float(bias[i]);
      if (p.accumulate) y += to_float(to[i]);
      to[i] = from_float<T>(y);
    }
  }
}

// For few rows: a is widened to [m][k] once, b is read once and in place. The sums of a work item's
// columns are left in y[m][n].
template <class T>
struct Streamed {
  const float* a;
  const T* b;
  float* y;
  int64_t ld, k, n;

  // b is [n, k]: J dot products at a time.
  template <int M, int J>
  void dots(int64_t j0) const {
    F32 sum[M][J];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
      for (int j = 0; j < J; j++) sum[i][j] = zero();
    const T* rows = b + j0 * ld;
    // Rows side by side are too much for the hardware's prefetcher.
    const int64_t step = J * ld, step_bytes = step * static_cast<int64_t>(sizeof(T));
    const T* next = rows + (1 + kAhead / (step_bytes + 1)) * step;
    int64_t p = 0;
#pragma GCC unroll 1
    for (; p + F32::width <= k; p += F32::width) {
      F32 w[J];
#pragma GCC unroll 4
      for (int j = 0; j < J; j++) {
        w[j] = load(rows + j * ld + p);
        __builtin_prefetch(next + j * ld + p);
      }
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) {
        const F32 x = held(load(a + i * k + p));
#pragma GCC unroll 4
        for (int j = 0; j < J; j++) sum[i][j] = fma(x, w[j], sum[i][j]);
      }
    }
    if (p < k) {
#pragma GCC unroll 4
      for (int j = 0; j < J; j++) {
        const F32 w = load_n(rows + j * ld + p, k - p);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) sum[i][j] = fma(load_n(a + i * k + p, k - p), w, sum[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
      for (int j = 0; j < J; j++) y[i * n + j0 + j] = reduce_add(sum[i][j]);
  }

  // b is [k, n]: rows of b, times their factors, onto the sums of the columns [begin, end). Four rows at a
  // time, so that a sum is loaded and stored once for four multiply-adds.
  template <int M>
  void columns(int64_t begin, int64_t end) const {
    for (int i = 0; i < M; i++)
      for (int64_t j = begin; j < end; j++) y[i * n + j] = 0.0f;
    int64_t p = 0;
    for (; p + 4 <= k; p += 4) {
      const T* rows = b + p * ld;
      int64_t j = begin;
#pragma GCC unroll 1
      for (; j + F32::width <= end; j += F32::width) {
        const F32 w0 = load(rows + j), w1 = load(rows + ld + j);
        const F32 w2 = load(rows + 2 * ld + j), w3 = load(rows + 3 * ld + j);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) {
          const float* x = a + i * k + p;
          F32 sum = fma(set1(x[0]), w0, load(y + i * n + j));
          sum = fma(set1(x[1]), w1, sum);
          sum = fma(set1(x[2]), w2, sum);
          store(y + i * n + j, fma(set1(x[3]), w3, sum));
        }
      }
      for (; j < end; j++)
        for (int i = 0; i < M; i++)
          for (int q = 0; q < 4; q++) y[i * n + j] += a[i * k + p + q] * to_float(rows[q * ld + j]);
    }
    for (; p < k; p++)
      for (int i = 0; i < M; i++)
        for (int64_t j = begin; j < end; j++) y[i * n + j] += a[i * k + p] * to_float(b[p * ld + j]);
  }

  // The sums of M rows of a and the columns [begin, end).
  template <int M>
  void sums(bool transposed, int64_t begin, int64_t end) const {
    if (!transposed) return columns<M>(begin, end);
    constexpr int J = kDots<M>;
    int64_t j = begin;
    for (; j + J <= end; j += J) dots<M, J>(j);
    for (; j < end; j++) dots<M, 1>(j);
  }

  // The same of `rows` rows, at most M.
  template <int M = kStreamedRows>
  void few(int64_t rows, bool transposed, int64_t begin, int64_t end) const {
    if (rows == M) return sums<M>(transposed, begin, end);
    if constexpr (M > 1) few<M - 1>(rows, transposed, begin, end);
  }

  void run(const Product& p) const {
    const bool transposed = p.b.contiguous_sum;
    // A group of columns is the smallest unit of work; an item has about 64K weights, which later rows find in L2.
    const int64_t group = transposed ? 4 : 512;
    const int64_t grain = 1 + 65536 / (group * (k + 1));
    for_range(p.parallel, ceil_div(n, group), grain, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * group; first < smaller(end * group, n);) {
        const int64_t last = transposed ? smaller(end * group, n) : smaller(first + group, n);
        for (int64_t i = 0; i < p.m; i += kStreamedRows)
          Streamed{a + i * k, b, y + i * n, ld, k, n}.few(smaller<int64_t>(kStreamedRows, p.m - i), transposed, first,
                                                          last);
        visit_float(p.dtype_c, [&](auto t) {
          using C = decltype(t);
          if (p.turned) {
            finish_turned<C>(p, y, first, last);
          } else {
            finish_tile<C>(p, y + first, n, 0, first, p.m, last - first);
          }
        });
        first = last;
      }
    });
  }
};

void multiply_streamed(const Product& p) {
  const Scratch<float> a(p.m * p.k);
  visit_float(p.a.dtype, [&](auto t) {
    using T = decltype(t);
    const T* src = static_cast<const T*>(p.a.data);
    for (int64_t i = 0; i < p.m; i++) {
      if (p.a.contiguous_sum) {
        convert(src + i * p.a.ld, a + i * p.k, p.k);
      } else {
        for (int64_t k = 0; k < p.k; k++) a[i * p.k + k] = to_float(src[k * p.a.ld + i]);
      }
    }
  });
  const Scratch<float> y(p.m * p.n);
  visit_float(p.b.dtype, [&](auto t) {
    using T = decltype(t);
    Streamed<T>{a, static_cast<const T*>(p.b.data), y, p.b.ld, p.k, p.n}.run(p);
  });
}

// Whether packing b would take longer than it saves: measured. Down columns of b, sums are loaded and stored on the
// way.
bool streams(const Product& p) {
  if (!p.b.contiguous_sum) return p.m <= 16;
  return p.m <= (p.n >= 16 * p.m ? 64 : 32);
}

// c^T = b^T a^T.
Product turned(const Product& p) {
  Product other = p;
  other.a = p.b;
  other.b = p.a;
  other.m = p.n;
  other.n = p.m;
  other.turned = true;
  return other;
}

void multiply(const Product& p) {
  if (p.n < p.m && streams(turned(p))) return multiply_streamed(turned(p));
  if (streams(p)) return multiply_streamed(p);
  for (int64_t i = 0; i < p.m; i += kChunkRows)
    for (int64_t j = 0; j < p.n; j += kChunkCols)
      multiply_chunk(p, i, smaller(kChunkRows, p.m - i), j, smaller(kChunkCols, p.n - j));
}

}  // namespace

void matmul(const MatmulArgs& x) {
  if (x.batch == 0 || x.m == 0 || x.n == 0) return;
  const int64_t work = x.m * x.n * (x.k + 1);
  // Small matrices of a batch go to the threads whole, large ones are split.
  const bool split = work > 1048576 || (x.batch == 1 && work > kSerialWork);
  const auto product = [&](int64_t i) {
    const auto step = [&](const void* data, DType t, int64_t stride) {
      return static_cast<const char*>(data) + i * stride * static_cast<int64_t>(size_of(t));
    };
    const Operand a = {step(x.a, x.dtype_a, x.stride_a), x.dtype_a, x.transpose_a ? x.m : x.k, !x.transpose_a};
    const Operand b = {step(x.b, x.dtype_b, x.stride_b), x.dtype_b, x.transpose_b ? x.k : x.n, x.transpose_b};
    char* c = static_cast<char*>(x.c) + i * x.m * x.n * static_cast<int64_t>(size_of(x.dtype_c));
    return Product{a, b, x.bias, c, x.dtype_c, x.m, x.n, x.k, x.accumulate, split};
  };
  if (split || x.batch == 1) {
    for (int64_t i = 0; i < x.batch; i++) multiply(product(i));
  } else {
    parallel_for(x.batch, 1 + kSerialWork / work, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) multiply(product(i));
    });
  }
}

void sum_rows(const SumRowsArgs& x) {
  constexpr int V = 4;
  constexpr int64_t kGroup = V * F32::width;
  constexpr int64_t kBlock = 256;  // rows summed before they join the total, to keep rounding errors small
  visit_float(x.dtype, [&](auto t) {
    using T = decltype(t);
    const T* from = static_cast<const T*>(x.x);
    T* to = static_cast<T*>(x.y);
    parallel_for(ceil_div(x.cols, kGroup), 1 + 32768 / (kGroup * (x.rows + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t j = begin * kGroup; j < smaller(end * kGroup, x.cols); j += F32::width) {
        const int64_t n = smaller<int64_t>(F32::width, x.cols - j);
        F32 total = zero();
        for (int64_t i0 = 0; i0 < x.rows; i0 += kBlock) {
          F32 sum = zero();
          const int64_t i1 = smaller(i0 + kBlock, x.rows);
          if (n == F32::width) {
            for (int64_t i = i0; i < i1; i++) sum += load(from + i * x.cols + j);
          } else {
            for (int64_t i = i0; i < i1; i++) sum += load_n(from + i * x.cols + j, n);
          }
          total += sum;
        }
        store_n(to + j, total, n);
      }
    });
  });
}

void fma_peak(const FmaPeakArgs& x) {
  // Enough independent chains to cover the latency of the multiply-add on every port.
  constexpr int kChains = 12;
  const int64_t threads = thread_count();
  parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      F32 sum[kChains];
#pragma GCC unroll 16
      for (int i = 0; i < kChains; i++) sum[i] = set1(static_cast<float>(i));
      const F32 factor = set1(0.999f), term = set1(0.001f);
#pragma GCC unroll 1
      for (int64_t i = 0; i < x.iterations; i++) {
#pragma GCC unroll 16
        for (int j = 0; j < kChains; j++) sum[j] = fma(sum[j], factor, term);
      }
      F32 total = zero();
#pragma GCC unroll 16
      for (int i = 0; i < kChains; i++) total += sum[i];
      const double alive = static_cast<double>(reduce_add(total));
      if (t == 0) x.result[1] = alive;
      if (alive < 0) x.result[1] = alive;  // never: the sums stay positive
    }
  });
  x.result[0] = static_cast<double>(threads) * static_cast<double>(x.iterations) * kChains * F32::width;
}

}  // namespace bnb::BNB_ISA
