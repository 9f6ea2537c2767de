// The matrices of experts as kernels read them: 4-bit or floats, eight elements or one at a time.
#pragma once
#include <type_traits>

#include "cuda/codebooks.cuh"
#include "cuda/kernel.cuh"
#include "cuda/load_run.cuh"
#include "kernels/experts_swiglu.h"

namespace bnb::cuda {

struct Quantized {};

constexpr int kMatrixRun = 8;  // elements of a lane's step

// The tables of all types: the matrices of one call may differ in theirs. Floats need none.
struct Values4bitTables {
  Values4bitTable of[4];

  template <class W>
  __device__ __forceinline__ void load() {
    if constexpr (std::is_same_v<W, Quantized>)
      for (int i = 0; i < 4; i++) of[i].load(static_cast<QuantType>(i));
  }
};

// Of a positive x. A function, because what initializes a member is compiled for the host, too, which lacks __clzll.
__device__ __forceinline__ int floor_log2(int64_t x) { return 63 - __clzll(x); }

// A matrix of elements of type W.
template <class W>
class MatrixView {
 public:
  __device__ __forceinline__ MatrixView(const Weight4Bit& w, const Values4bitTables&)
      : elements_(reinterpret_cast<const W*>(w.packed)) {}
  // Of eight from `at` on, a multiple of 8, where the matrix is aligned.
  __device__ __forceinline__ void run(int64_t at, float (&v)[kMatrixRun]) const { load_run(elements_ + at, v); }
  __device__ __forceinline__ float one(int64_t at) const { return widen(elements_[at]); }

 private:
  const W* elements_;
};

template <>
class MatrixView<Quantized> {
 public:
  __device__ __forceinline__ MatrixView(const Weight4Bit& w, const Values4bitTables& tables)
      : table_(tables.of[static_cast<int>(w.type)]),
        packed_(w.packed),
        scales_(w.scales),
        shift_(floor_log2(w.blocksize)),
        nested_shift_(w.scales.nested_absmax ? floor_log2(w.scales.nested_blocksize) : 0) {}
  __device__ __forceinline__ void run(int64_t at, float (&v)[kMatrixRun]) const {
    const Vec<uint8_t, 4> bytes = load_vec<4>(packed_ + at / 2);
    const float s = scale(at);
#pragma unroll
    for (int i = 0; i < kMatrixRun; i += 2) {
      v[i] = table_.at(bytes.v[i / 2] >> 4, lane()) * s;
      v[i + 1] = table_.at(bytes.v[i / 2] & 15, lane()) * s;
    }
  }
  __device__ __forceinline__ float one(int64_t at) const {
    const uint32_t byte = packed_[at / 2];
    return table_.at(at % 2 ? byte & 15 : byte >> 4, lane()) * scale(at);
  }

 private:
  static __device__ __forceinline__ uint32_t lane() { return threadIdx.x % kWarp; }
  __device__ __forceinline__ float scale(int64_t at) const { return scale_of(scales_, at >> shift_, nested_shift_); }

  const Values4bitTable& table_;
  const uint8_t* packed_;
  BlockScales scales_;
  int32_t shift_, nested_shift_;
};

// Calls f with a value of the type of the matrices' elements.
template <class F>
void visit_matrix(const ExpertChoice& c, const F& f) {
  if (c.is_quantized)
    f(Quantized{});
  else
    visit_float(c.matrix_dtype, f);
}

}  // namespace bnb::cuda
