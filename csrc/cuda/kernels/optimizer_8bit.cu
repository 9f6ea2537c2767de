// One optimizer step with 8-bit states: a tile is the block of 256 elements that shares a scale, decoded, updated and
// encoded in the registers of one warp.
//
// Layout    codes [n] and scales [blocks] for state1 and state2; AdEMAMix has two rows of each in state1, and the
//           blocks of its second row start at that row's first element.
// Work      cuda/optimizer_step.cuh. 52 KB of tables in shared memory: values with 8 copies, and bins of magnitudes
//           for the search of a code, which is one look-up and one comparison.
// Numerics  the parameter moves by the new states before they are rounded. The codes follow from the new states
//           exactly; a negative value never takes the code of 0. A block without an updated element is not written.
// Needs     nothing beyond the contract.
#include "cuda/codebooks.cuh"
#include "cuda/optimizer_step.cuh"
#include "kernels/optimizer_8bit.h"

namespace bnb::cuda {
namespace {

struct EightBitStates {
  static constexpr int kItems = 8, kThreads = 256;
  static constexpr int blocks_per_sm(UpdateRule rule) {
    return rule == UpdateRule::lamb || rule == UpdateRule::ademamix ? 2 : 3;
  }

  struct Tables {
    Values8bitTable signed_values, unsigned_values;
    DynamicEncoder<DynamicMap::signed_keep_sign> signed_codes;
    DynamicEncoder<DynamicMap::unsigned_state> unsigned_codes;
    __device__ void load() {
      signed_values.load(device_dynamic_map(true));
      unsigned_values.load(device_dynamic_map(false));
      signed_codes.load();
      unsigned_codes.load();
    }
  };
  static constexpr size_t kSharedBytes = sizeof(Tables);
  static_assert(kItems * kWarp == kOptimizerBlock);
  static constexpr uint32_t kZeros = decltype(Tables::signed_codes)::kZero * 0x01010101u;

  template <class Rule>
  __device__ static constexpr bool is_unsigned(int j) {
    return j >= Rule::kStates - Rule::kUnsigned;
  }

  // The bytes of a tile and where its scale lies.
  struct Block {
    uint8_t* codes;
    float* absmax;
  };
  template <class Rule>
  __device__ __forceinline__ static Block block(const OptimizerJob& job, int j, const Tile<kItems>& t) {
    if (is_unsigned<Rule>(j)) return {static_cast<uint8_t*>(job.state2) + t.at, job.absmax2 + t.index};
    const int64_t blocks = ceil_div(job.n, kOptimizerBlock);
    return {static_cast<uint8_t*>(job.state1) + j * job.n + t.at, job.absmax1 + j * blocks + t.index};
  }

  template <class Rule>
  struct Raw {
    uint32_t codes[Rule::kStates][kItems / 4];
    float absmax[Rule::kStates];
  };

  // Elements beyond the end have code 0, and do not matter.
  template <class Rule>
  __device__ __forceinline__ static Raw<Rule> fetch(const OptimizerJob& job, const Tile<kItems>& t) {
    Raw<Rule> raw;
#pragma unroll
    for (int j = 0; j < Rule::kStates; j++) {
      const Block b = block<Rule>(job, j, t);
      raw.absmax[j] = *b.absmax;
      if (t.whole(b.codes, 1)) {
        for (int h = 0; h < kItems / 4; h++)
          raw.codes[j][h] = load_vec<1>(reinterpret_cast<const uint32_t*>(t.mine(b.codes) + t.offset(4 * h))).v[0];
      } else {
#pragma unroll
        for (int h = 0; h < kItems / 4; h++) {
          raw.codes[j][h] = 0;
          for (int k = 0; k < 4; k++)
            if (t.has(4 * h + k))
              raw.codes[j][h] |= static_cast<uint32_t>(t.mine(b.codes)[t.offset(4 * h + k)]) << (8 * k);
        }
      }
    }
    return raw;
  }

  template <class Rule>
  __device__ __forceinline__ static void decode(const Tables& tables, const Raw<Rule>& raw, const Tile<kItems>& t,
                                                float (&s)[Rule::kStates][kItems]) {
#pragma unroll
    for (int j = 0; j < Rule::kStates; j++) {
      const Values8bitTable& values = is_unsigned<Rule>(j) ? tables.unsigned_values : tables.signed_values;
#pragma unroll
      for (int k = 0; k < kItems; k++) {
        const uint32_t code = raw.codes[j][k / 4] >> (8 * (k % 4)) & 255;
        s[j][k] = values.at(code, t.lane) * raw.absmax[j];
      }
    }
  }

  template <class Rule>
  __device__ __forceinline__ static bool aligned(const OptimizerJob& job) {
    uintptr_t bits = reinterpret_cast<uintptr_t>(job.state2);
    for (int j = 0; j < Rule::kStates - Rule::kUnsigned; j++)
      bits |= reinterpret_cast<uintptr_t>(static_cast<uint8_t*>(job.state1) + j * job.n);
    return bits % 8 == 0;
  }

  template <class Rule, int Run>
  struct Plain {
    uint8_t* codes[Rule::kStates];
    float* absmax[Rule::kStates];

    __device__ __forceinline__ Plain(const OptimizerJob& job, int lane) {
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) {
        const Block b = block<Rule>(job, j, Tile<kItems>(job, 0, lane));
        codes[j] = b.codes + lane * Run;
        absmax[j] = b.absmax;
      }
    }

    __device__ __forceinline__ void load(const Tables& tables, int tile, float (&s)[Rule::kStates][kItems]) const {
      const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) {
        const Values8bitTable& values = is_unsigned<Rule>(j) ? tables.unsigned_values : tables.signed_values;
        const auto* const from = reinterpret_cast<const uint32_t*>(codes[j] + int64_t{tile} * kOptimizerBlock);
        const float scale = absmax[j][tile];
#pragma unroll
        for (int i = 0; i < kItems; i += Run) {
          const auto words = load_vec<Run / 4>(from + i * kWarp / 4);
#pragma unroll
          for (int k = 0; k < Run; k++) s[j][i + k] = values.at(prmt(words.v[k / 4], 0, 0x4440 | k % 4), lane) * scale;
        }
      }
    }

    // Scales that are subnormal, not finite or of 2^126 and more are for step_tile.
    __device__ __forceinline__ bool plain(float (&top)[Rule::kStates], bool fine) const {
      bool all = !__any_sync(kFullMask, !fine);
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) {
        const uint32_t bits = warp_max(float_bits(top[j]));
        all = all && (bits == 0 || bits - kSmallestNormalBits < kLargeBits - kSmallestNormalBits);
        top[j] = float_from_bits(bits);
      }
      return all;
    }

    __device__ __forceinline__ void store(const Tables& tables, int tile, const float (&s)[Rule::kStates][kItems],
                                          const float (&top)[Rule::kStates]) const {
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) {
        auto* const to = reinterpret_cast<uint32_t*>(codes[j] + int64_t{tile} * kOptimizerBlock);
        const float inverse = top[j] == 0 ? 0.0f : reciprocal(top[j]);
        if (threadIdx.x % kWarp == 0) absmax[j][tile] = top[j];
#pragma unroll
        for (int i = 0; i < kItems; i += Run) {
          Vec<uint32_t, Run / 4> words;
#pragma unroll
          for (int k = 0; k < Run; k += 4) {
            if (is_unsigned<Rule>(j)) {
              words.v[k / 4] = tables.unsigned_codes.template word<true>(s[j] + i + k, inverse);
            } else {
              const uint32_t word = tables.signed_codes.template word<true>(s[j] + i + k, inverse);
              words.v[k / 4] = top[j] == 0 ? kZeros : word;  // also where a zero has a sign
            }
          }
          store_vec(to + i * kWarp / 4, words);
        }
      }
    }
  };

  template <class Rule>
  struct Single {
    uint8_t* codes[Rule::kStates];  // of the whole parameter
    float* absmax[Rule::kStates];   // of the tile
    float old[Rule::kStates];
    float raise[Rule::kStates], inverse[Rule::kStates];

    __device__ __forceinline__ Single(const OptimizerJob& job, int64_t tile) {
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) {
        const Block b = block<Rule>(job, j, Tile<kItems>(job, 0, 0));
        codes[j] = b.codes;
        absmax[j] = b.absmax + tile;
        old[j] = *absmax[j];
      }
    }
    __device__ __forceinline__ float load(const Tables& tables, int j, int64_t i) const {
      const Values8bitTable& values = is_unsigned<Rule>(j) ? tables.unsigned_values : tables.signed_values;
      return values.at(codes[j][i], threadIdx.x) * old[j];
    }
    // The code is that of x * (1 / scale). Where the reciprocal of a subnormal scale could overflow, both are raised
    // alike, which is within 2 ulp of x / scale; where there is no scale, everything becomes 0.
    __device__ __forceinline__ void set_scales(const float (&top)[Rule::kStates]) {
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) {
        const uint32_t bits = warp_max(float_bits(top[j]));
        const bool scaled = bits != 0 && bits < kInfinityBits;
        raise[j] = !scaled ? 0.0f : bits < kSmallestNormalBits ? 0x1p64f : 1.0f;
        inverse[j] = scaled ? 1.0f / (float_from_bits(bits) * raise[j]) : 0.0f;
        if (threadIdx.x % kWarp == 0) *absmax[j] = float_from_bits(bits < kInfinityBits ? bits : kNanBits);
      }
    }
    __device__ __forceinline__ void store(const Tables& tables, int j, int64_t i, float x) const {
      // A zero without a sign, whatever x is.
      const float value = raise[j] != 0 ? x * raise[j] * inverse[j] : 0.0f;
      codes[j][i] = static_cast<uint8_t>(is_unsigned<Rule>(j) ? tables.unsigned_codes.code(value)
                                                              : tables.signed_codes.code(value));
    }
  };
};

}  // namespace

void optimizer_8bit(const OptimizerArgs& a, CudaStream& s) { optimizer_step<EightBitStates>(a, s); }

}  // namespace bnb::cuda
