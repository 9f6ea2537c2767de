// The update rules of the optimizers, written once for the CPU's vectors and for a lane of a GPU: each takes the old
// states and the gradient, leaves the new states in s and returns the direction, so that
// p <- p * decay - step * direction. One struct per rule, no branches on it.
//
// F is what a target computes with: it has + * / on F and, found by argument, fma sqrt select lt.
#pragma once
#include "kernels/optimizer_32bit.h"

namespace bnb {

// The scalars as F. set1 makes an F of a float.
template <class F>
struct RuleConstants {
  F zero, one;
  F beta1, rest1, beta2, rest2, beta3, rest3, alpha, inv_c1, inv_c2, eps, weight_decay, ratio;
  bool first;

  template <class Set1>
  BNB_INLINE RuleConstants(const OptimizerScalars& c, float trust_ratio, const Set1& set1)
      : zero(set1(0.0f)),
        one(set1(1.0f)),
        beta1(set1(c.beta1)),
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
  static constexpr UpdateRule kRule = UpdateRule::adam;
  static constexpr int kStates = 2, kUnsigned = 1;
  template <class F>
  BNB_INLINE static F direction(const RuleConstants<F>& c, F, F g, F* s) {
    s[0] = fma(c.beta1, s[0], c.rest1 * g);
    s[1] = fma(c.beta2, s[1], (c.rest2 * g) * g);
    return s[0] / (sqrt(s[1]) + c.eps);
  }
};

// The published LAMB: decay is part of the direction, whose length the trust ratio sets.
struct LambRule {
  static constexpr UpdateRule kRule = UpdateRule::lamb;
  static constexpr int kStates = 2, kUnsigned = 1;
  template <class F>
  BNB_INLINE static F direction(const RuleConstants<F>& c, F p, F g, F* s) {
    s[0] = fma(c.beta1, s[0], c.rest1 * g);
    s[1] = fma(c.beta2, s[1], (c.rest2 * g) * g);
    return fma(c.weight_decay, p, (s[0] * c.inv_c1) / fma(sqrt(s[1]), c.inv_c2, c.eps));
  }
};

struct AdEMAMixRule {
  static constexpr UpdateRule kRule = UpdateRule::ademamix;
  static constexpr int kStates = 3, kUnsigned = 1;
  template <class F>
  BNB_INLINE static F direction(const RuleConstants<F>& c, F, F g, F* s) {
    s[0] = fma(c.beta1, s[0], c.rest1 * g);
    s[1] = fma(c.beta3, s[1], c.rest3 * g);
    s[2] = fma(c.beta2, s[2], (c.rest2 * g) * g);
    return fma(c.alpha, s[1], s[0] * c.inv_c1) / fma(sqrt(s[2]), c.inv_c2, c.eps);
  }
};

struct LionRule {
  static constexpr UpdateRule kRule = UpdateRule::lion;
  static constexpr int kStates = 1, kUnsigned = 0;
  template <class F>
  BNB_INLINE static F direction(const RuleConstants<F>& c, F, F g, F* s) {
    const F mix = fma(c.beta1, s[0], c.rest1 * g);
    s[0] = fma(c.beta2, s[0], c.rest2 * g);
    return select(lt(c.zero, mix), c.one, select(lt(mix, c.zero), c.zero - c.one, c.zero));
  }
};

struct MomentumRule {
  static constexpr UpdateRule kRule = UpdateRule::momentum;
  static constexpr int kStates = 1, kUnsigned = 0;
  template <class F>
  BNB_INLINE static F direction(const RuleConstants<F>& c, F p, F g, F* s) {
    const F d = fma(c.weight_decay, p, g);
    s[0] = c.first ? d : fma(c.beta1, s[0], d);
    return s[0];
  }
};

// The published LARS: the trust ratio scales the gradient before it enters the momentum.
struct LarsRule {
  static constexpr UpdateRule kRule = UpdateRule::lars;
  static constexpr int kStates = 1, kUnsigned = 0;
  template <class F>
  BNB_INLINE static F direction(const RuleConstants<F>& c, F p, F g, F* s) {
    const F d = c.ratio * fma(c.weight_decay, p, g);
    s[0] = c.first ? d : fma(c.beta1, s[0], d);
    return s[0];
  }
};

struct RMSpropRule {
  static constexpr UpdateRule kRule = UpdateRule::rmsprop;
  static constexpr int kStates = 1, kUnsigned = 0;
  template <class F>
  BNB_INLINE static F direction(const RuleConstants<F>& c, F p, F g, F* s) {
    const F d = fma(c.weight_decay, p, g);
    s[0] = fma(c.beta1, s[0], (c.rest1 * d) * d);
    return d / (sqrt(s[0]) + c.eps);
  }
};

struct AdagradRule {
  static constexpr UpdateRule kRule = UpdateRule::adagrad;
  static constexpr int kStates = 1, kUnsigned = 0;
  template <class F>
  BNB_INLINE static F direction(const RuleConstants<F>& c, F p, F g, F* s) {
    const F d = fma(c.weight_decay, p, g);
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

// The largest float32 that is finite when it is rounded to a parameter's dtype.
constexpr float kLargestFloat = 3.402823466e+38f;
template <class T>
constexpr float kLargest = kLargestFloat;
template <>
inline constexpr float kLargest<f16> = 65519.996f;
template <>
inline constexpr float kLargest<bf16> = 3.3961773e+38f;

BNB_INLINE float largest(DType dtype) {
  return dtype == DType::float16 ? kLargest<f16> : dtype == DType::bfloat16 ? kLargest<bf16> : kLargestFloat;
}

// The scale of the update (lars: of the gradient) that the norms of the parameter and of the direction ask for. NaN
// where a sum of squares has overflown: then no element is updated, and all are counted.
BNB_INLINE float scale_from_norms(const OptimizerJob& job, double p, double direction) {
  const OptimizerScalars& k = job.scalars;
  const double u = direction * static_cast<double>(k.factor);
  if (job.unorm != nullptr) *job.unorm = static_cast<float>(u);
  if (!(p <= static_cast<double>(kLargestFloat) && u <= static_cast<double>(kLargestFloat))) return __builtin_nanf("");
  if (p == 0 || u == 0) return 1.0f;
  if (job.rule == UpdateRule::lamb) return static_cast<float>(p / u);
  const double limit = static_cast<double>(k.max_unorm) * p;
  if (job.rule == UpdateRule::lars)
    return static_cast<float>(limit / (u + static_cast<double>(k.weight_decay) * p + static_cast<double>(k.norm_eps)));
  const double scale = (limit + static_cast<double>(k.norm_eps)) / u;
  return scale < 1 ? static_cast<float>(scale) : 1.0f;
}

// Which job a chunk belongs to.
BNB_INLINE int64_t job_of_chunk(const OptimizerArgs& a, int64_t chunk) {
  int64_t low = 0, high = a.job_count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.jobs[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return low;
}

}  // namespace bnb
