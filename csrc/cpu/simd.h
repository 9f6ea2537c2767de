// The vectors that CPU kernels are written with: F32, I32 and Mask of the native width of the ISA level the
// file is compiled for. Every function has internal linkage and is inlined, so that nothing compiled for a
// wide ISA can be linked into the baseline.
//
// What each level defines, in its own file:
//   F32 I32 Mask                      F32::width lanes
//   zero set1 load store load_n store_n       float, f16, bf16; round to nearest even, NaN stays NaN;
//                                             load_n reads n <= width lanes and sets the rest to 0
//   + - * / -x fma fnma               fma(a,b,c) = a*b + c, fnma(a,b,c) = c - a*b (two roundings at base)
//   min max abs sqrt round floor      min and max return b when either is NaN
//   lt le gt ge eq ne is_nan select   comparisons give a Mask; & | ~ any all bits first_n combine them
//   reduce_add reduce_max reduce_min
//   to_i32 (nearest even) truncate_i32 to_f32 bitcast
//   zero_i32 set1_i32 iota_i32 load_i32 store load_u8 load_i8 store_u8 store_i8 (+ _n) gather
//   + - * & | ^ shl shr (logical) sar (arithmetic) lt gt eq min max reduce_add on I32
//   multiplies_bytes add_byte_products        products of bytes; from AVX2 on, where the CPU has the instruction
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"

#if defined(__x86_64__) || defined(_M_X64)
// GCC 12's AVX-512 header initializes its "undefined" vectors with themselves and then warns about it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#if BNB_ISA_LEVEL >= 2
#include "cpu/simd_avx512.h"
#elif BNB_ISA_LEVEL == 1
#include "cpu/simd_avx2.h"
#else
#include "cpu/simd_sse2.h"
#endif
#else
#include <arm_neon.h>

#include "cpu/simd_neon.h"
#endif

namespace bnb::BNB_ISA {
namespace {

BNB_INLINE F32 abs(F32 x) { return bitcast(bitcast(x) & set1_i32(0x7fffffff)); }
// The magnitude of x with the sign of s.
BNB_INLINE F32 copysign(F32 x, F32 s) {
  const I32 sign = set1_i32(INT32_MIN);
  return bitcast((bitcast(x) & set1_i32(0x7fffffff)) | (bitcast(s) & sign));
}
BNB_INLINE Mask is_nan(F32 x) { return ne(x, x); }
BNB_INLINE F32& operator+=(F32& a, F32 b) { return a = a + b; }
BNB_INLINE F32& operator-=(F32& a, F32 b) { return a = a - b; }
BNB_INLINE F32& operator*=(F32& a, F32 b) { return a = a * b; }
BNB_INLINE I32& operator+=(I32& a, I32 b) { return a = a + b; }

template <class T>
BNB_INLINE constexpr T smaller(T a, T b) {
  return a < b ? a : b;
}

// How far ahead of its use what comes from memory is asked for, at least, in bytes.
constexpr int64_t kAhead = 8192;

// A vector that several instructions take from one register: the compiler would give each of them a load of its own,
// and AVX-512 multiplies as fast as it loads.
BNB_INLINE F32 held(F32 x) {
#if BNB_ISA_LEVEL == 2
  asm("" : "+v"(x.v));
#endif
  return x;
}

// The first n lanes; the whole vector without the slower partial access.
template <class T>
BNB_INLINE F32 load_part(const T* p, int64_t n) {
  return n == F32::width ? load(p) : load_n(p, n);
}
template <class T>
BNB_INLINE void store_part(T* p, F32 v, int64_t n) {
  if (n == F32::width) {
    store(p, v);
  } else {
    store_n(p, v, n);
  }
}

}  // namespace
}  // namespace bnb::BNB_ISA
