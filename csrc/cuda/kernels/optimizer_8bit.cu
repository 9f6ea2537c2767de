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
  __device__ __forceinline__ static void store(const Tables& tables, const OptimizerJob& job, const Tile<kItems>& t,
                                               float (&s)[Rule::kStates][kItems]) {
#pragma unroll
    for (int j = 0; j < Rule::kStates; j++) {
      const Block b = block<Rule>(job, j, t);
      if constexpr (Rule::kUnsigned == 0) {
        encode(tables.signed_codes, s[j], b, t);
      } else if (is_unsigned<Rule>(j)) {
        encode(tables.unsigned_codes, s[j], b, t);
      } else {
        encode(tables.signed_codes, s[j], b, t);
      }
    }
  }

  // The codes of a block by the exact rule code(x * (1 / scale)), and its scale.
  template <class Encoder>
  __device__ __forceinline__ static void encode(const Encoder& encoder, float (&x)[kItems], const Block& b,
                                                const Tile<kItems>& t) {
    uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < kItems; k++)
      if (t.has(k)) bits = max(bits, float_bits(x[k]) & kMagnitudeMask);
    bits = warp_reduce(bits, Max{});
    uint32_t codes[kItems / 4];
    if (bits == 0 || bits >= kInfinityBits) {
      for (int h = 0; h < kItems / 4; h++) codes[h] = Encoder::kZero * 0x01010101u;
      if (bits != 0) bits = kNanBits;
    } else {
      // Within 2 ulp of x / scale for subnormal ones, whose reciprocal could overflow: both are raised alike.
      float scale = float_from_bits(bits);
      if (bits < kSmallestNormalBits) {
        scale *= 0x1p64f;
#pragma unroll
        for (int k = 0; k < kItems; k++) x[k] *= 0x1p64f;
      }
      const float inverse = 1.0f / scale;
#pragma unroll
      for (int h = 0; h < kItems / 4; h++) {
        codes[h] = 0;
        for (int k = 0; k < 4; k++) codes[h] |= encoder.code(x[4 * h + k] * inverse) << (8 * k);
      }
    }
    if (t.lane == 0) *b.absmax = float_from_bits(bits);
    if (t.whole(b.codes, 1)) {
      for (int h = 0; h < kItems / 4; h++)
        store_vec(reinterpret_cast<uint32_t*>(t.mine(b.codes) + t.offset(4 * h)), Vec<uint32_t, 1>{{codes[h]}});
    } else {
#pragma unroll
      for (int k = 0; k < kItems; k++)
        if (t.has(k)) t.mine(b.codes)[t.offset(k)] = static_cast<uint8_t>(codes[k / 4] >> (8 * (k % 4)));
    }
  }
};

}  // namespace

void optimizer_8bit(const OptimizerArgs& a, CudaStream& s) { optimizer_step<EightBitStates>(a, s); }

}  // namespace bnb::cuda
