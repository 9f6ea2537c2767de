// Decoding of rows of a 4-bit weight by warps, for kernels that take rows from anywhere.
#pragma once
#include "cuda/codebooks.cuh"
#include "cuda/map.cuh"
#include "kernels/linear_4bit.h"

namespace bnb::cuda {

constexpr int kDecodeRun = 8;                    // weights of a lane in a step
constexpr int kDecodeStep = kDecodeRun * kWarp;  // of a warp
constexpr int kDecodeSteps = 4;
constexpr int kDecodeChunk = kDecodeSteps * kDecodeStep;  // weights of a row that a warp decodes in a turn
constexpr int kDecodeRows = kMapThreads / kWarp;          // rows of a block of threads in a turn

// Which rows and which part of them: the blocks of a grid go over all parts of the first kDecodeRows rows, then of the
// next ones. Without a division per turn, which would take longer than all other counting.
struct DecodeTurn {
  int64_t rows;  // kDecodeRows of them, one for each warp
  int chunk;

  __device__ __forceinline__ explicit DecodeTurn(int chunks)
      : rows(int64_t{blockIdx.x / chunks} * kDecodeRows), chunk(static_cast<int>(blockIdx.x % chunks)) {}
  __device__ __forceinline__ int64_t row() const { return rows + threadIdx.x / kWarp; }
  __device__ __forceinline__ void next(int chunks) {
    rows += int64_t{gridDim.x / chunks} * kDecodeRows;
    chunk += static_cast<int>(gridDim.x % chunks);
    if (chunk < chunks) return;
    chunk -= chunks;
    rows += kDecodeRows;
  }
};
inline int decode_chunks(int64_t columns) { return static_cast<int>(ceil_div(columns, kDecodeChunk)); }
inline dim3 decode_grid(const CudaStream& s, int64_t rows, int64_t columns) {
  return stride_grid(s, ceil_div(rows, kDecodeRows) * decode_chunks(columns), 1);
}

// What decoding reads, with the offset of nested scales at hand.
struct DecodeScales {
  BlockScales scales;
  int shift, nested_shift;
  float offset;

  __device__ __forceinline__ DecodeScales(const BlockScales& s, int block_shift, int nested_block_shift)
      : scales(s), shift(block_shift), nested_shift(nested_block_shift), offset(s.nested_absmax ? s.offset[0] : 0.0f) {}
  __device__ __forceinline__ float at(uint32_t block) const {
    if (!scales.nested_absmax) return static_cast<const float*>(scales.absmax)[block];
    const uint8_t code = static_cast<const uint8_t*>(scales.absmax)[block];
    return scales.nested_code[code] * scales.nested_absmax[block >> nested_shift] + offset;
  }
};

// Steps of decoding, kDecodeStep weights apart: all loads come before the first use.
template <int Steps, class T>
__device__ __forceinline__ void decode_steps(const Decoder4bit& decoder, const uint32_t* words, const DecodeScales& w,
                                             uint32_t block, uint32_t begin, T* to) {
  uint32_t word[Steps];
  float scale[Steps];
#pragma unroll
  for (int s = 0; s < Steps; s++) word[s] = load_vec<1>(words + s * kWarp).v[0];
#pragma unroll
  for (int s = 0; s < Steps; s++) scale[s] = w.at(block + ((begin + s * kDecodeStep) >> w.shift));
#pragma unroll
  for (int s = 0; s < Steps; s++) {
    float v[kDecodeRun];
    decoder.values(word[s], threadIdx.x % kWarp, v);
#pragma unroll
    for (int i = 0; i < kDecodeRun; i++) v[i] *= scale[s];
    constexpr int kVec = kVector<T>;
#pragma unroll
    for (int i = 0; i < kDecodeRun; i += kVec) {
      Vec<uint32_t, 4> words16;
      for (int j = 0; j < 4; j++) {
        if constexpr (kVec == 8)
          words16.v[j] = packed_pair<T>(v[2 * j], v[2 * j + 1]);
        else
          words16.v[j] = float_bits(v[i + j]);
      }
      store_global16(to + s * kDecodeStep + i, words16);
    }
  }
}

// to[0 .. count) = weights first .. first + count, at most kDecodeChunk. `first` and `count` are multiples of
// kDecodeRun, packed is aligned to 4 bytes and `to` to 16.
template <class T>
__device__ __forceinline__ void decode_chunk(const Decoder4bit& decoder, const uint8_t* packed, const DecodeScales& w,
                                             int64_t first, int count, T* to) {
  const int lane = threadIdx.x % kWarp, mine = lane * kDecodeRun;
  const auto* const words = reinterpret_cast<const uint32_t*>(packed + first / 2) + lane;
  // Blocks in 32 bits: there are fewer than 2^32 of them.
  const auto begin = static_cast<uint32_t>(first & ((int64_t{1} << w.shift) - 1)) + mine;
  const auto block = static_cast<uint32_t>(first >> w.shift);
  if (count == kDecodeChunk) {
    decode_steps<kDecodeSteps>(decoder, words, w, block, begin, to + mine);
  } else {
#pragma unroll 1
    for (int s = 0; mine + s * kDecodeStep < count; s++)
      decode_steps<1>(decoder, words + s * kWarp, w, block, begin + s * kDecodeStep, to + mine + s * kDecodeStep);
  }
}

}  // namespace bnb::cuda
