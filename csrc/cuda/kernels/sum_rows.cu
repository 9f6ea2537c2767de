// The gradient of bias: y[j] = sum over i of x[i, j].
//
// Layout    x [rows, cols], y [cols].
// Work      a block sums a chunk of rows of up to 32 runs of 16 bytes; the threads that columns leave over share the
//           rows. The sums of chunks are a smaller x, in float32, summed in the same way until one chunk is left.
// Numerics  float32, rounded once. Chunks and their sums have a fixed order that depends on the shape alone.
// Needs     nothing: tails and misaligned views go element by element.
#include "cuda/map.cuh"
#include "kernels/matmul.h"

namespace bnb::cuda {
namespace {

constexpr int kRowsPerThread = 16;

using Four = Vec<float, 4>;

// How a block of kMapThreads lies over x: `across` threads over runs of columns, the others over rows.
struct Shape {
  int64_t rows, cols;
  int across;
};
BNB_INLINE int64_t rows_per_chunk(const Shape& x) { return kMapThreads / x.across * kRowsPerThread; }

// One block per chunk and group of columns, of which the host counts the groups: a 64-bit division is a call here, and
// registers would be spilled around it. y [chunks, cols]
template <class T, class Out>
__global__ void __launch_bounds__(kMapThreads)
    sum_rows_kernel(const T* x, Out* y, Shape shape, unsigned groups, bool vectors) {
  constexpr int V = kVector<T>;
  BNB_SHARED(Four[kMapThreads * V / 4], partial);
  const int thread = static_cast<int>(threadIdx.x), across = shape.across, down = kMapThreads / across;
  const int64_t chunk = blockIdx.x / groups, group = blockIdx.x % groups;
  const int64_t first = group * across * V, col = first + thread % across * V, left = shape.cols - col;
  const int64_t begin = chunk * rows_per_chunk(shape), end = begin + rows_per_chunk(shape);
  float sum[V] = {};
  if (left > 0) {
#pragma unroll 4
    for (int64_t i = begin + thread / across; i < end && i < shape.rows; i += down) {
      float v[V];
      load_floats(x + i * shape.cols + col, left, vectors, v);
#pragma unroll
      for (int j = 0; j < V; j++) sum[j] += v[j];
    }
  }
  store_run(partial[thread * V / 4].v, V, true, sum);
  __syncthreads();
  for (int64_t j = thread; j < across * V && first + j < shape.cols; j += kMapThreads) {
    float total = 0;
    for (int d = 0; d < down; d++) total += partial[(d * across * V + j) / 4].v[j % 4];
    y[chunk * shape.cols + first + j] = narrow<Out>(total);
  }
}

template <class T>
Shape shape_of(int64_t rows, int64_t cols) {
  Shape shape = {rows, cols, 1};
  while (shape.across < kWarp && shape.across * kVector<T> < cols) shape.across *= 2;
  return shape;
}
int64_t chunks_of(const Shape& shape) {
  const int64_t chunks = ceil_div(shape.rows, rows_per_chunk(shape));
  return chunks > 1 ? chunks : 1;
}

template <class T, class Out>
void sum_chunks(const T* x, Out* y, const Shape& shape, CudaStream& s) {
  constexpr int V = kVector<T>;
  const int64_t groups = ceil_div(shape.cols, int64_t{shape.across} * V), blocks = chunks_of(shape) * groups;
  launch(s, sum_rows_kernel<T, Out>, dim3(static_cast<unsigned>(blocks)), dim3(kMapThreads), 0, x, y, shape,
         static_cast<unsigned>(groups), shape.cols % V == 0 && vectors_fit<T, V>(x));
}

}  // namespace

void sum_rows(const SumRowsArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto* x = static_cast<const T*>(a.x);
    auto* y = static_cast<T*>(a.y);
    Shape shape = shape_of<T>(a.rows, a.cols);
    int64_t chunks = chunks_of(shape);
    if (chunks == 1) return sum_chunks(x, y, shape, s);
    // Two halves in turn: what is summed, and its sums.
    auto* from = static_cast<float*>(s.scratch(static_cast<size_t>(2 * chunks * a.cols) * sizeof(float)));
    float* to = from + chunks * a.cols;
    sum_chunks(x, from, shape, s);
    for (;;) {
      shape = shape_of<float>(chunks, a.cols);
      chunks = chunks_of(shape);
      if (chunks == 1) return sum_chunks(from, y, shape, s);
      sum_chunks(from, to, shape, s);
      float* spare = from;
      from = to;
      to = spare;
    }
  });
}

}  // namespace bnb::cuda
