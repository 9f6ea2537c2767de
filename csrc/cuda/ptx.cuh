// The PTX instructions that kernels use, by name, each with a body for the emulated device. Nothing else in the
// project contains inline assembly but the conversions in convert.cuh.
//
// Fragments are those of the PTX manual: with g = lane / 4 and t = lane % 4,
//   m16n8k16 (16-bit)  a[0] rows g, k 2t..2t+1   a[1] row g+8   a[2], a[3] the same at k + 8
//                      b[0] column g, k 2t..2t+1                b[1] at k + 8
//                      d[0], d[1] row g, columns 2t, 2t+1       d[2], d[3] row g + 8
//   m16n8k32 (int8)    the same with four bytes in place of two halves, k 4t..4t+3 and k + 16
//   m16n8k8 (16-bit)   a[0] row g, a[1] row g+8, b[0], k 2t..2t+1;  m8n8k16 (int8): a row g, b column g, k 4t..4t+3
#pragma once
#include "cuda/kernel.cuh"

namespace bnb::cuda {

// Whether the code is for compute capability 8.0 or later: a kernel that needs it is left empty for others.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kSm80 = false;
#else
constexpr bool kSm80 = true;
#endif

// --- bytes and shared memory -----------------------------------------------------------------------------------------

// Byte i of the result is byte (selector >> 4 i) & 7 of the eight bytes b:a, a the low ones.
__device__ __forceinline__ uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

// x < 256, as a number of which the compiler does not know how it came about: else it takes a mask that was applied
// before a loop into the loop again, where it may cost an instruction per use.
__device__ __forceinline__ uint32_t settled_byte(uint32_t x) {
#if !defined(__CUDACC__)
  return x;
#else
  uint32_t y;
  asm("prmt.b32 %0, %1, 0, 0x4440;" : "=r"(y) : "r"(x));
  return y;
#endif
}

// The value of the lane whose number has the bits `Kept` of this one's and otherwise those of `other`. A constant costs
// no register.
template <uint32_t Kept>
__device__ __forceinline__ float shuffle_keeping(float v, uint32_t other) {
#if !defined(__CUDACC__)
  return __shfl_sync(kFullMask, v, (static_cast<uint32_t>(::simt::lane()) & Kept) | (other & ~Kept & 31));
#else
  float r;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, %3, 0xffffffff;" : "=f"(r) : "f"(v), "r"(other), "n"(Kept << 8 | 31));
  return r;
#endif
}

#if defined(__CUDACC__)
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

// Copies 16 bytes from global to shared memory; with valid = false writes zeros and reads nothing. Both addresses
// must be multiples of 16. The bytes are there after cp_async_wait and a barrier.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
#if !defined(__CUDACC__)
  ::simt::cp_async(shared, global, 16, valid);
#elif __CUDA_ARCH__ >= 800
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
#else
  const uint4 zero = {0, 0, 0, 0};
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : zero;
#endif
}

// Closes a group: all copies since the last commit.
__device__ __forceinline__ void cp_async_commit() {
#if !defined(__CUDACC__)
  ::simt::cp_async_commit();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most N of this thread's groups are under way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
#if !defined(__CUDACC__)
  ::simt::cp_async_wait(N);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// from + a * b, put together where it is used: of plain arithmetic in a loop the compiler keeps the parts of all turns
// in registers.
__device__ __forceinline__ const uint8_t* offset_by(const uint8_t* from, uint32_t a, uint32_t b) {
#if !defined(__CUDACC__)
  return from + uint64_t{a} * b;
#else
  const uint8_t* r;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(r) : "r"(a), "r"(b), "l"(from));
  return r;
#endif
}

// 4 or 8 bytes of global memory that are read once: they pass the first cache by and bring their 128-byte line into
// the second. Nothing may write them during the launch.
template <int Words>
__device__ __forceinline__ Vec<uint32_t, Words> load_once(const void* from) {
  static_assert(Words == 1 || Words == 2);
#if !defined(__CUDACC__)
  return load_vec<Words>(static_cast<const uint32_t*>(from));
#else
  Vec<uint32_t, Words> r;
  if constexpr (Words == 1)
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.b32 %0, [%1];" : "=r"(r.v[0]) : "l"(from));
  else
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.b32 {%0,%1}, [%2];"
                 : "=r"(r.v[0]), "=r"(r.v[1])
                 : "l"(from));
  return r;
#endif
}

// 16 bytes of shared memory, in the order of the program: a compiler that sees many of these moves them together and
// runs out of registers.
__device__ __forceinline__ Vec<uint32_t, 4> load_shared_in_order(const void* from) {
#if !defined(__CUDACC__)
  return load_vec<4>(static_cast<const uint32_t*>(from));
#else
  Vec<uint32_t, 4> r;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.v[0]), "=r"(r.v[1]), "=r"(r.v[2]), "=r"(r.v[3])
               : "r"(shared_address(from))
               : "memory");
  return r;
#endif
}

// 16 bytes of shared memory into r, where `wanted`; without a branch, and r is kept elsewhere.
__device__ __forceinline__ void load_shared_if(bool wanted, uint32_t* r, const void* from) {
#if !defined(__CUDACC__)
  if (!wanted) return;
  const Vec<uint32_t, 4> v = load_vec<4>(static_cast<const uint32_t*>(from));
  for (int i = 0; i < 4; i++) r[i] = v.v[i];
#else
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %5, 0;\n @p ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];\n}"
               : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3])
               : "r"(shared_address(from)), "r"(static_cast<uint32_t>(wanted)));
#endif
}

// Two numbers rounded to f16 or bf16, the first in the low half. One register from the start: of two halves some
// compilers make three more instructions.
template <class T>
__device__ __forceinline__ uint32_t packed_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t r;
  if constexpr (__is_same(T, bf16))
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  T x, y;
  narrow_pair<T>(low, high, x, y);
  return x.bits | static_cast<uint32_t>(y.bits) << 16;
#endif
}

// 16 bytes of global memory in one store, which the compiler may make of a Vec, or may not. Nothing of the launch reads
// them.
__device__ __forceinline__ void store_global16(void* to, const Vec<uint32_t, 4>& words) {
#if !defined(__CUDACC__)
  store_vec(static_cast<uint32_t*>(to), words);
#else
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.v[0]),
               "r"(words.v[1]), "r"(words.v[2]), "r"(words.v[3]));
#endif
}

// Four 8x8 matrices of 16-bit elements: lane l passes the address of row l % 8 of matrix l / 8, 16 bytes aligned;
// lane l gets elements 2 (l % 4), +1 of row l / 4 of each. With transpose, of column l / 4.
template <bool Transpose = false>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#if !defined(__CUDACC__)
  ::simt::ldmatrix(r, 4, row, Transpose);
#else
  if constexpr (Transpose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// --- arithmetic ------------------------------------------------------------------------------------------------------

// a / b within 2 ulp, x^(1/2) within 1 ulp: half the instructions of the exact ones, and no call for rare operands,
// around which every register would have to be kept.
__device__ __forceinline__ float divide_approx(float a, float b) {
#if !defined(__CUDACC__)
  return a / b;
#else
  float y;
  asm("div.full.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#endif
}
__device__ __forceinline__ float sqrt_approx(float x) {
#if !defined(__CUDACC__)
  return sqrtf(x);
#else
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// 1 / x rounded correctly, for normal x below 2^126: what the compiler makes of 1.0f / x without the call for others.
__device__ __forceinline__ float reciprocal(float x) {
#if !defined(__CUDACC__)
  return 1.0f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return fmaf(y, fmaf(-x, y, 1.0f), y);
#endif
}

// The larger of |a| and |b|; a NaN wins.
__device__ __forceinline__ float max_magnitude(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(fabsf(a)), "f"(fabsf(b)));
  return y;
#else
  // Bit patterns order like the magnitudes, with NaN on top.
  const uint32_t x = float_bits(fabsf(a)), y = float_bits(fabsf(b));
  return float_from_bits(x > y ? x : y);
#endif
}

// The largest of a warp, for every lane.
__device__ __forceinline__ uint32_t warp_max(uint32_t x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kFullMask, x);
#else
  return warp_reduce(x, Max{});
#endif
}

// --- matrix units: d += a * b, accumulated in float32 or int32 -------------------------------------------------------

#if !defined(__CUDACC__)
template <class T>
inline float half_of(uint32_t pair, int i) {
  return to_float(T{static_cast<uint16_t>(pair >> (16 * i))});
}
#endif

// For compute capability 7.5. f16 only.
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
#if !defined(__CUDACC__)
  ::simt::mma_half<8>(d, a, b, half_of<f16>);
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#endif
}

// Whether there is mma_m16n8k16<T>: a kernel without it is left empty.
template <class T>
constexpr bool kHasMma = kSm80 || __is_same(T, f16);

// T is f16 or bf16, which needs compute capability 8.0; f16 takes two steps on 7.5.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
  ::simt::mma_half<16>(d, a, b, half_of<T>);
#elif __CUDA_ARCH__ >= 800
#define BNB_MMA(type)                                                       \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (sizeof(T) == 2 && __is_same(T, bf16))
    BNB_MMA("bf16");
  else
    BNB_MMA("f16");
#undef BNB_MMA
#else
  if constexpr (__is_same(T, bf16)) {
    __trap();
  } else {
    const uint32_t a_low[2] = {a[0], a[1]}, a_high[2] = {a[2], a[3]}, b_low[1] = {b[0]}, b_high[1] = {b[1]};
    mma_m16n8k8(d, a_low, b_low);
    mma_m16n8k8(d, a_high, b_high);
  }
#endif
}

// The same with nothing to add to: d = a * b.
template <class T>
__device__ __forceinline__ void mma_m16n8k16_first(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
#define BNB_MMA(type)                                                           \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type           \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};" \
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f))
  if constexpr (__is_same(T, bf16))
    BNB_MMA("bf16");
  else
    BNB_MMA("f16");
#undef BNB_MMA
#else
  d[0] = d[1] = d[2] = d[3] = 0.0f;
  mma_m16n8k16<T>(d, a, b);
#endif
}

// For compute capability 7.5.
__device__ __forceinline__ void mma_m8n8k16(int32_t (&d)[2], const uint32_t (&a)[1], const uint32_t (&b)[1]) {
#if !defined(__CUDACC__)
  ::simt::mma_int8<8, 16>(d, a, b);
#else
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(a[0]), "r"(b[0]));
#endif
}

// Four steps on compute capability 7.5.
__device__ __forceinline__ void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
  ::simt::mma_int8<16, 32>(d, a, b);
#elif __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
  for (int row = 0; row < 2; row++) {
    int32_t sums[2] = {d[2 * row], d[2 * row + 1]};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t x[1] = {a[2 * half + row]}, y[1] = {b[half]};
      mma_m8n8k16(sums, x, y);
    }
    d[2 * row] = sums[0];
    d[2 * row + 1] = sums[1];
  }
#endif
}

// Four products of int8 lanes added to c.
__device__ __forceinline__ int32_t dp4a(uint32_t a, uint32_t b, int32_t c) {
#if !defined(__CUDACC__)
  for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return c;
#else
  return __dp4a(static_cast<int>(a), static_cast<int>(b), c);
#endif
}

}  // namespace bnb::cuda
