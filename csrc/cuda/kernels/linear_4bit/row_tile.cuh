// 32 rows of a 4-bit weight as a warp multiplies them: the weights are the 16-row operand of the matrix units, twice.
// With g = lane / 4, t = lane % 4 a lane has the codes of rows g, g + 8, g + 16, g + 24; of a run of 64 k it has
// k = 16t .. 16t + 15, so that four lanes read the 32 bytes of a row. x has the same order of k, which a product of
// matrices is free to choose. Blocks of 32 want all lanes in the same half of the run: k = 8t .. 8t + 7 and 32 more.
#pragma once
#include "cuda/kernels/linear_4bit/common.cuh"

namespace bnb::cuda {

// A run of 64 k of the tile, as loaded.
template <bool Half>
struct Run {
  uint32_t q[4][2];
  RawScales<Half ? 2 : 1> scale;  // of row g + 8t
};

// Where a warp reads its tile. Half: blocks of 32.
template <bool Half>
class RowTile {
 public:
  // The place in a run of the element of x that the first code of q[.][0] is for.
  static __device__ __forceinline__ int place() { return lane() % 4 * (Half ? 8 : 16); }

  // Rows beyond the last read the last; nobody stores their sums.
  __device__ __forceinline__ void go_to(const WeightView& w, int64_t n, int64_t k, int64_t row0, int run) {
    const int g = lane() / 4, t = lane() % 4, first = static_cast<int>(row0) + g, last = static_cast<int>(n) - 1;
    // n k < 2^36 and k >= 64: rows and runs fit 32 bits.
    const auto runs = static_cast<uint32_t>(k / kLinear4BitRun);
    const auto run_of = [&](int row) {
      return static_cast<uint32_t>(row < last ? row : last) * runs + static_cast<uint32_t>(run);
    };
#pragma unroll
    for (int i = 0; i < 4; i++) from_[i] = w.packed + uint64_t{run_of(first + 8 * i)} * 32 + t * (Half ? 4 : 8);
    scale_run_ = run_of(first + 8 * t);
  }
  __device__ __forceinline__ void advance(int runs) {
#pragma unroll
    for (int i = 0; i < 4; i++) from_[i] += runs * 32;
    scale_run_ += static_cast<uint32_t>(runs);
  }

  // The run `ahead` of where the tile is.
  __device__ __forceinline__ void load(const WeightView& w, Run<Half>& r, int ahead) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint8_t* from = from_[i] + ahead * 32;
      if constexpr (Half) {
        r.q[i][0] = load_once<1>(from).v[0];
        r.q[i][1] = load_once<1>(from + 16).v[0];
      } else {
        const Vec<uint32_t, 2> q = load_once<2>(from);
        r.q[i][0] = q.v[0];
        r.q[i][1] = q.v[1];
      }
    }
    const uint32_t run = scale_run_ + static_cast<uint32_t>(ahead);
    if constexpr (Half)
      r.scale = w.raw_scales<2>(2 * run);
    else
      r.scale = w.raw_scales<1>(run >> (w.shift - 6));
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  const uint8_t* from_[4];
  uint32_t scale_run_;
};

// s[i] = the scale of row g + 8i, of block `block` of a run.
template <bool Half>
__device__ __forceinline__ void row_scales(float (&s)[4], const WeightView& w, const Run<Half>& run, int block,
                                           const float* codes, float offset) {
  const float mine = w.scale(run.scale, block, codes, offset);
#pragma unroll
  for (int i = 0; i < 4; i++) s[i] = shuffle_keeping<0b11100>(mine, static_cast<uint32_t>(i));
}

// The operand of 16 rows of the tile (rows 16r ..) and 16 of the 64 k, number j.
template <class Table, bool Half>
__device__ __forceinline__ void fragment(uint32_t (&a)[4], const unsigned char* table, const Run<Half>& run, int r,
                                         int j, uint32_t lane_bits) {
  const uint32_t q = run.q[2 * r][j / 2], p = run.q[2 * r + 1][j / 2], i = j % 2 * 2;
  a[0] = Table::at(table, q, i, lane_bits);
  a[1] = Table::at(table, p, i, lane_bits);
  a[2] = Table::at(table, q, i + 1, lane_bits);
  a[3] = Table::at(table, p, i + 1, lane_bits);
}

// acc += {s[0], s[0], s[1], s[1]} * c
__device__ __forceinline__ void add_scaled(float (&acc)[4], const float (&c)[4], float s0, float s1) {
  acc[0] = fmaf(s0, c[0], acc[0]);
  acc[1] = fmaf(s0, c[1], acc[1]);
  acc[2] = fmaf(s1, c[2], acc[2]);
  acc[3] = fmaf(s1, c[3], acc[3]);
}

}  // namespace bnb::cuda
