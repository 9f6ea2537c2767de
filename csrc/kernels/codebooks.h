// The code tables of blockwise quantization and the thresholds that follow from them: the only copy. Every literal
// rounds to the intended float32; csrc/ops/codebooks.cc checks the CRC32 of each table while it compiles. Everything
// has internal linkage and is evaluated at compile time, so files compiled per ISA may include this.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace bnb {

// --- 4-bit tables, in the order of the stored codes --------------------------------------------------------------

// Quantiles of a normal distribution (Dettmers et al., QLoRA, 2023).
alignas(64) constexpr float kNf4[16] = {
    -1.0f,      -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f, 0.1609302f,  0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f};

// Bit 3 is the sign, magnitudes {0, 1/16, 8, 12, 4, 6, 2, 3} / 12. Files hold +0 at index 8; it decodes to -0.
alignas(64) constexpr float kFp4[16] = {0.0f,         0.0052083335f, 0.6666667f,   1.0f,           0.33333334f, 0.5f,
                                        0.16666667f,  0.25f,         0.0f,         -0.0052083335f, -0.6666667f, -1.0f,
                                        -0.33333334f, -0.5f,         -0.16666667f, -0.25f};

// AbnormalFloat (Yoshida, 2023), made for blocks of 64.
alignas(64) constexpr float kAf4[16] = {1.0f,        0.72424865f, 0.55496234f, 0.42563882f,  0.31675667f,  0.21961275f,
                                        0.12934484f, 0.04273164f, 0.0f,        -0.04934812f, -0.14982478f, -0.25607553f,
                                        -0.3736951f, -0.5124374f, -0.6944101f, -1.0f};

// k / 7, with a zero of each sign.
alignas(64) constexpr float kInt4[16] = {
    1.0f,  0.85714287f,  0.71428573f, 0.5714286f,   0.42857143f, 0.2857143f,   0.14285715f,  0.0f,
    -0.0f, -0.14285715f, -0.2857143f, -0.42857143f, -0.5714286f, -0.71428573f, -0.85714287f, -1.0f};

// FP4 decides on |x|; these are the published literals, not the exact midpoints. A tie keeps the smaller magnitude.
constexpr float kFp4Thresholds[7] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166666f,
                                     0.4166667f,  0.583333f,  0.8333333f};

// --- 8-bit dynamic maps: seven decades of evenly spaced values, ascending (Dettmers, 2015) -------------------------

alignas(64) constexpr float kDynamicSigned[256] = {
    -0.99296874f,   -0.9789063f,   -0.96484375f,   -0.9507812f,   -0.93671876f,   -0.92265624f,   -0.9085938f,
    -0.89453125f,   -0.8804687f,   -0.86640626f,   -0.85234374f,  -0.8382813f,    -0.82421875f,   -0.8101562f,
    -0.79609376f,   -0.78203124f,  -0.7679688f,    -0.75390625f,  -0.7398437f,    -0.72578126f,   -0.7117188f,
    -0.6976563f,    -0.68359375f,  -0.6695312f,    -0.65546876f,  -0.6414063f,    -0.6273438f,    -0.61328125f,
    -0.5992187f,    -0.58515626f,  -0.5710938f,    -0.5570313f,   -0.54296875f,   -0.5289062f,    -0.5148437f,
    -0.50078124f,   -0.4867187f,   -0.47265625f,   -0.45859373f,  -0.44453126f,   -0.43046874f,   -0.41640624f,
    -0.40234375f,   -0.38828123f,  -0.37421876f,   -0.36015624f,  -0.34609374f,   -0.33203125f,   -0.31796873f,
    -0.30390626f,   -0.28984374f,  -0.27578127f,   -0.26171875f,  -0.24765624f,   -0.23359375f,   -0.21953125f,
    -0.20546874f,   -0.19140625f,  -0.17734376f,   -0.16328125f,  -0.14921875f,   -0.13515624f,   -0.12109375f,
    -0.107031256f,  -0.09859375f,  -0.09578126f,   -0.092968754f, -0.09015625f,   -0.08734375f,   -0.08453125f,
    -0.08171876f,   -0.07890625f,  -0.07609375f,   -0.07328125f,  -0.070468746f,  -0.067656256f,  -0.06484375f,
    -0.06203125f,   -0.059218753f, -0.05640625f,   -0.05359375f,  -0.05078125f,   -0.04796875f,   -0.04515625f,
    -0.042343747f,  -0.03953125f,  -0.036718752f,  -0.03390625f,  -0.03109375f,   -0.028281251f,  -0.02546875f,
    -0.02265625f,   -0.019843752f, -0.01703125f,   -0.01421875f,  -0.01140625f,   -0.00971875f,   -0.009156249f,
    -0.00859375f,   -0.00803125f,  -0.00746875f,   -0.00690625f,  -0.00634375f,   -0.00578125f,   -0.0052187503f,
    -0.0046562497f, -0.00409375f,  -0.0035312497f, -0.00296875f,  -0.00240625f,   -0.00184375f,   -0.0012812499f,
    -9.437501e-4f,  -8.3125e-4f,   -7.1875006e-4f, -6.062501e-4f, -4.9375003e-4f, -3.8125002e-4f, -2.6875004e-4f,
    -1.5625001e-4f, -8.875e-5f,    -6.625e-5f,     -4.375e-5f,    -2.1249998e-5f, -7.75e-6f,      -3.2500002e-6f,
    -5.5000004e-7f, 0.0f,          5.5000004e-7f,  3.2500002e-6f, 7.75e-6f,       2.1249998e-5f,  4.375e-5f,
    6.625e-5f,      8.875e-5f,     1.5625001e-4f,  2.6875004e-4f, 3.8125002e-4f,  4.9375003e-4f,  6.062501e-4f,
    7.1875006e-4f,  8.3125e-4f,    9.437501e-4f,   0.0012812499f, 0.00184375f,    0.00240625f,    0.00296875f,
    0.0035312497f,  0.00409375f,   0.0046562497f,  0.0052187503f, 0.00578125f,    0.00634375f,    0.00690625f,
    0.00746875f,    0.00803125f,   0.00859375f,    0.009156249f,  0.00971875f,    0.01140625f,    0.01421875f,
    0.01703125f,    0.019843752f,  0.02265625f,    0.02546875f,   0.028281251f,   0.03109375f,    0.03390625f,
    0.036718752f,   0.03953125f,   0.042343747f,   0.04515625f,   0.04796875f,    0.05078125f,    0.05359375f,
    0.05640625f,    0.059218753f,  0.06203125f,    0.06484375f,   0.067656256f,   0.070468746f,   0.07328125f,
    0.07609375f,    0.07890625f,   0.08171876f,    0.08453125f,   0.08734375f,    0.09015625f,    0.092968754f,
    0.09578126f,    0.09859375f,   0.107031256f,   0.12109375f,   0.13515624f,    0.14921875f,    0.16328125f,
    0.17734376f,    0.19140625f,   0.20546874f,    0.21953125f,   0.23359375f,    0.24765624f,    0.26171875f,
    0.27578127f,    0.28984374f,   0.30390626f,    0.31796873f,   0.33203125f,    0.34609374f,    0.36015624f,
    0.37421876f,    0.38828123f,   0.40234375f,    0.41640624f,   0.43046874f,    0.44453126f,    0.45859373f,
    0.47265625f,    0.4867187f,    0.50078124f,    0.5148437f,    0.5289062f,     0.54296875f,    0.5570313f,
    0.5710938f,     0.58515626f,   0.5992187f,     0.61328125f,   0.6273438f,     0.6414063f,     0.65546876f,
    0.6695312f,     0.68359375f,   0.6976563f,     0.7117188f,    0.72578126f,    0.7398437f,     0.75390625f,
    0.7679688f,     0.78203124f,   0.79609376f,    0.8101562f,    0.82421875f,    0.8382813f,     0.85234374f,
    0.86640626f,    0.8804687f,    0.89453125f,    0.9085938f,    0.92265624f,    0.93671876f,    0.9507812f,
    0.96484375f,    0.9789063f,    0.99296874f,    1.0f};

alignas(64) constexpr float kDynamicUnsigned[256] = {
    0.0f,          3.2500003e-7f, 7.75e-7f,      2.1249998e-6f, 4.3749997e-6f, 6.625e-6f,     8.874999e-6f,
    1.5624999e-5f, 2.6875001e-5f, 3.8125e-5f,    4.9374998e-5f, 6.0625003e-5f, 7.1875e-5f,    8.312499e-5f,
    9.4375e-5f,    1.28125e-4f,   1.84375e-4f,   2.4062501e-4f, 2.9687502e-4f, 3.5312498e-4f, 4.0937503e-4f,
    4.6562502e-4f, 5.2187504e-4f, 5.78125e-4f,   6.34375e-4f,   6.9062505e-4f, 7.46875e-4f,   8.031251e-4f,
    8.5937505e-4f, 9.15625e-4f,   9.7187504e-4f, 0.001140625f,  0.001421875f,  0.001703125f,  0.001984375f,
    0.002265625f,  0.0025468748f, 0.002828125f,  0.0031093748f, 0.0033906251f, 0.003671875f,  0.003953125f,
    0.0042343745f, 0.004515625f,  0.0047968747f, 0.005078125f,  0.005359375f,  0.0056406246f, 0.005921875f,
    0.0062031248f, 0.006484375f,  0.0067656254f, 0.0070468746f, 0.007328125f,  0.0076093744f, 0.007890625f,
    0.008171875f,  0.008453124f,  0.008734375f,  0.009015624f,  0.0092968745f, 0.009578126f,  0.009859375f,
    0.010703126f,  0.012109376f,  0.013515624f,  0.014921876f,  0.016328124f,  0.017734377f,  0.019140625f,
    0.020546874f,  0.021953126f,  0.023359375f,  0.024765624f,  0.026171876f,  0.027578129f,  0.028984373f,
    0.030390626f,  0.031796873f,  0.033203125f,  0.034609374f,  0.036015626f,  0.03742188f,   0.038828123f,
    0.040234376f,  0.041640624f,  0.043046873f,  0.044453125f,  0.045859374f,  0.047265626f,  0.04867187f,
    0.050078124f,  0.051484372f,  0.052890625f,  0.054296877f,  0.05570313f,   0.057109382f,  0.058515627f,
    0.059921872f,  0.061328124f,  0.06273438f,   0.06414063f,   0.06554688f,   0.06695312f,   0.068359375f,
    0.06976563f,   0.07117188f,   0.072578125f,  0.07398438f,   0.07539063f,   0.07679688f,   0.07820313f,
    0.07960938f,   0.081015624f,  0.08242188f,   0.08382813f,   0.085234374f,  0.086640626f,  0.08804687f,
    0.08945312f,   0.090859376f,  0.09226563f,   0.09367188f,   0.095078126f,  0.09648438f,   0.09789063f,
    0.099296875f,  0.103515625f,  0.11054687f,   0.11757813f,   0.12460937f,   0.13164061f,   0.13867188f,
    0.14570314f,   0.15273437f,   0.15976563f,   0.16679686f,   0.17382812f,   0.18085939f,   0.18789062f,
    0.19492188f,   0.20195311f,   0.20898438f,   0.21601564f,   0.22304687f,   0.23007813f,   0.23710936f,
    0.24414062f,   0.25117186f,   0.25820312f,   0.26523438f,   0.2722656f,    0.27929688f,   0.28632814f,
    0.29335937f,   0.3003906f,    0.30742186f,   0.31445312f,   0.3214844f,    0.32851562f,   0.33554685f,
    0.3425781f,    0.34960938f,   0.35664064f,   0.36367187f,   0.3707031f,    0.37773436f,   0.38476562f,
    0.3917969f,    0.39882812f,   0.40585935f,   0.4128906f,    0.41992188f,   0.42695314f,   0.43398437f,
    0.4410156f,    0.44804686f,   0.45507812f,   0.4621094f,    0.46914062f,   0.47617185f,   0.4832031f,
    0.49023438f,   0.4972656f,    0.5042969f,    0.5113281f,    0.51835936f,   0.5253906f,    0.5324218f,
    0.53945315f,   0.54648435f,   0.5535157f,    0.5605469f,    0.56757814f,   0.5746094f,    0.5816406f,
    0.5886719f,    0.5957031f,    0.6027344f,    0.60976565f,   0.61679685f,   0.6238282f,    0.6308594f,
    0.63789064f,   0.6449219f,    0.6519531f,    0.6589844f,    0.6660156f,    0.6730469f,    0.68007815f,
    0.68710935f,   0.6941407f,    0.7011719f,    0.70820314f,   0.7152344f,    0.7222656f,    0.7292969f,
    0.7363281f,    0.7433594f,    0.75039065f,   0.75742185f,   0.7644532f,    0.7714844f,    0.7785156f,
    0.7855469f,    0.7925781f,    0.7996094f,    0.8066406f,    0.8136718f,    0.82070315f,   0.82773435f,
    0.8347657f,    0.8417969f,    0.8488281f,    0.8558594f,    0.8628906f,    0.8699219f,    0.8769531f,
    0.8839843f,    0.89101565f,   0.89804685f,   0.9050782f,    0.9121094f,    0.9191406f,    0.9261719f,
    0.9332031f,    0.9402344f,    0.9472656f,    0.9542968f,    0.96132815f,   0.96835935f,   0.9753907f,
    0.9824219f,    0.9894531f,    0.9964844f,    1.0f};

// --- Derived at compile time ---------------------------------------------------------------------------------------

// The next smaller float32: x >= t is x > next_below(t), which turns every rule into strict comparisons.
constexpr float next_below(float t) {
  const uint32_t u = __builtin_bit_cast(uint32_t, t);
  if ((u & 0x7fffffffu) == 0) return __builtin_bit_cast(float, 0x80000001u);
  return __builtin_bit_cast(float, u >> 31 ? u + 1 : u - 1);
}

// A 4-bit code as a rank: code(x) = code[#{j : x > threshold[j]}], thresholds ascending (the last is a pad).
struct Ranks4bit {
  alignas(64) float threshold[16];
  alignas(16) uint8_t code[16];
  uint8_t zero;  // the code of 0
};

// The same for a vector look-up: floor(x * kBinScale) + kBinOffset is one of 32 bins with at most one threshold in
// each, so code(x) = x > threshold[bin] ? above[bin] : below[bin].
constexpr float kBinScale = 15.5f;
constexpr int kBinOffset = 16;
struct Bins4bit {
  alignas(64) float threshold[32];
  alignas(64) int32_t below[32];
  alignas(64) int32_t above[32];
  bool valid;
};

// What a 4-bit code decodes to, to be multiplied by the scale of its block.
struct Values4bit {
  alignas(64) float v[16];
};

// Strict thresholds of an 8-bit map: code(x) = #{i : x > t[i]}, a value on a midpoint taking the even code.
// pad holds -inf, so that a search may look at t[-1].
struct Thresholds8bit {
  alignas(64) float pad[16];
  float t[256];
};

namespace codebook_detail {

constexpr float kInf = __builtin_bit_cast(float, 0x7f800000u);

consteval Ranks4bit nearest(const float (&ascending)[16], bool descending_codes) {
  Ranks4bit r{};
  for (int j = 0; j < 15; j++) r.threshold[j] = (ascending[j] + ascending[j + 1]) * 0.5f;
  r.threshold[15] = kInf;
  for (int j = 0; j < 16; j++) r.code[j] = static_cast<uint8_t>(descending_codes ? 15 - j : j);
  for (int j = 0; j < 16; j++)
    if (ascending[j] == 0) r.zero = r.code[j];
  return r;
}

consteval Ranks4bit nearest_af4() {
  float ascending[16] = {};
  for (int j = 0; j < 16; j++) ascending[j] = kAf4[15 - j];
  return nearest(ascending, true);
}

// Thresholds on |x| with the tie at the smaller magnitude: x > next_below(-t) is |x| <= t on the negative side.
consteval Ranks4bit ranks_fp4() {
  constexpr uint8_t kOrder[8] = {0, 1, 6, 7, 4, 5, 2, 3};
  Ranks4bit r{};
  for (int k = 0; k < 7; k++) {
    r.threshold[6 - k] = next_below(-kFp4Thresholds[k]);
    r.threshold[8 + k] = kFp4Thresholds[k];
  }
  r.threshold[7] = next_below(0.0f);  // any x < 0 has the sign bit, -0.0 has not
  r.threshold[15] = kInf;
  for (int k = 0; k < 8; k++) {
    r.code[7 - k] = static_cast<uint8_t>(8 + kOrder[k]);
    r.code[8 + k] = kOrder[k];
  }
  r.zero = 0;
  return r;
}

consteval Ranks4bit ranks_int4() {
  Ranks4bit r{};
  for (int k = 1; k <= 7; k++) {
    const float t = (kInt4[8 - k] + kInt4[7 - k]) * 0.5f;
    r.threshold[7 - k] = next_below(-t);
    r.threshold[6 + k] = t;
  }
  r.threshold[14] = r.threshold[15] = kInf;
  for (int k = 0; k <= 7; k++) {
    r.code[7 - k] = static_cast<uint8_t>(k == 0 ? 7 : 8 + k);
    r.code[7 + k] = static_cast<uint8_t>(7 - k);
  }
  r.code[15] = 0;
  r.zero = 7;
  return r;
}

consteval int bin_of(float x) {
  const double position = static_cast<double>(x) * static_cast<double>(kBinScale);
  const int truncated = static_cast<int>(position);
  return (position < truncated ? truncated - 1 : truncated) + kBinOffset;
}

// Whether some x of bin i exceeds the threshold and some does not.
consteval bool splits(float threshold, int i) {
  return threshold < 1 && bin_of(threshold) == i && bin_of(-next_below(-threshold)) == i;
}

consteval Bins4bit bins(const Ranks4bit& r) {
  Bins4bit b{};
  b.valid = true;
  int rank = 0;
  for (int i = 0; i < 32; i++) {
    while (r.threshold[rank] < 1 && bin_of(r.threshold[rank]) < i) rank++;
    const bool split = splits(r.threshold[rank], i);
    if (split && splits(r.threshold[rank + 1], i)) b.valid = false;
    b.threshold[i] = split ? r.threshold[rank] : kInf;
    b.below[i] = r.code[rank];
    b.above[i] = r.code[rank + split];
  }
  return b;
}

consteval Thresholds8bit thresholds(const float (&map)[256], bool keep_sign) {
  Thresholds8bit r{};
  for (float& p : r.pad) p = -kInf;
  for (int i = 0; i < 255; i++) {
    const float t = (map[i] + map[i + 1]) * 0.5f;
    r.t[i] = i % 2 ? next_below(t) : t;
  }
  r.t[255] = kInf;
  if (keep_sign) r.t[126] = 0;
  return r;
}

consteval Values4bit values(const float (&table)[16], bool signed_zero) {
  Values4bit r{};
  for (int i = 0; i < 16; i++) r.v[i] = table[i];
  if (signed_zero) r.v[8] = -0.0f;
  return r;
}

}  // namespace codebook_detail

// Indexed by QuantType.
constexpr Values4bit kValues4bit[4] = {codebook_detail::values(kNf4, false), codebook_detail::values(kFp4, true),
                                       codebook_detail::values(kAf4, false), codebook_detail::values(kInt4, false)};
BNB_INLINE const float* codebook_4bit(QuantType type) { return kValues4bit[static_cast<int>(type)].v; }

constexpr Ranks4bit kRanks4bit[4] = {codebook_detail::nearest(kNf4, false), codebook_detail::ranks_fp4(),
                                     codebook_detail::nearest_af4(), codebook_detail::ranks_int4()};
constexpr Bins4bit kBins4bit[4] = {codebook_detail::bins(kRanks4bit[0]), codebook_detail::bins(kRanks4bit[1]),
                                   codebook_detail::bins(kRanks4bit[2]), codebook_detail::bins(kRanks4bit[3])};
static_assert(kBins4bit[0].valid && kBins4bit[1].valid && kBins4bit[2].valid && kBins4bit[3].valid);

constexpr Thresholds8bit kSignedThresholds = codebook_detail::thresholds(kDynamicSigned, false);
constexpr Thresholds8bit kUnsignedThresholds = codebook_detail::thresholds(kDynamicUnsigned, false);
// For optimizer states: a negative value that lands on the code of 0 takes the first negative code.
constexpr Thresholds8bit kSignedKeepSignThresholds = codebook_detail::thresholds(kDynamicSigned, true);

}  // namespace bnb
