// 32 rows of a 4-bit weight as a warp multiplies them: the weights are the 16-row operand of the matrix units, twice.
// With g = lane / 4, t = lane % 4 a lane has the codes of rows g, g + 8, g + 16, g + 24; of a run of 64 k it has
// k = 16t .. 16t + 15, so that four lanes read the 32 bytes of a row. x has the same order of k, which a product of
// matrices is free to choose. Blocks of 32 want all lanes in the same half of the run: k = 8t .. 8t + 7 and 32 more.
#pragma once
#include "cuda/kernels/linear_4bit/common.cuh"

namespace bnb::cuda {

// A run of 64 k of the tile, as loaded.
struct Run {
  uint32_t q[4][2];
  RawScale scale[2];  // of row g + 8t; the second for blocks of 32
};

class RowTile {
 public:
  __device__ __forceinline__ RowTile(const WeightView& w, int64_t n, int64_t k, bool half)
      : w_(w),
        n_(static_cast<int>(n)),
        runs_(static_cast<uint32_t>(k / kLinear4BitRun)),
        half_(half),
        lane_(w.packed + lane() % 4 * (half ? 4 : 8)) {}

  // Whether blocks have 32 weights.
  __device__ __forceinline__ bool half() const { return half_; }
  // The place in a run of the element of x that the first code of q[.][0] is for.
  __device__ __forceinline__ int place() const { return lane() % 4 * (half_ ? 8 : 16); }

  // Rows beyond the last read the last; nobody stores their sums.
  __device__ __forceinline__ void go_to(int64_t row0) {
    const int g = lane() / 4, t = lane() % 4;
    const int first = static_cast<int>(row0) + g;
#pragma unroll
    for (int i = 0; i < 4; i++) first_run_[i] = row(first + 8 * i) * runs_;
    scale_run_ = row(first + 8 * t) * runs_;
  }

  __device__ __forceinline__ void load(Run& r, int run) const {
    const uint8_t* from[4];
#pragma unroll
    for (int i = 0; i < 4; i++) from[i] = lane_ + uint64_t{first_run_[i] + static_cast<uint32_t>(run)} * 32;
    const uint32_t block = scale_run_ + static_cast<uint32_t>(run);
    if (half_) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        r.q[i][0] = load_once<1>(from[i]).v[0];
        r.q[i][1] = load_once<1>(from[i] + 16).v[0];
      }
      r.scale[0] = w_.raw_scale(2 * block);
      r.scale[1] = w_.raw_scale(2 * block + 1);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const Vec<uint32_t, 2> q = load_once<2>(from[i]);
      r.q[i][0] = q.v[0];
      r.q[i][1] = q.v[1];
    }
    r.scale[0] = w_.raw_scale(block >> (w_.shift - 6));
  }

  // s[i] = the scale of row g + 8i.
  __device__ __forceinline__ void scales(float (&s)[4], RawScale raw, const float* codes, float offset) const {
    const float mine = w_.scale(raw, codes, offset);
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = __shfl_sync(kFullMask, mine, (lane() & ~3) | i);
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  // n k < 2^36 and k >= 64: rows and runs fit 32 bits.
  __device__ __forceinline__ uint32_t row(int i) const { return static_cast<uint32_t>(i < n_ ? i : n_ - 1); }

  const WeightView& w_;
  int n_;
  uint32_t runs_;
  bool half_;
  const uint8_t* lane_;  // w, and what this lane reads first of a run
  uint32_t first_run_[4];
  uint32_t scale_run_ = 0;
};

// The operand of 16 rows of the tile (rows 16r ..) and 16 of the 64 k, number j.
template <class Table>
__device__ __forceinline__ void fragment(uint32_t (&a)[4], const unsigned char* table, const Run& run, int r, int j,
                                         uint32_t lane_bits) {
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
