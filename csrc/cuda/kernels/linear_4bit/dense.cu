// The products of many rows: slabs of w are decoded into scratch, and matmul multiplies them.
//
// Layout    forward: a slab is rows of w, and its product goes to columns of y; backward: a slab is columns of w, and
//           its product goes to columns of dx. So every sum is complete, and rounded once. One slab at a time, small
//           enough to be read from the second cache, large enough to fill the card.
// Work      decoding: cuda/decode_4bit.cuh, or a weight per thread where rows of w are not multiples of 8.
// Numerics  T(fl(table * scale)), the second of the two roundings that are allowed. A scale that float16 cannot hold is
//           repaired (repair.cuh).
// Needs     nothing.
#include "cuda/decode_4bit.cuh"
#include "cuda/kernels/linear_4bit/common.cuh"
#include "cuda/kernels/linear_4bit/repair.cuh"
#include "kernels/matmul.h"

namespace bnb::cuda {
namespace {

constexpr int kThreads = 256;
static_assert(kThreads == kMapThreads);

// to[rows, columns] = rows from `row0` on and columns from `column0` on of w[*, k]; all are multiples of kDecodeRun.
template <class T>
__global__ void __launch_bounds__(kThreads) decode_kernel(WeightView w, T* to, int64_t k, int64_t row0, int64_t column0,
                                                          int64_t rows, int64_t columns, int chunks) {
  BNB_SHARED(Decoder4bit, decoder);
  decoder.load(w.type);
  __syncthreads();
  const DecodeScales scales(w.scales, w.shift, w.nested_shift);
  for (DecodeTurn turn(chunks); turn.rows < rows; turn.next(chunks)) {
    const int64_t row = turn.row(), column = int64_t{turn.chunk} * kDecodeChunk;
    if (row >= rows) continue;
    const int count = static_cast<int>(min(columns - column, int64_t{kDecodeChunk}));
    decode_chunk(decoder, w.packed, scales, (row0 + row) * k + column0 + column, count, to + row * columns + column);
  }
}

// The same for any sizes.
template <class T>
__global__ void __launch_bounds__(kThreads)
    decode_each_kernel(WeightView w, T* to, int64_t k, int64_t row0, int64_t column0, int64_t rows, int64_t columns) {
  BNB_SHARED(Decoder4bit, decoder);
  decoder.load(w.type);
  __syncthreads();
  for (int64_t i = global_thread(); i < rows * columns; i += global_threads()) {
    const int64_t at = (row0 + i / columns) * k + column0 + i % columns;
    to[i] = narrow<T>(decoder.value(w.packed[at / 2] >> (at % 2 ? 0 : 4), threadIdx.x % kWarp) * w.scale(at));
  }
}

// y[rows, columns of n] = sums + bias
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(const float* sums, ProductOut out, int64_t rows, int64_t column0, int64_t columns) {
  for (int64_t i = global_thread(); i < rows * columns; i += global_threads())
    out.store(i / columns, column0 + i % columns, sums[i]);
}

void decode(const Weight4Bit& w, void* to, DType dtype, int64_t k, int64_t row0, int64_t column0, int64_t rows,
            int64_t columns, CudaStream& s) {
  const bool vectors = (k | column0 | columns) % kDecodeRun == 0 && aligned_for(4, w.packed);
  visit_float(dtype, [&](auto t) {
    using T = decltype(t);
    auto* const into = static_cast<T*>(to);
    if (vectors) {
      launch(s, decode_kernel<T>, decode_grid(s, rows, columns), dim3(kThreads), 0, view_of(w), into, k, row0, column0,
             rows, columns, decode_chunks(columns));
    } else {
      launch(s, decode_each_kernel<T>, stride_grid(s, rows * columns, kThreads), dim3(kThreads), 0, view_of(w), into, k,
             row0, column0, rows, columns);
    }
  });
}

constexpr int64_t size_in_bytes(DType t) { return t == DType::float32 ? 4 : 2; }
// Scratch in parts of multiples of 256 bytes.
constexpr size_t round_up(int64_t nbytes) { return (static_cast<size_t>(nbytes) + 255) / 256 * 256; }

}  // namespace

void linear_4bit_dense(const Linear4BitArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s) {
  const int64_t size = size_in_bytes(a.dtype), y_size = size_in_bytes(a.y_dtype);
  // matmul takes a bias of the type of y; any other is added here, to sums in float32.
  const bool direct = !a.residual && (!a.bias || a.bias_dtype == a.y_dtype);
  const bool repairs = a.dtype == DType::float16;
  const size_t slab_bytes = round_up(plan.outputs * a.k * size);
  const size_t sum_bytes = direct ? 0 : round_up(a.m * plan.outputs * 4);
  auto* slab = static_cast<unsigned char*>(s.scratch(slab_bytes + sum_bytes + (repairs ? kScaleFlags * 4 : 0)));
  auto* sums = reinterpret_cast<float*>(slab + slab_bytes);
  for (int64_t n0 = 0; n0 < a.n; n0 += plan.outputs) {
    const int64_t n = a.n - n0 < plan.outputs ? a.n - n0 : plan.outputs;
    decode(a.w, slab, a.dtype, a.k, n0, 0, n, a.k, s);
    MatmulArgs product = {.a = a.x,
                          .b = slab,
                          .bias = nullptr,
                          .c = sums,
                          .batch = 1,
                          .m = a.m,
                          .n = n,
                          .k = a.k,
                          .stride_a = 0,
                          .stride_b = 0,
                          .dtype_a = a.dtype,
                          .dtype_b = a.dtype,
                          .dtype_c = DType::float32,
                          .transpose_a = false,
                          .transpose_b = true,
                          .accumulate = false};
    if (direct) {
      product.c = static_cast<unsigned char*>(a.y) + n0 * y_size;
      product.row_c = a.n;
      product.dtype_c = a.y_dtype;
      if (a.bias) product.bias = static_cast<const unsigned char*>(a.bias) + n0 * y_size;
    }
    matmul(product, s);
    if (!direct)
      launch(s, add_bias_kernel, stride_grid(s, a.m * n, kThreads), dim3(kThreads), 0, static_cast<const float*>(sums),
             ProductOut{a.y, a.bias, a.n, a.y_dtype, a.bias_dtype, a.residual}, a.m, n0, n);
  }
  if (!repairs) return;
  auto* flags = reinterpret_cast<int32_t*>(slab + slab_bytes + sum_bytes);
  check_scales(a.w, a.n * a.k, flags, s);
  linear_4bit_simt(a, flags, s);
}

void linear_4bit_backward_dense(const Linear4BitBackwardArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s) {
  const int64_t size = size_in_bytes(a.dtype);
  const bool repairs = a.dtype == DType::float16;
  const size_t slab_bytes = round_up(plan.outputs * a.n * size);
  auto* slab = static_cast<unsigned char*>(s.scratch(slab_bytes + (repairs ? kScaleFlags * 4 : 0)));
  for (int64_t k0 = 0; k0 < a.k; k0 += plan.outputs) {
    const int64_t k = a.k - k0 < plan.outputs ? a.k - k0 : plan.outputs;
    decode(a.w, slab, a.dtype, a.k, 0, k0, a.n, k, s);
    matmul(MatmulArgs{.a = a.dy,
                      .b = slab,
                      .bias = nullptr,
                      .c = static_cast<unsigned char*>(a.dx) + k0 * size,
                      .batch = 1,
                      .m = a.m,
                      .n = k,
                      .k = a.n,
                      .stride_a = 0,
                      .stride_b = 0,
                      .dtype_a = a.dtype,
                      .dtype_b = a.dtype,
                      .dtype_c = a.dtype,
                      .transpose_a = false,
                      .transpose_b = false,
                      .accumulate = false,
                      .row_c = a.k},
           s);
  }
  if (!repairs) return;
  repair_backward(a, reinterpret_cast<int32_t*>(slab + slab_bytes), s);
}

}  // namespace bnb::cuda
