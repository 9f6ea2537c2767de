// Slabs, permutations, repeats and fills, by element size alone.
//
// Layout    copy_rows moves runs of bytes; copy_strided walks y in order. Both take the widest unit that divides all
//           addresses and distances. When another axis than the last has stride 1 in x, the two are exchanged through
//           tiles in shared memory, so that reads and writes are whole sectors.
// Work      a thread takes a unit of y, grid-stride; an axis costs a division. A tile is 32 x 32 elements of a block
//           of 32 x 8 threads.
// Numerics  bits are copied.
// Needs     dims without zeros.
#include "cuda/map.cuh"
#include "cuda/position.cuh"
#include "kernels/copy.h"

namespace bnb::cuda {
namespace {

// Calls f with a value of the unsigned type of that size.
template <class F>
void visit_size(int32_t element_size, const F& f) {
  switch (element_size) {
    case 1: return f(uint8_t{});
    case 2: return f(uint16_t{});
    case 4: return f(uint32_t{});
    default: return f(uint64_t{});
  }
}

// --- copy_rows -------------------------------------------------------------------------------------------------------

// Sizes in units.
template <class Unit>
__global__ void __launch_bounds__(kMapThreads)
    rows_kernel(const Unit* from, Unit* to, int64_t rows, int64_t run, int64_t from_pitch, int64_t to_pitch,
                Position position, int64_t step, const char* op) {
  int64_t start = 0;
  if (!resolve(position, op, start)) return;
  to += start * step;
  for (int64_t i = global_thread(); i < rows * run; i += global_threads()) {
    const int64_t row = rows == 1 ? 0 : i / run, at = i - row * run;
    store_unit(to + row * to_pitch + at, load_unit(from + row * from_pitch + at));
  }
}

// --- copy_strided
// ------------------------------------------------------------------------------------------------------

// Strides in elements of x; a copy of the arguments whose element may be several.
struct Axes {
  int64_t dims[kCopyAxes], strides[kCopyAxes];
  int32_t ndim;
};

// x's offset of the element `index` of y when only the first `ndim` axes vary, those in `skip` left out.
__device__ __forceinline__ int64_t source_offset(const Axes& a, int64_t index, int ndim, int skip) {
  int64_t offset = 0;
  // Unrolled, because parameters that are indexed by a variable are copied to the stack first.
#pragma unroll
  for (int k = kCopyAxes - 1; k >= 0; k--) {
    if (k >= ndim || k == skip) continue;
    const int64_t rest = k > 0 ? index / a.dims[k] : 0;
    offset += (index - rest * a.dims[k]) * a.strides[k];
    index = rest;
  }
  return offset;
}

template <class Unit>
__global__ void __launch_bounds__(kMapThreads) gather_kernel(const Unit* x, Unit* y, int64_t n, Axes axes) {
  for (int64_t i = global_thread(); i < n; i += global_threads())
    store_unit(y + i, load_unit(x + source_offset(axes, i, axes.ndim, -1)));
}

constexpr int kTile = 32, kTileRows = 8;

struct Transposition {
  int unit;                      // the axis of stride 1 in x; the last axis has stride x_pitch
  int64_t rows, cols;            // sizes of the two
  int64_t x_pitch, y_pitch;      // from one col to the next in x, from one row to the next in y
  int64_t row_tiles, col_tiles;  // of one pair of (unit, last)
  int64_t tiles;                 // of all
};

template <class T>
__global__ void __launch_bounds__(kTile* kTileRows) transpose_kernel(const T* x, T* y, Axes axes, Transposition t) {
  BNB_SHARED(T[kTile][kTile + 1], tile);
  const int tx = static_cast<int>(threadIdx.x), ty = static_cast<int>(threadIdx.y);
  const int64_t behind = t.y_pitch / t.cols;  // elements of the axes between the two
  for (int64_t at = blockIdx.x; at < t.tiles; at += gridDim.x) {
    const int64_t col = at % t.col_tiles * kTile, rest = at / t.col_tiles;
    const int64_t row = rest % t.row_tiles * kTile, outer = rest / t.row_tiles;
    const T* from = x + source_offset(axes, outer, axes.ndim - 1, t.unit);
    T* to = y + outer / behind * t.rows * t.y_pitch + outer % behind * t.cols;
    for (int64_t c = ty; c < kTile && col + c < t.cols; c += kTileRows)
      if (row + tx < t.rows) tile[c][tx] = from[(col + c) * t.x_pitch + row + tx];
    __syncthreads();
    for (int64_t r = ty; r < kTile && row + r < t.rows; r += kTileRows)
      if (col + tx < t.cols) to[(row + r) * t.y_pitch + col + tx] = tile[tx][r];
    __syncthreads();
  }
}

// Below this, tiles would be mostly empty.
constexpr int64_t kLeastTransposed = 8;

void gather(const CopyStridedArgs& a, CudaStream& s, Axes axes, int64_t n) {
  // Neighbouring elements become one where x and y have them side by side.
  const int last = axes.ndim - 1;
  const uint64_t size = static_cast<uint64_t>(a.element_size);
  uint64_t all = size;
  if (axes.strides[last] == 1) {
    all = bits_of(a.x) | bits_of(a.y) | static_cast<uint64_t>(axes.dims[last]) * size;
    for (int k = 0; k < last; k++) all |= static_cast<uint64_t>(axes.strides[k]) * size;
  }
  with_unit(all, [&](auto unit) {
    using Unit = decltype(unit);
    const int64_t together = static_cast<int64_t>(sizeof(Unit) / size);
    axes.dims[last] /= together;
    for (int k = 0; k < last; k++) axes.strides[k] /= together;
    const int64_t units = n / together;
    launch(s, gather_kernel<Unit>, map_grid(s, units, 1), dim3(kMapThreads), 0, static_cast<const Unit*>(a.x),
           static_cast<Unit*>(a.y), units, axes);
  });
}

void transpose(const CopyStridedArgs& a, CudaStream& s, const Axes& axes, int unit) {
  const int last = axes.ndim - 1;
  Transposition t = {};
  t.unit = unit;
  t.rows = axes.dims[unit];
  t.cols = axes.dims[last];
  t.x_pitch = axes.strides[last];
  t.y_pitch = 1;
  for (int k = unit + 1; k < axes.ndim; k++) t.y_pitch *= axes.dims[k];
  t.row_tiles = ceil_div(t.rows, kTile);
  t.col_tiles = ceil_div(t.cols, kTile);
  t.tiles = t.row_tiles * t.col_tiles;
  for (int k = 0; k < last; k++) t.tiles *= k == unit ? 1 : axes.dims[k];
  visit_size(a.element_size, [&](auto e) {
    using T = decltype(e);
    launch(s, transpose_kernel<T>, stride_grid(s, t.tiles, 1), dim3(kTile, kTileRows), 0, static_cast<const T*>(a.x),
           static_cast<T*>(a.y), axes, t);
  });
}

// --- fill
// ----------------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kMapThreads) fill_kernel(T* y, int64_t n, T value, bool vectors) {
  constexpr int V = kVector<T>;
  T run[V];
#pragma unroll
  for (int i = 0; i < V; i++) run[i] = value;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) { store_run(y + i, count, whole, run); });
}

}  // namespace

void copy_rows(const CopyRowsArgs& a, CudaStream& s) {
  uint64_t all = bits_of(a.from) | bits_of(a.to) | static_cast<uint64_t>(a.run_bytes);
  if (a.rows > 1) all |= static_cast<uint64_t>(a.from_pitch) | static_cast<uint64_t>(a.to_pitch);
  if (a.position.value) all |= static_cast<uint64_t>(a.position_bytes);
  with_unit(all, [&](auto unit) {
    using Unit = decltype(unit);
    constexpr int64_t size = sizeof(Unit);
    launch(s, rows_kernel<Unit>, map_grid(s, a.rows * (a.run_bytes / size), 1), dim3(kMapThreads), 0,
           static_cast<const Unit*>(a.from), static_cast<Unit*>(a.to), a.rows, a.run_bytes / size, a.from_pitch / size,
           a.to_pitch / size, a.position, a.position_bytes / size, "copy_rows");
  });
}

void copy_strided(const CopyStridedArgs& a, CudaStream& s) {
  Axes axes = {};
  axes.ndim = a.ndim;
  const int last = a.ndim - 1;
  int unit = -1;
  int64_t n = 1;
  for (int k = 0; k < a.ndim; k++) {
    axes.dims[k] = a.dims[k];
    axes.strides[k] = a.strides[k];
    n *= a.dims[k];
    if (k < last && a.strides[k] == 1) unit = k;
  }
  const bool square =
      unit >= 0 && a.strides[last] > 1 && a.dims[unit] >= kLeastTransposed && a.dims[last] >= kLeastTransposed;
  if (square) {
    transpose(a, s, axes, unit);
  } else {
    gather(a, s, axes, n);
  }
}

void fill(const FillArgs& a, CudaStream& s) {
  visit_size(a.element_size, [&](auto e) {
    using T = decltype(e);
    auto* y = static_cast<T*>(a.y);
    launch(s, fill_kernel<T>, map_grid(s, a.n, kVector<T>), dim3(kMapThreads), 0, y, a.n, static_cast<T>(a.bits),
           vectors_fit<T, kVector<T>>(y));
  });
}

}  // namespace bnb::cuda
