// exp, log, log1p, tanh, erf and sigmoid on F32, within about 2 ulp where fma is fused, NaN and infinities as in libm.
// The polynomials are weighted minimax fits over the reduced ranges.
#pragma once
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

// e^x = 2^n * e^r, |r| <= ln(2)/2.
BNB_INLINE F32 exp(F32 x) {
  // The order of operands lets NaN through.
  x = min(set1(90.0f), max(set1(-105.0f), x));
  const F32 n = round(x * set1(1.44269504f));
  // ln 2 in two parts, the first with so few bits that n times it is exact.
  F32 r = fnma(n, set1(0.693359375f), x);
  r = fnma(n, set1(-2.12194440e-4f), r);
  F32 p = set1(0.00139421609f);
  p = fma(p, r, set1(0.00836377591f));
  p = fma(p, r, set1(0.0416663624f));
  p = fma(p, r, set1(0.166665733f));
  p = fma(p, r, set1(0.5f));
  p = fma(p * r, r, r) + set1(1.0f);
  // Two factors, so that results near the ends of the range round to subnormals and infinity by themselves.
  const I32 k = to_i32(n);
  const I32 half = sar(k, 1);
  const F32 s1 = bitcast(shl(half + set1_i32(127), 23));
  const F32 s2 = bitcast(shl(k - half + set1_i32(127), 23));
  return p * s1 * s2;
}

// log(2^n * (1+f)) with 1+f in [sqrt(1/2), sqrt(2)).
BNB_INLINE F32 log(F32 x) {
  const Mask subnormal = lt(x, set1(1.17549435e-38f));
  const F32 scaled = select(subnormal, x * set1(33554432.0f), x);
  const I32 offset = bitcast(scaled) - set1_i32(0x3f3504f3);  // bits of sqrt(1/2)
  F32 n = to_f32(sar(offset, 23));
  n = n - select(subnormal, set1(25.0f), zero());
  const F32 f = bitcast((offset & set1_i32(0x7fffff)) + set1_i32(0x3f3504f3)) - set1(1.0f);
  F32 p = set1(0.0672805384f);
  p = fma(p, f, set1(-0.114857353f));
  p = fma(p, f, set1(0.11788249f));
  p = fma(p, f, set1(-0.124332026f));
  p = fma(p, f, set1(0.14238663f));
  p = fma(p, f, set1(-0.166669399f));
  p = fma(p, f, set1(0.200009808f));
  p = fma(p, f, set1(-0.250000149f));
  p = fma(p, f, set1(0.333333343f));
  const F32 square = f * f;
  F32 low = fma(p * f, square, n * set1(-2.12194440e-4f));
  low = fma(set1(-0.5f), square, low);
  F32 y = fma(n, set1(0.693359375f), f + low);
  const F32 infinity = set1(__builtin_inff());
  y = select(lt(x, infinity), y, x);  // infinity and NaN
  y = select(lt(x, zero()), set1(__builtin_nanf("")), y);
  return select(eq(x, zero()), -infinity, y);
}

// log(1 + u) for u >= 0: what is lost in rounding 1 + u comes back as the first term of the series.
BNB_INLINE F32 log1p(F32 u) {
  const F32 w = set1(1.0f) + u;
  const F32 lost = u - (w - set1(1.0f));
  return log(w) + lost / w;
}

BNB_INLINE F32 sigmoid(F32 x) {
  const F32 e = exp(-abs(x));
  return select(lt(x, zero()), e, set1(1.0f)) / (set1(1.0f) + e);
}

BNB_INLINE F32 tanh(F32 x) {
  const F32 a = abs(x);
  const F32 z = x * x;
  F32 p = set1(0.00214753696f);
  p = fma(p, z, set1(-0.00818267372f));
  p = fma(p, z, set1(0.0217029676f));
  p = fma(p, z, set1(-0.0539472029f));
  p = fma(p, z, set1(0.133332103f));
  p = fma(p, z, set1(-0.333333313f));
  const F32 small = fma(p * z, x, x);
  const F32 large = set1(1.0f) - set1(2.0f) / (exp(a + a) + set1(1.0f));
  return select(lt(a, set1(0.625f)), small, copysign(large, x));
}

BNB_INLINE F32 erf(F32 x) {
  const F32 a = min(set1(4.0f), abs(x));  // erf rounds to 1 from 3.92 on; NaN passes
  const F32 z = a * a;
  F32 p = set1(-9.68013774e-06f);
  p = fma(p, z, set1(0.000112705449f));
  p = fma(p, z, set1(-0.000848471129f));
  p = fma(p, z, set1(0.00522107491f));
  p = fma(p, z, set1(-0.0268654451f));
  p = fma(p, z, set1(0.112837829f));
  p = fma(p, z, set1(-0.376126379f));
  p = fma(p, z, set1(0.128379167f));
  const F32 small = fma(p, x, x);
  F32 q = set1(8.74569139e-07f);
  q = fma(q, a, set1(-1.39692211e-05f));
  q = fma(q, a, set1(7.54721696e-05f));
  q = fma(q, a, set1(5.50142468e-05f));
  q = fma(q, a, set1(-0.00323645095f));
  q = fma(q, a, set1(0.0236219354f));
  q = fma(q, a, set1(-0.10671813f));
  q = fma(q, a, set1(-0.634370387f));
  q = fma(q, a, set1(-1.12913227f));
  q = fma(q, a, set1(0.000112465088f));
  const F32 large = copysign(set1(1.0f) - exp(q), x);
  return select(lt(a, set1(1.0f)), small, large);
}

}  // namespace
}  // namespace bnb::BNB_ISA
