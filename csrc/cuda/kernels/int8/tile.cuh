// Tiles of an integer product a[m, k] b[n, k]^T on the matrix units: those of matmul/mma_tile.cuh, two codes an
// element.
#pragma once
#include "cuda/kernels/matmul/mma_tile.cuh"

namespace bnb::cuda {

// A row-major matrix of codes. Aligned: its rows start at multiples of 16 bytes; else bytes are gathered one by one.
template <bool Aligned>
struct CodeSource {
  const int8_t* data;
  int64_t rows, cols;

  __device__ __forceinline__ void copy(unsigned char* to, int64_t row, int64_t pair) const {
    const int64_t col = 2 * pair, left = row < rows ? cols - col : 0;
    if constexpr (Aligned) {
      cp_async16(to, data + (left > 0 ? row * cols + col : 0), left > 0);
    } else {
      Vec<uint32_t, 4> words{};
#pragma unroll
      for (int i = 0; i < 16; i++)
        if (i < left) words.v[i / 4] |= uint32_t{static_cast<uint8_t>(data[row * cols + col + i])} << (i % 4 * 8);
      store_vec(reinterpret_cast<uint32_t*>(to), words);
    }
  }
};

inline bool codes_aligned(const int8_t* a, const int8_t* b, int64_t k) { return k % 16 == 0 && aligned_for(16, a, b); }

// sums += a[m0.., from..to] b[n0.., from..to]^T, exactly while they fit an int32; from is a multiple of the tile's.
template <class T, bool Aligned>
__device__ __forceinline__ void multiply_codes(unsigned char* shared, const CodeSource<Aligned>& a,
                                               const CodeSource<Aligned>& b, int64_t m0, int64_t n0, int64_t from,
                                               int64_t to, int32_t (&sums)[T::kRows][T::kCols][4]) {
  multiply_tile<T, true, true>(
      shared, a, b, m0, n0, from / 2, (to + 1) / 2, sums,
      [](int32_t(&d)[4], const uint32_t(&x)[4], const uint32_t(&y)[2]) { mma_m16n8k32(d, x, y); });
}

// Calls launch_tiles.operator()<Tile, Aligned>(tiles of m, tiles of n) with the tile for this size: few rows stream b,
// and large tiles are worth it once they occupy every multiprocessor.
template <class F>
void with_code_tile(int64_t m, int64_t n, bool aligned, const CudaStream& s, const F& launch_tiles) {
  const auto tiles = [&]<class T, bool Aligned>() {
    launch_tiles.template operator()<T, Aligned>(ceil_div(m, T::kM), ceil_div(n, T::kN));
  };
  if (!aligned)
    tiles.template operator()<SmallTile, false>();
  else if (m <= SkinnyTile::kM)
    tiles.template operator()<SkinnyTile, true>();
  else if (ceil_div(m, LargeTile::kM) * ceil_div(n, LargeTile::kN) >= s.gpu.sms)
    tiles.template operator()<LargeTile, true>();
  else
    tiles.template operator()<SmallTile, true>();
}

}  // namespace bnb::cuda
