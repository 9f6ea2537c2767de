// What the 4-bit products share: scales, tables of pairs of codes, where sums go.
#pragma once
#include "cuda/codebooks.cuh"
#include "cuda/kernels/linear_4bit/linear_4bit.h"
#include "cuda/kernels/matmul/output.cuh"
#include "cuda/last_block.cuh"
#include "cuda/math.cuh"
#include "cuda/ptx.cuh"

namespace bnb::cuda {

// The scales of neighbouring blocks as they were loaded: the use comes steps later than the load.
template <int Blocks>
struct RawScales {
  uint32_t bits[Blocks];  // floats, or codes of nested scales
  float factor;           // of the codes
};

// A weight as kernels see it.
struct WeightView {
  const uint8_t* packed;
  BlockScales scales;
  int32_t shift, nested_shift;  // logarithms of the blocksizes; 0 without nested scales
  QuantType type;

  __device__ __forceinline__ bool nested() const { return nested_shift > 0; }
  __device__ __forceinline__ float scale(int64_t weight) const {
    return scale_of(scales, weight >> shift, nested_shift);
  }
  // Of `Blocks` neighbours from `block` on, a multiple of it: nested blocks are not smaller than 64.
  template <int Blocks>
  __device__ __forceinline__ RawScales<Blocks> raw_scales(uint32_t block) const {
    RawScales<Blocks> r{};
    if (nested()) {
      const uint8_t* from = static_cast<const uint8_t*>(scales.absmax) + block;
#pragma unroll
      for (int i = 0; i < Blocks; i++) r.bits[i] = from[i];
      r.factor = scales.nested_absmax[block >> nested_shift];
    } else {
      const uint32_t* from = static_cast<const uint32_t*>(scales.absmax) + block;
#pragma unroll
      for (int i = 0; i < Blocks; i++) r.bits[i] = from[i];
    }
    return r;
  }
  // `codes` is scales.nested_code in shared memory. Without a branch, which the code around it would have to keep
  // apart.
  template <int Blocks>
  __device__ __forceinline__ float scale(const RawScales<Blocks>& raw, int i, const float* codes, float offset) const {
    const float value = codes[nested() ? raw.bits[i] : 0] * raw.factor + offset;
    return nested() ? value : float_from_bits(raw.bits[i]);
  }
  __device__ __forceinline__ float offset() const { return nested() ? scales.offset[0] : 0.0f; }
  // codes: [256]
  __device__ __forceinline__ void load_nested_code(float* codes) const {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += static_cast<int>(blockDim.x))
      codes[i] = nested() ? scales.nested_code[i] : 0.0f;
  }
};
inline WeightView view_of(const Weight4Bit& w) {
  return {w.packed, w.scales, shift_of(w.blocksize), w.scales.nested_absmax ? shift_of(w.scales.nested_blocksize) : 0,
          w.type};
}

// Where sums go: bias and residual added in float32, one rounding.
struct ProductOut {
  void* y;           // [m, n] dtype
  const void* bias;  // [n] bias_dtype, or null
  int64_t n;
  DType dtype, bias_dtype;
  const void* residual = nullptr;  // [m, n] dtype

  __device__ __forceinline__ void store(int64_t row, int64_t col, float sum) const {
    if (bias) sum += load_float(bias, col, bias_dtype);
    if (residual) sum += load_float(residual, row * n + col, dtype);
    store_float(y, row * n + col, dtype, sum);
  }
};

// What a byte of two codes stands for, a copy for every lane: 256 rows, so that byte b of lane l is at
// (b << 8 | 4 l), or half of that for the narrow table. A lane meets no bank of another.
template <class T, bool Wide>
struct HalfPairs {
  static constexpr uint32_t kStride = Wide ? 256 : 128;
  static constexpr int kBytes = 256 * kStride;

  // All threads of the block; before the barrier that ends it.
  static __device__ void load(unsigned char* table, QuantType type) {
    const float* values = device_values_4bit(type);
    for (int i = static_cast<int>(threadIdx.x); i < 256 * kWarp; i += static_cast<int>(blockDim.x)) {
      const int byte = i / kWarp;
      const uint32_t first = narrow<T>(values[byte >> 4]).bits, second = narrow<T>(values[byte & 15]).bits;
      *reinterpret_cast<uint32_t*>(table + byte * kStride + i % kWarp * 4) = first | second << 16;
    }
  }
  static __device__ __forceinline__ uint32_t lane_bits(int lane) {
    return static_cast<uint32_t>(lane) * (Wide ? 4 : 8);
  }
  // The pair of byte i of q: the even k in the low half.
  static __device__ __forceinline__ uint32_t at(const unsigned char* table, uint32_t q, uint32_t i,
                                                uint32_t lane_bits) {
    const uint32_t offset = prmt(q, lane_bits, 0x5504 | i << 4);
    return *reinterpret_cast<const uint32_t*>(table + (Wide ? offset : offset >> 1));
  }
};

// The same in float32 with a copy for every lane of half a warp, which is what one pass of 8-byte loads covers.
template <bool Wide>
struct FloatPairs {
  static constexpr int kStride = Wide ? 256 : 128, kBytes = 256 * kStride;

  static __device__ void load(unsigned char* table, QuantType type) {
    const float* values = device_values_4bit(type);
    for (int i = static_cast<int>(threadIdx.x); i < 256 * 16; i += static_cast<int>(blockDim.x)) {
      const int byte = i / 16;
      store_vec(reinterpret_cast<float*>(table + byte * kStride + i % 16 * 8),
                Vec<float, 2>{{values[byte >> 4], values[byte & 15]}});
    }
  }
  static __device__ __forceinline__ uint32_t lane_bits(int lane) {
    return static_cast<uint32_t>(lane % 16) * (Wide ? 8 : 16);
  }
  static __device__ __forceinline__ Vec<float, 2> at(const unsigned char* table, uint32_t q, uint32_t i,
                                                     uint32_t lane_bits) {
    const uint32_t offset = prmt(q, lane_bits, 0x5504 | i << 4);
    return load_vec<2>(reinterpret_cast<const float*>(table + (Wide ? offset : offset >> 1)));
  }
};

// A float that another block of this launch wrote.
__device__ __forceinline__ float load_fresh(const float* from) { return *static_cast<const volatile float*>(from); }

// Adds up what the `splits` blocks of the same tile have in their registers, in order, by way of scratch: partials is
// [tiles, splits, Sums / 4, Threads, 4]. Only for the last block, which gets true; all threads of all of them.
template <int Sums, int Threads>
__device__ __forceinline__ bool add_splits(float (&sums)[Sums], float* partials, int32_t* counters, int64_t tile,
                                           int split, int splits) {
  float* const parts = partials + tile * splits * Sums * Threads + threadIdx.x * 4;
#pragma unroll
  for (int j = 0; j < Sums / 4; j++)
    store_vec(parts + (int64_t{split} * Sums + j * 4) * Threads,
              Vec<float, 4>{{sums[j * 4], sums[j * 4 + 1], sums[j * 4 + 2], sums[j * 4 + 3]}});
  if (!last_of(counters + tile, splits)) return false;
#pragma unroll
  for (int j = 0; j < Sums; j++) sums[j] = 0;
#pragma unroll 1
  for (int part = 0; part < splits; part++) {
    const float* from = parts + int64_t{part} * Sums * Threads;
#pragma unroll
    for (int j = 0; j < Sums; j++) sums[j] += load_fresh(from + j / 4 * 4 * Threads + j % 4);
  }
  return true;
}

// How the blocks of small_m share a product, and where its sums meet. Two products under a SwiGLU meet in one result:
// they share partials, of which the gate's come first, and counters.
struct Sharing {
  int64_t m, outputs;  // of the result
  ProductOut out;
  float* partials;  // [parties, m, outputs], or null for one party
  int32_t* counters;
  int32_t sum_warps, splits, groups;
  // Of a launch for several products; one for a single product is compiled without them.
  int32_t blocks = 0, block0 = 0;  // of the grid that work on this product: so many, from block0 on
  int32_t party0 = 0;              // the first of its partials
  bool gated = false;              // with SwiGLU
};

// The place of a block among those that work on its product. Grouped: of several in this launch.
template <bool Grouped>
struct BlockShare {
  const Sharing& p;

  __device__ __forceinline__ int block() const { return static_cast<int>(blockIdx.x) - (Grouped ? p.block0 : 0); }
  __device__ __forceinline__ int blocks() const { return Grouped ? p.blocks : static_cast<int>(gridDim.x); }
  __device__ __forceinline__ int split() const { return block() % p.splits; }
  __device__ __forceinline__ bool gated() const { return Grouped && p.gated; }
  __device__ __forceinline__ int party() const { return (Grouped ? p.party0 : 0) + split(); }
  __device__ __forceinline__ int parties() const { return gated() ? 2 * p.splits : p.splits; }
};

// Part `part` of `parts` of n.
__device__ __forceinline__ int part_of(int n, int part, int parts) {
  return static_cast<int>(int64_t{n} * part / parts);
}

// What a warp of small_m does: of each group from `first` on, `stride` apart, `steps` steps of the sum from `from` on,
// counted from where its block begins. `all` steps are shared.
struct WarpShare {
  int block_from, block_steps, from, steps, first, stride;

  template <bool Grouped>
  __device__ __forceinline__ WarpShare(const BlockShare<Grouped>& mine, int all) {
    const Sharing& p = mine.p;
    const int split = mine.split();
    const int sum_warp = static_cast<int>(threadIdx.x) / kWarp % p.sum_warps;
    block_from = part_of(all, split, p.splits);
    block_steps = part_of(all, split + 1, p.splits) - block_from;
    from = part_of(block_steps, sum_warp, p.sum_warps);
    steps = part_of(block_steps, sum_warp + 1, p.sum_warps) - from;
    first = mine.block() / p.splits;
    stride = mine.blocks() / p.splits;
  }
  // The first of the outputs of this warp in a group, in widths of a warp.
  static __device__ __forceinline__ int64_t place(const Sharing& p, int group, int warps) {
    return int64_t{group} * (warps / p.sum_warps) + static_cast<int>(threadIdx.x) / kWarp / p.sum_warps;
  }
};

// Goes through `steps` steps of which up to Ahead are under way, each in its place of the ring. load(step, ahead) fills
// a place with the step `ahead` of the one that the turn began with, multiply(step, i) uses it, advance() ends a turn.
template <int Ahead, class Step, class Load>
__device__ __forceinline__ void fill_ring(Step (&ring)[Ahead], int steps, const Load& load) {
#pragma unroll
  for (int slot = 0; slot < Ahead; slot++)
    if (slot < steps) load(ring[slot], slot);
}
template <int Ahead, class Step, class Load, class Multiply, class Advance>
__device__ __forceinline__ void go_round(Step (&ring)[Ahead], int steps, const Load& load, const Multiply& multiply,
                                         const Advance& advance) {
  // Steps are the same for a whole warp. A vote shows that to the compiler, which then keeps addresses in uniform
  // registers and makes nothing to bring lanes together again.
#pragma unroll 1
  for (int i = 0; i < steps; i += Ahead) {
    const int left = steps - i;
#pragma unroll
    for (int slot = 0; slot < Ahead; slot++) {
      if (!__any_sync(kFullMask, slot < left)) return;
      multiply(ring[slot], i + slot);
      if (__any_sync(kFullMask, Ahead + slot < left)) load(ring[slot], Ahead + slot);
    }
    advance();
  }
}

// Adds up a group of outputs: over the warps that share it, in order, and over the splits, in order. A warp has
// Width * Parts of them; deposit(e, part, to) stores its sums for rows 8e .. 8e + 7 in to[8][Width + 4], of which
// column c is output Parts * (c - c % 8) + 8 part + c % 8 of the warp. All threads of the block.
template <int Width, int Parts, int Warps, int Eights, bool Grouped, class Deposit>
__device__ __forceinline__ void finish_group(const BlockShare<Grouped>& mine, int group, float* exchange,
                                             const Deposit& deposit) {
  const Sharing& p = mine.p;
  constexpr int kPitch = Width + 4, kPart = 8 * kPitch;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, party = mine.party();
  const int places = Warps / p.sum_warps, width = Width * places;
  const int64_t first = int64_t{group} * width * Parts;
#pragma unroll
  for (int e = 0; e < Eights; e++) {
    if (8 * e >= p.m) break;
#pragma unroll
    for (int part = 0; part < Parts; part++) {
      __syncthreads();
      deposit(e, part, exchange + warp * kPart);
      __syncthreads();
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < 8 * width; i += Warps * kWarp) {
        const int row = 8 * e + i / width, place = i % width / Width, col = i % Width;
        const int64_t output = first + (place * Width + col - col % 8) * Parts + 8 * part + col % 8;
        if (row >= p.m || output >= p.outputs) continue;
        const float* from = exchange + place * p.sum_warps * kPart + i / width * kPitch + col;
        float sum = 0;
#pragma unroll 1
        for (int w = 0; w < p.sum_warps; w++) sum += from[w * kPart];
        if (mine.parties() == 1)
          p.out.store(row, output, sum);
        else
          p.partials[(party * p.m + row) * p.outputs + output] = sum;
      }
    }
  }
  if (mine.parties() == 1 || !last_of(p.counters + group, mine.parties())) return;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < p.m * width * Parts; i += Warps * kWarp) {
    const int64_t row = i / (width * Parts), col = first + i % (width * Parts);
    if (col >= p.outputs) continue;
    float sum = 0, gate = 0;
#pragma unroll 4
    for (int j = 0; j < mine.parties(); j++) {
      if (mine.gated() && j == p.splits) {
        gate = sum;
        sum = 0;
      }
      sum += load_fresh(p.partials + (j * p.m + row) * p.outputs + col);
    }
    p.out.store(row, col, mine.gated() ? gate * sigmoid(gate) * sum : sum);
  }
}

// Calls f<T, Eights, Wide, Half>() with what a launch of small_m needs: the type, eights of rows of x, the table, and
// whether blocks have 32 weights.
template <class F>
void visit_small_m(DType dtype, const Linear4BitGpuPlan& plan, int64_t blocksize, const F& f) {
  const auto table = [&]<class T, int Eights, bool Half>() {
    plan.wide_table ? f.template operator()<T, Eights, true, Half>() : f.template operator()<T, Eights, false, Half>();
  };
  const auto rows = [&]<class T, bool Half>() {
    if (plan.tokens == 8)
      table.template operator()<T, 1, Half>();
    else if (plan.tokens == 16)
      table.template operator()<T, 2, Half>();
    else
      table.template operator()<T, 4, Half>();
  };
  const auto type = [&]<class T>() {
    blocksize < kLinear4BitRun ? rows.template operator()<T, true>() : rows.template operator()<T, false>();
  };
  dtype == DType::float16 ? type.template operator()<f16>() : type.template operator()<bf16>();
}

// Rows of x[m, k], elements [from, from + count), to shared memory; count is a multiple of 8. Elements from `end` on
// are zeros.
template <class T>
__device__ __forceinline__ void copy_rows_in(T* to, int pitch, const T* x, int64_t m, int64_t k, int64_t from,
                                             int count, int64_t end) {
  const int pieces = count / 8;
  for (int i = static_cast<int>(threadIdx.x); i < pieces * static_cast<int>(m); i += static_cast<int>(blockDim.x)) {
    const int row = i / pieces, piece = i % pieces * 8;
    const bool valid = from + piece < end;
    cp_async16(to + row * pitch + piece, x + (valid ? row * k + from + piece : 0), valid);
  }
}

}  // namespace bnb::cuda
