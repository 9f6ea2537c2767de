// The update rules on vectors of float32: each takes the old states and the gradient, leaves the new states in
// s and returns the direction, so that p <- p * decay - step * direction. One struct per rule, no branches on it.
#pragma once
#include "cpu/simd.h"
#include "kernels/optimizer_32bit.h"

namespace bnb::BNB_ISA {
namespace {

// The scalars, broadcast once per run of tiles.
struct RuleConstants {
  F32 beta1, rest1, beta2, rest2, beta3, rest3, alpha, inv_c1, inv_c2, eps, weight_decay, ratio;
  bool first;

  RuleConstants(const OptimizerScalars& c, float trust_ratio)
      : beta1(set1(c.beta1)),
        rest1(set1(c.rest1)),
        beta2(set1(c.beta2)),
        rest2(set1(c.rest2)),
        beta3(set1(c.beta3)),
        rest3(set1(c.rest3)),
        alpha(set1(c.alpha)),
        inv_c1(set1(c.inv_c1)),
        inv_c2(set1(c.inv_c2)),
        eps(set1(c.eps)),
        weight_decay(set1(c.weight_decay)),
        ratio(set1(trust_ratio)),
        first(c.first != 0) {}
};

// kStates states, of which the last kUnsigned live in state2 and are never negative.
struct AdamRule {
  static constexpr int kStates = 2, kUnsigned = 1;
  BNB_INLINE static F32 direction(const RuleConstants& c, F32, F32 g, F32* s) {
    s[0] = fma(c.beta1, s[0], c.rest1 * g);
    s[1] = fma(c.beta2, s[1], (c.rest2 * g) * g);
    return s[0] / (sqrt(s[1]) + c.eps);
  }
};

// The published LAMB: decay is part of the direction, whose length the trust ratio sets.
struct LambRule {
  static constexpr int kStates = 2, kUnsigned = 1;
  BNB_INLINE static F32 direction(const RuleConstants& c, F32 p, F32 g, F32* s) {
    s[0] = fma(c.beta1, s[0], c.rest1 * g);
    s[1] = fma(c.beta2, s[1], (c.rest2 * g) * g);
    return fma(c.weight_decay, p, (s[0] * c.inv_c1) / fma(sqrt(s[1]), c.inv_c2, c.eps));
  }
};

struct AdEMAMixRule {
  static constexpr int kStates = 3, kUnsigned = 1;
  BNB_INLINE static F32 direction(const RuleConstants& c, F32, F32 g, F32* s) {
    s[0] = fma(c.beta1, s[0], c.rest1 * g);
    s[1] = fma(c.beta3, s[1], c.rest3 * g);
    s[2] = fma(c.beta2, s[2], (c.rest2 * g) * g);
    return fma(c.alpha, s[1], s[0] * c.inv_c1) / fma(sqrt(s[2]), c.inv_c2, c.eps);
  }
};

struct LionRule {
  static constexpr int kStates = 1, kUnsigned = 0;
  BNB_INLINE static F32 direction(const RuleConstants& c, F32, F32 g, F32* s) {
    const F32 mix = fma(c.beta1, s[0], c.rest1 * g);
    s[0] = fma(c.beta2, s[0], c.rest2 * g);
    return select(lt(zero(), mix), set1(1.0f), select(lt(mix, zero()), set1(-1.0f), zero()));
  }
};

struct MomentumRule {
  static constexpr int kStates = 1, kUnsigned = 0;
  BNB_INLINE static F32 direction(const RuleConstants& c, F32 p, F32 g, F32* s) {
    const F32 d = fma(c.weight_decay, p, g);
    s[0] = c.first ? d : fma(c.beta1, s[0], d);
    return s[0];
  }
};

// The published LARS: the trust ratio scales the gradient before it enters the momentum.
struct LarsRule {
  static constexpr int kStates = 1, kUnsigned = 0;
  BNB_INLINE static F32 direction(const RuleConstants& c, F32 p, F32 g, F32* s) {
    const F32 d = c.ratio * fma(c.weight_decay, p, g);
    s[0] = c.first ? d : fma(c.beta1, s[0], d);
    return s[0];
  }
};

struct RMSpropRule {
  static constexpr int kStates = 1, kUnsigned = 0;
  BNB_INLINE static F32 direction(const RuleConstants& c, F32 p, F32 g, F32* s) {
    const F32 d = fma(c.weight_decay, p, g);
    s[0] = fma(c.beta1, s[0], (c.rest1 * d) * d);
    return d / (sqrt(s[0]) + c.eps);
  }
};

struct AdagradRule {
  static constexpr int kStates = 1, kUnsigned = 0;
  BNB_INLINE static F32 direction(const RuleConstants& c, F32 p, F32 g, F32* s) {
    const F32 d = fma(c.weight_decay, p, g);
    s[0] = fma(d, d, s[0]);
    return d / (sqrt(s[0]) + c.eps);
  }
};

// Calls f with a value of the rule's type.
template <class F>
BNB_INLINE void visit_rule(UpdateRule rule, const F& f) {
  switch (rule) {
    case UpdateRule::adam: return f(AdamRule{});
    case UpdateRule::ademamix: return f(AdEMAMixRule{});
    case UpdateRule::lion: return f(LionRule{});
    case UpdateRule::momentum: return f(MomentumRule{});
    case UpdateRule::rmsprop: return f(RMSpropRule{});
    case UpdateRule::adagrad: return f(AdagradRule{});
    case UpdateRule::lamb: return f(LambRule{});
    case UpdateRule::lars: return f(LarsRule{});
  }
}

}  // namespace
}  // namespace bnb::BNB_ISA
