// y = x @ dequantize(w)^T + bias + residual where x may be rounded to 8 bits: products of bytes, four to a lane.
//
// Layout    A tile is as many rows of w as two vectors have lanes. Four weights of a row, as bytes, are a lane of a
//           step; two steps make 8 weights of each row: those at even places, then those at odd ones, as the nibbles
//           of a packed byte lie. x is quantized into that order, its rows 64 bytes for each 64 of K.
// Work      An item is a run of tiles, for up to 192 rows of x. For each 512 of K its weights are decoded into L1 and
//           multiplied by all rows of x, 12 (AVX2: 6) at a time; the tile after it is asked for meanwhile.
// Numerics  Codes as cpu/activation_codes.h says; a granule is 64 of K, or 32 for blocks of 32. Integer sums over a
//           granule are exact, and start at what the 128 in the bytes of w adds; they join float32 sums with both
//           scales. Nothing depends on the number of threads.
// Needs     AVX-512 or AVX2 with VNNI, K % 64 == 0 and K > 0.
#include "cpu/activation_codes.h"
#include "cpu/decode_4bit.h"
#include "cpu/work.h"
#include "kernels/linear_4bit.h"

namespace bnb::BNB_ISA {

bool linear_4bit_int8(const Linear4BitArgs& a);

#if BNB_ISA_LEVEL >= 1
namespace {

// Up to so many rows of x linear_4bit_int8_rows.cc is faster, which decodes without turning.
constexpr int64_t kFewRows = BNB_ISA_LEVEL == 2 ? 5 : 3;
constexpr int kTileRows = 2 * kWidth;                    // of w
constexpr int64_t kDepth = 512;                          // of K at once
constexpr int64_t kPassRows = 192;                       // of x
constexpr int kBlockRows = BNB_ISA_LEVEL == 2 ? 12 : 6;  // of x in registers
constexpr int64_t kVectorBytes = 4 * kWidth;

// x as the kernel reads it, for `rows` rows: bytes [k / 64][rows][64], and for each granule and row what the sums start
// at and the scale.
struct Activations {
  int8_t* codes;
  int32_t* starts;
  float* scales;
  int64_t rows;
  int shift;  // of a granule

  const int8_t* at(int64_t k, int64_t m) const { return codes + (k / 64 * rows + m) * 64; }
  int64_t granule(int64_t k, int64_t m) const { return (k >> shift) * rows + m; }
};

// 64 floats into bytes in the order of the steps.
template <class T>
void quantize_64(const T* x, const Activations& to, int64_t k, int64_t m) {
  constexpr int kVectors = 64 / kWidth;
  F32 v[kVectors];
  for (int i = 0; i < kVectors; i++) v[i] = load(x + i * kWidth);
  I32 q[kVectors];
  const int granules = 64 >> to.shift, vectors = kVectors / granules;
  for (int g = 0; g < granules; g++) {
    I32 largest = zero_i32();
    for (int i = g * vectors; i < (g + 1) * vectors; i++) largest = max(largest, bitcast(abs(v[i])));
    const Granule granule = granule_of(largest, kByteCodes);
    I32 sum = zero_i32();
    for (int i = g * vectors; i < (g + 1) * vectors; i++) {
      q[i] = granule.codes(v[i]);
      sum += q[i];
    }
    const int64_t at = to.granule(k + (g << to.shift), m);
    to.starts[at] = -128 * reduce_add(sum);
    to.scales[at] = granule.scale;
  }
  // Of each 8 those at even places, then those at odd ones.
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  auto* out = reinterpret_cast<__m128i*>(const_cast<int8_t*>(to.at(k, m)));
  for (int i = 0; i < 4; i++) _mm_storeu_si128(out + i, _mm_shuffle_epi8(bytes_of(q + i * (16 / kWidth)), order));
}

// 64 of K of kWidth rows from byte `at` of each on: 16 steps, of which `out` has every other vector.
BNB_INLINE void decode_rows(const uint8_t* const (&rows)[kWidth], int64_t at, I32 table, uint8_t* out) {
  const auto half = [&](int row) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[row] + at)); };
  const auto put = [&](int step, I32 codes) {
    store(reinterpret_cast<int32_t*>(out + step * 2 * kVectorBytes), look_up_bytes(table, codes));
  };
  const auto eight = [&](int d, I32 codes) {
    put(2 * d, shr(codes, 4));
    put(2 * d + 1, codes);
  };
#if BNB_ISA_LEVEL == 2
  const auto two = [&](int r) { return _mm512_inserti64x4(_mm512_castsi256_si512(half(r)), half(r + 4), 1); };
  __m512i turned[2][4];  // lane 0 of 128 bits: rows 0 to 3, or 8 to 11; lane 2: rows 4 to 7, or 12 to 15
  for (int h = 0; h < 2; h++) {
    const __m512i r0 = two(8 * h), r1 = two(8 * h + 1), r2 = two(8 * h + 2), r3 = two(8 * h + 3);
    const __m512i low01 = _mm512_unpacklo_epi32(r0, r1), high01 = _mm512_unpackhi_epi32(r0, r1);
    const __m512i low23 = _mm512_unpacklo_epi32(r2, r3), high23 = _mm512_unpackhi_epi32(r2, r3);
    turned[h][0] = _mm512_unpacklo_epi64(low01, low23);
    turned[h][1] = _mm512_unpackhi_epi64(low01, low23);
    turned[h][2] = _mm512_unpacklo_epi64(high01, high23);
    turned[h][3] = _mm512_unpackhi_epi64(high01, high23);
  }
  for (int d = 0; d < 4; d++) {
    eight(d, {_mm512_shuffle_i32x4(turned[0][d], turned[1][d], 0x88)});
    eight(d + 4, {_mm512_shuffle_i32x4(turned[0][d], turned[1][d], 0xdd)});
  }
#else
  __m256i turned[2][4];  // rows 0 to 3, or 4 to 7
  for (int h = 0; h < 2; h++) {
    const __m256i r0 = half(4 * h), r1 = half(4 * h + 1), r2 = half(4 * h + 2), r3 = half(4 * h + 3);
    const __m256i low01 = _mm256_unpacklo_epi32(r0, r1), high01 = _mm256_unpackhi_epi32(r0, r1);
    const __m256i low23 = _mm256_unpacklo_epi32(r2, r3), high23 = _mm256_unpackhi_epi32(r2, r3);
    turned[h][0] = _mm256_unpacklo_epi64(low01, low23);
    turned[h][1] = _mm256_unpackhi_epi64(low01, low23);
    turned[h][2] = _mm256_unpacklo_epi64(high01, high23);
    turned[h][3] = _mm256_unpackhi_epi64(high01, high23);
  }
  for (int d = 0; d < 4; d++) {
    eight(d, {_mm256_permute2x128_si256(turned[0][d], turned[1][d], 0x20)});
    eight(d + 4, {_mm256_permute2x128_si256(turned[0][d], turned[1][d], 0x31)});
  }
#endif
}

// A piece of K of one tile, decoded: bytes [k / 4][kTileRows][4], scales [k / granule][kTileRows].
struct Tile {
  const uint8_t* codes;
  const float* scales;
  int64_t k0, k_count;
};

// dots[M][kTileRows] = starts + the dot products of a granule. A function of its own: with more around it the compiler
// keeps the sums in memory.
template <int M, int kSteps>
__attribute__((noinline)) void granule_dots(const uint8_t* w, const int8_t* x, const int32_t* starts, int32_t* dots) {
  I32 acc[M][2];
#pragma GCC unroll 12
  for (int m = 0; m < M; m++) acc[m][0] = acc[m][1] = set1_i32(starts[m]);
#pragma GCC unroll 1
  for (int step = 0; step < kSteps; step++) {
    const auto* lanes = reinterpret_cast<const int32_t*>(w);
    const I32 w0 = load_i32(lanes), w1 = load_i32(lanes + kWidth);
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) {
      int32_t four;
      __builtin_memcpy(&four, x + m * 64, 4);
      const I32 xv = set1_i32(four);
      add_byte_products(acc[m][0], w0, xv);
      add_byte_products(acc[m][1], w1, xv);
    }
    w += 2 * kVectorBytes;
    x += 4;
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; m++) {
    store(dots + m * kTileRows, acc[m][0]);
    store(dots + m * kTileRows + kWidth, acc[m][1]);
  }
}

// sums[M][kTileRows] += the products of a tile and M rows of x from m0 on.
template <int M, int kSteps>
void tile_product(const Tile& tile, const Activations& x, int64_t m0, float* sums) {
  const uint8_t* w = tile.codes;
  const float* scales = tile.scales;
  for (int64_t k = 0; k < tile.k_count; k += 4 * kSteps) {
    const int64_t at = x.granule(tile.k0 + k, m0);
    alignas(64) int32_t dots[M * kTileRows];
    granule_dots<M, kSteps>(w, x.at(tile.k0 + k, m0) + (k & 63), x.starts + at, dots);
    w += kSteps * 2 * kVectorBytes;
    const F32 s0 = load(scales), s1 = load(scales + kWidth);
    const float* x_scales = x.scales + at;
    scales += kTileRows;
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) {
      const F32 scale = set1(x_scales[m]);
      float* to = sums + m * kTileRows;
      store(to, fma(to_f32(load_i32(dots + m * kTileRows)), s0 * scale, load(to)));
      store(to + kWidth, fma(to_f32(load_i32(dots + m * kTileRows + kWidth)), s1 * scale, load(to + kWidth)));
    }
  }
}

template <int M>
void rows_product(const Tile& tile, const Activations& x, int64_t m0, int64_t count, float* sums) {
  if (count == M) {
    if (x.shift == 6) return tile_product<M, 16>(tile, x, m0, sums);
    return tile_product<M, 8>(tile, x, m0, sums);
  }
  if constexpr (M > 1) rows_product<M - 1>(tile, x, m0, count, sums);
}

void store_tile(const Linear4BitArgs& a, int64_t m0, int64_t m_count, int64_t n0, const float* sums) {
  const int64_t n_count = smaller<int64_t>(kTileRows, a.n - n0);
  visit_float(a.y_dtype, [&](auto t) {
    using T = decltype(t);
    visit_float(a.bias_dtype, [&](auto b) {
      const auto* bias = static_cast<const decltype(b)*>(a.bias);
      for (int64_t m = 0; m < m_count; m++) {
        const int64_t at = (m0 + m) * a.n + n0;
        for (int64_t n = 0; n < n_count; n += kWidth) {
          const int64_t lanes = smaller<int64_t>(kWidth, n_count - n);
          F32 y = load(sums + m * kTileRows + n);
          if (bias) y += load_part(bias + n0 + n, lanes);
          if (a.residual) y += load_part(static_cast<const T*>(a.residual) + at + n, lanes);
          store_part(static_cast<T*>(a.y) + at + n, y, lanes);
        }
      }
    });
  });
}

// One tile, from row n0 of w on, for m_count rows of x.
void tile_rows(const Linear4BitArgs& a, const Activations& x, int64_t m0, int64_t m_count, int64_t n0, I32 table) {
  const Scratch<float> sums(kPassRows * kTileRows);
  const Scratch<uint8_t> codes(kDepth * kTileRows);
  const Scratch<float> scales((kDepth / 32) * kTileRows);
  __builtin_memset(sums, 0, static_cast<size_t>(m_count * kTileRows) * sizeof(float));
  // Rows past the last are the last again.
  int64_t first[kTileRows];
  for (int64_t r = 0; r < kTileRows; r++) first[r] = smaller(n0 + r, a.n - 1) * a.k;
  const uint8_t* next = a.w.packed + (n0 + kTileRows) * a.k / 2;
  prefetch_scales(a.w, (n0 + kTileRows) * a.k, kTileRows * a.k);
  for (int64_t k0 = 0; k0 < a.k; k0 += kDepth) {
    const int64_t k_count = smaller(kDepth, a.k - k0), granules = k_count >> x.shift;
    // The next tile, of which each piece of this one asks for its share.
    for (int64_t i = 0; i < k_count / 2 * kTileRows; i += 64) __builtin_prefetch(next + k0 / 2 * kTileRows + i, 0, 2);
    float buffer[kDepth / 32];
    for (int r = 0; r < kTileRows; r++) {
      const float* s = granule_scales(a.w, first[r] + k0, granules, x.shift, buffer);
      for (int64_t g = 0; g < granules; g++) scales[g * kTileRows + r] = s[g] * (1.0f / kByteCodes);
    }
    for (int v = 0; v < 2; v++) {
      const uint8_t* rows[kWidth];
      for (int r = 0; r < kWidth; r++) rows[r] = a.w.packed + (first[v * kWidth + r] + k0) / 2;
      for (int64_t k = 0; k < k_count; k += 64)
        decode_rows(rows, k / 2, table, codes + k * kTileRows + v * kVectorBytes);
    }
    const Tile tile = {codes, scales, k0, k_count};
    for (int64_t m = 0; m < m_count; m += kBlockRows)
      rows_product<kBlockRows>(tile, x, m, smaller<int64_t>(kBlockRows, m_count - m), sums + m * kTileRows);
  }
  store_tile(a, m0, m_count, n0, sums);
}

}  // namespace

bool linear_4bit_int8(const Linear4BitArgs& a) {
  if (a.w.activations != ActivationQuant::int8 || a.m <= kFewRows || !multiplies_bytes()) return false;
  const I32 table = byte_table(a.w.type);
  const int shift = granule_shift(a.w.blocksize);
  const int64_t passes = ceil_div(a.m, kPassRows), pass_rows = ceil_div(ceil_div(a.m, passes), kBlockRows) * kBlockRows;
  for (int64_t m0 = 0; m0 < a.m; m0 += pass_rows) {
    const int64_t m_count = smaller(pass_rows, a.m - m0), granules = m_count * (a.k >> shift);
    const Scratch<int32_t> starts(2 * granules);
    const Scratch<int8_t> codes(m_count * a.k);
    const Activations x = {codes, starts, reinterpret_cast<float*>(starts + granules), m_count, shift};
    visit_float(a.dtype, [&](auto t) {
      const auto* from = static_cast<const decltype(t)*>(a.x) + m0 * a.k;
      parallel_for(m_count, items_of(1 << 14, a.k), [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; m++)
          for (int64_t k = 0; k < a.k; k += 64) quantize_64(from + m * a.k + k, x, k, m);
      });
    });
    const int64_t tiles = ceil_div(a.n, kTileRows);
    // Neighbouring tiles go to one thread, which then knows what it will need next.
    parallel_for(tiles, ceil_div(tiles, 8 * thread_count()), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) tile_rows(a, x, m0, m_count, i * kTileRows, table);
    });
  }
  return true;
}

#else
bool linear_4bit_int8(const Linear4BitArgs&) { return false; }
#endif

}  // namespace bnb::BNB_ISA
