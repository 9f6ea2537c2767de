// One optimizer step with 8-bit states: a tile is the block of 256 elements that shares a scale, decoded,
// updated and encoded in the first-level cache.
//
// Layout    codes [n] and scales [blocks] for state1 and state2; AdEMAMix has two rows of each in state1, and the
//           blocks of its second row start at that row's first element.
// Work      cpu/optimizer_step.h. More than half of the time is table look-ups.
// Numerics  the parameter moves by the new states before they are rounded. The codes follow from the new states
//           exactly; a negative value never takes the code of 0. A block without an updated element is not written.
// Needs     nothing beyond the contract.
#include "kernels/optimizer_8bit.h"

#include "cpu/dynamic_map.h"
#include "cpu/optimizer_step.h"

namespace bnb::BNB_ISA {
namespace {

struct EightBitStates {
  struct Block {
    uint8_t* codes;
    float* absmax;
  };

  template <class Rule>
  static constexpr bool is_unsigned(int k) {
    return k >= Rule::kStates - Rule::kUnsigned;
  }

  template <class Rule>
  BNB_INLINE static Block block(const OptimizerJob& job, int k, int64_t index) {
    const int64_t blocks = (job.n + kTile - 1) / kTile;
    if (is_unsigned<Rule>(k)) return {static_cast<uint8_t*>(job.state2) + index * kTile, job.absmax2 + index};
    return {static_cast<uint8_t*>(job.state1) + k * job.n + index * kTile, job.absmax1 + k * blocks + index};
  }

  template <class Rule>
  static void open(const OptimizerJob& job, Tile& t) {
    for (int k = 0; k < Rule::kStates; k++) {
      const Block b = block<Rule>(job, k, t.index);
      t.s[k] = t.buffer[2 + k];
      decode_scaled(is_unsigned<Rule>(k) ? kDynamicUnsigned : kDynamicSigned, b.codes, *b.absmax, t.s[k], t.n);
      for (int i = t.n; i < kTile; i++) t.s[k][i] = 0;
    }
  }

  template <class Rule>
  static void close(const OptimizerJob& job, const Tile& t) {
    alignas(64) float scratch[kTile];
    for (int k = 0; k < Rule::kStates; k++) {
      const Block b = block<Rule>(job, k, t.index);
      *b.absmax = is_unsigned<Rule>(k) ? encode_block<DynamicMap::unsigned_map>(t.s[k], b.codes, t.n, scratch)
                                       : encode_block<DynamicMap::signed_keep_sign>(t.s[k], b.codes, t.n, scratch);
    }
  }
};

}  // namespace

void optimizer_8bit(const OptimizerArgs& a) { optimizer_step<EightBitStates>(a); }

}  // namespace bnb::BNB_ISA
