// Conversion between element types.
//
// Layout    flat.
// Work      a thread takes runs of 8 elements, grid-stride. Both types are chosen once a run, in one kernel for all
//           pairs: a run is float32 or int32 in between.
// Numerics  to a float: nearest even through float32. To an integer: toward zero, saturating, NaN is 0.
// Needs     nothing: tails and misaligned views go element by element.
#include "cuda/map.cuh"
#include "kernels/cast.h"
#include "kernels/convert.h"

namespace bnb::cuda {
namespace {

constexpr int kRun = 8;

// Calls f with a value of the storage type.
template <class F>
BNB_INLINE void visit_type(DType t, const F& f) {
  switch (t) {
    case DType::float32: return f(float{});
    case DType::float16: return f(f16{});
    case DType::bfloat16: return f(bf16{});
    case DType::int8: return f(int8_t{});
    case DType::uint8: return f(uint8_t{});
    case DType::int32: return f(int32_t{});
    case DType::float64: return;  // refused by the op
  }
}

template <class T>
constexpr bool kIsFloat = __is_same(T, float) || __is_same(T, f16) || __is_same(T, bf16);

__global__ void __launch_bounds__(kMapThreads)
    cast_kernel(const void* x, void* y, int64_t n, DType from, DType to, bool vectors) {
  const bool from_float = is_float(from);
  for_each_run<kRun>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float real[kRun];
    int32_t integer[kRun];
    visit_type(from, [&](auto t) {
      using T = decltype(t);
      T stored[kRun];
      load_run(static_cast<const T*>(x) + i, count, whole, stored);
#pragma unroll
      for (int j = 0; j < kRun; j++) {
        if constexpr (kIsFloat<T>) {
          real[j] = widen(stored[j]);
        } else {
          integer[j] = stored[j];
        }
      }
    });
    visit_type(to, [&](auto t) {
      using T = decltype(t);
      T stored[kRun];
#pragma unroll
      for (int j = 0; j < kRun; j++) {
        if constexpr (kIsFloat<T>) {
          stored[j] = narrow<T>(from_float ? real[j] : static_cast<float>(integer[j]));
        } else {
          stored[j] = from_float ? saturate<T>(real[j]) : saturate<T>(integer[j]);
        }
      }
      store_run(static_cast<T*>(y) + i, count, whole, stored);
    });
  });
}

// Bytes of the loads and stores that a run of a type is made of.
size_t vector_bytes(DType t) {
  const size_t run = kDTypeSize[static_cast<int>(t)] * kRun;
  return run < 16 ? run : 16;
}

}  // namespace

void cast(const CastArgs& a, CudaStream& s) {
  const bool vectors = aligned_for(vector_bytes(a.from), a.x) && aligned_for(vector_bytes(a.to), a.y);
  launch(s, cast_kernel, map_grid(s, a.n, kRun), dim3(kMapThreads), 0, a.x, a.y, a.n, a.from, a.to, vectors);
}

}  // namespace bnb::cuda
