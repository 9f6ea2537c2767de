// The sums of y[m, n] = x[m, k] dequantize(w)[n, k]^T for up to 32 rows of x, on the matrix units.
//
// Layout    a warp has 32 rows of w and up to 32 rows of x (row_tile.cuh). Packed weights and scales go from memory
//           to registers up to four runs of 64 k ahead; the rows of x of the block's part of k stay in shared memory. A
//           table in shared memory turns a byte, two codes, into a pair of 16-bit weights: one PRMT and one load.
// Work      a block has a part of k and goes through groups of rows of w; its warps share the rows of a group, or the
//           k of the same rows. Sums meet in shared memory, those of other blocks in scratch, where the last block of
//           a group adds them up.
// Numerics  table values are rounded once to the type of x; products and sums are float32, the scale multiplies the
//           sum of a block. Parts are added in order, so the bits do not depend on timing.
// Needs     compute capability 8.0, or 7.5 for float16; k % 64 == 0, m <= 32, aligned x and w (plan/linear_4bit.h).
#pragma once
#include "cuda/kernels/linear_4bit/row_tile.cuh"

namespace bnb::cuda {

struct SmallArgs {
  const void* x;
  WeightView w;
  int64_t k;
  Sharing share;
};

// Half: blocks of 32. Grouped: one of several products.
template <class T, int Eights, bool Wide, bool Half, bool Grouped = false>
class SmallM {
 public:
  static constexpr int kWarps = Eights <= 2 ? 16 : 8, kThreads = kWarps * kWarp;
  // Runs under way per warp: what 128 registers of a thread hold, or 255.
  static constexpr int kAhead = Eights == 2 ? 2 : 4;
  using Table = HalfPairs<T, Wide>;
  static_assert(kWarps == linear_4bit_warps(Eights * 8, false) && Table::kBytes == linear_4bit_table(Wide));

  __device__ __forceinline__ SmallM(const SmallArgs& a, unsigned char* shared)
      : a_(a), table_(shared), codes_(reinterpret_cast<float*>(shared + Table::kBytes)) {
    exchange_ = codes_ + kLinear4BitNestedCode / 4;
    x_ = reinterpret_cast<T*>(exchange_ + linear_4bit_exchange(kWarps, false) / 4);
  }

  __device__ __forceinline__ void run() {
    const Sharing& p = a_.share;
    const BlockShare<Grouped> block{p};
    const WarpShare mine(block, static_cast<int>(a_.k / kLinear4BitRun));
    const int span = mine.block_steps * static_cast<int>(kLinear4BitRun);
    const int pitch = static_cast<int>(linear_4bit_pitch(span, false));
    Run<Half> ring[kAhead];
    const auto load = [&](Run<Half>& run, int ahead) { tile_.load(a_.w, run, ahead); };
    const auto fill = [&](int group) {
      tile_.go_to(a_.w, p.outputs, a_.k, WarpShare::place(p, group, kWarps) * kLinear4BitRows,
                  mine.block_from + mine.from);
      fill_ring(ring, mine.steps, load);
    };

    fill(mine.first);
    copy_rows_in(x_, pitch, static_cast<const T*>(a_.x), p.m, a_.k, int64_t{mine.block_from} * kLinear4BitRun, span,
                 a_.k);
    cp_async_commit();
    Table::load(table_, a_.w.type);
    a_.w.load_nested_code(codes_);
    offset_ = a_.w.offset();
    cp_async_wait<0>();
    __syncthreads();

    // Lanes whose row of x does not exist keep zeros: what they would read costs time, and nobody stores their sums.
    Terms terms[Eights] = {};
#pragma unroll
    for (int e = 0; e < Eights; e++) {
      const int row = 8 * e + lane() / 4;
      terms[e].exists = row < p.m;
      terms[e].from = x_ + (terms[e].exists ? row : 0) * pitch + mine.from * static_cast<int>(kLinear4BitRun) +
                      RowTile<Half>::place();
    }

    for (int group = mine.first; group < p.groups; group += mine.stride) {
      float acc[2][Eights][4] = {};
      go_round(
          ring, mine.steps, load, [&](const Run<Half>& run, int i) { multiply(acc, run, terms, i); },
          [&] { tile_.advance(kAhead); });
      if (group + mine.stride < p.groups) fill(group + mine.stride);
      finish_group<static_cast<int>(kLinear4BitRows), 1, kWarps, Eights>(
          block, group, exchange_, [&](int e, int, float* to) {
            const int g = lane() / 4, t = lane() % 4;
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
              for (int j = 0; j < 4; j++)
                to[(2 * t + j % 2) * (kLinear4BitRows + 4) + 16 * r + g + j / 2 * 8] = acc[r][e][j];
          });
    }
  }

 private:
  // Blocks of a run, and the terms of x that a lane has of each, two in a register.
  static constexpr int kBlocks = Half ? 2 : 1, kTerms = 8 / kBlocks;
  // Eight rows of x: where this lane reads its row, and what it has of the current block.
  struct Terms {
    const T* from;
    bool exists;
    uint32_t b[kTerms];
  };

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  // acc += the run of w times that of x, number `at` of this warp.
  __device__ __forceinline__ void multiply(float (&acc)[2][Eights][4], const Run<Half>& run, Terms (&terms)[Eights],
                                           int at) const {
    const uint32_t bits = Table::lane_bits(lane());
#pragma unroll
    for (int block = 0; block < kBlocks; block++) {
#pragma unroll
      for (int e = 0; e < Eights; e++) {
        const T* from = terms[e].from + at * static_cast<int>(kLinear4BitRun) + block * 32;
#pragma unroll
        for (int i = 0; i < kTerms; i += 4) load_shared_if(terms[e].exists, terms[e].b + i, from + 2 * i);
      }
      float s[4], c[2][Eights][4];
      row_scales(s, a_.w, run, block, codes_, offset_);
#pragma unroll
      for (int j = 0; j < kTerms / 2; j++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
          uint32_t a[4];
          fragment<Table>(a, table_, run, r, block * (kTerms / 2) + j, bits);
#pragma unroll
          for (int e = 0; e < Eights; e++) {
            const uint32_t pair[2] = {terms[e].b[2 * j], terms[e].b[2 * j + 1]};
            if (j == 0)
              mma_m16n8k16_first<T>(c[r][e], a, pair);
            else
              mma_m16n8k16<T>(c[r][e], a, pair);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 2; r++)
#pragma unroll
        for (int e = 0; e < Eights; e++) add_scaled(acc[r][e], c[r][e], s[2 * r], s[2 * r + 1]);
    }
  }

  const SmallArgs& a_;
  RowTile<Half> tile_;
  unsigned char* table_;
  float *codes_, *exchange_;
  T* x_;
  float offset_ = 0;
};

}  // namespace bnb::cuda
