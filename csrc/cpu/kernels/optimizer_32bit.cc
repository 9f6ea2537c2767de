// One optimizer step with float32 states, updated where they are.
//
// Layout    state1 [n] ([2, n] for AdEMAMix), state2 [n].
// Work      cpu/optimizer_step.h; bound by memory (AdamW on float32: 28 bytes an element).
// Numerics  kernels/optimizer_rules.h.
// Needs     nothing beyond the contract.
#include "kernels/optimizer_32bit.h"

#include "cpu/optimizer_step.h"

namespace bnb::BNB_ISA {
namespace {

struct Float32States {
  template <class Rule>
  BNB_INLINE static float* state(const OptimizerJob& job, int k) {
    if (k >= Rule::kStates - Rule::kUnsigned) return static_cast<float*>(job.state2);
    return static_cast<float*>(job.state1) + k * job.n;
  }

  template <class Rule>
  static void open(const OptimizerJob& job, Tile& t) {
    for (int k = 0; k < Rule::kStates; k++) {
      float* s = state<Rule>(job, k) + t.index * kTile;
      t.s[k] = s;
      if (t.n == kTile) continue;
      widen(s, t.n, t.buffer[2 + k], 0.0f);
      t.s[k] = t.buffer[2 + k];
    }
  }

  template <class Rule>
  static void close(const OptimizerJob& job, const Tile& t) {
    if (t.n == kTile) return;
    for (int k = 0; k < Rule::kStates; k++) narrow(t.s[k], t.n, state<Rule>(job, k) + t.index * kTile);
  }
};

}  // namespace

void optimizer_32bit(const OptimizerArgs& a) { optimizer_step<Float32States>(a); }

}  // namespace bnb::BNB_ISA
