// The products of many rows: slabs of w are decoded into scratch, and matmul multiplies them.
//
// Layout    forward: a slab is rows of w, and its product goes to columns of y; backward: a slab is columns of w, and
//           its product goes to columns of dx. So every sum is complete, and rounded once. One slab at a time, small
//           enough to be read from the second cache, large enough to fill the card.
// Work      decoding: a thread takes 8 weights at a time, or one where rows of w are not multiples of 8.
// Numerics  T(fl(table * scale)), the second of the two roundings that are allowed. A scale that float16 cannot hold is
//           repaired (repair.cuh).
// Needs     nothing.
#include "cuda/kernels/linear_4bit/common.cuh"
#include "cuda/kernels/linear_4bit/repair.cuh"
#include "kernels/matmul.h"

namespace bnb::cuda {
namespace {

constexpr int kThreads = 256, kGroup = 8;

// to[rows, columns] = rows from `row0` on and columns from `column0` on of w[*, k].
template <class T>
__global__ void __launch_bounds__(kThreads) decode_kernel(WeightView w, T* to, int64_t k, int64_t row0, int64_t column0,
                                                          int64_t rows, int64_t columns, bool vectors) {
  BNB_SHARED(Values4bitTable, table);
  table.load(w.type);
  __syncthreads();
  const uint32_t lane = threadIdx.x % kWarp;
  const int64_t first = row0 * k + column0;
  if (!vectors) {
    for (int64_t i = global_thread(); i < rows * columns; i += global_threads()) {
      const int64_t at = first + i / columns * k + i % columns;
      const uint32_t byte = w.packed[at / 2];
      to[i] = narrow<T>(table.at(at % 2 ? byte & 15 : byte >> 4, lane) * w.scale(at));
    }
    return;
  }
  const auto groups = static_cast<uint32_t>(columns / kGroup);
  const auto count = static_cast<uint32_t>(rows) * groups;  // a slab has fewer than 2^32 weights
  for (auto i = static_cast<uint32_t>(global_thread()); i < count; i += static_cast<uint32_t>(global_threads())) {
    const int64_t at = first + i / groups * k + i % groups * kGroup;
    const Vec<uint8_t, 4> bytes = load_vec<4>(w.packed + at / 2);
    const float scale = w.scale(at);
    constexpr int kVec = 16 / sizeof(T);
#pragma unroll
    for (int part = 0; part < kGroup; part += kVec) {
      Vec<T, kVec> v;
#pragma unroll
      for (int j = 0; j < kVec; j += 2) {
        const uint32_t byte = bytes.v[(part + j) / 2];
        const float even = table.at(byte >> 4, lane) * scale, odd = table.at(byte & 15, lane) * scale;
        narrow_pair<T>(even, odd, v.v[j], v.v[j + 1]);
      }
      store_vec(to + int64_t{i} * kGroup + part, v);
    }
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
  const bool vectors = k % kGroup == 0 && column0 % kGroup == 0 && columns % kGroup == 0 && aligned_for(4, w.packed);
  visit_float(dtype, [&](auto t) {
    using T = decltype(t);
    launch(s, decode_kernel<T>, stride_grid(s, ceil_div(rows * columns, vectors ? kGroup : 1), kThreads),
           dim3(kThreads), 0, view_of(w), static_cast<T*>(to), k, row0, column0, rows, columns, vectors);
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
