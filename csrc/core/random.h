// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a
// counter and a key give four random words, with no state in between. For host and device.
#pragma once
#include <cstdint>

#include "core/float16.h"

namespace bnb {

struct PhiloxBlock {
  uint32_t word[4];
};

BNB_INLINE PhiloxBlock philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Block `index` of the stream that `seed` names.
BNB_INLINE PhiloxBlock philox(uint64_t seed, uint64_t index) {
  return philox(static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0, static_cast<uint32_t>(seed),
                static_cast<uint32_t>(seed >> 32));
}

// Words of the N blocks from `first` on: word[k][j] is word k of block first + j. The rounds are the outer
// loop, so that the inner one becomes vector code.
template <int N>
BNB_INLINE void philox_batch(uint64_t seed, uint64_t first, uint32_t (&word)[4][N]) {
  for (int j = 0; j < N; j++) {
    const uint64_t index = first + static_cast<uint64_t>(j);
    word[0][j] = static_cast<uint32_t>(index);
    word[1][j] = static_cast<uint32_t>(index >> 32);
    word[2][j] = 0;
    word[3][j] = 0;
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; round++) {
    for (int j = 0; j < N; j++) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * word[0][j];
      const uint64_t p1 = uint64_t{0xCD9E8D57u} * word[2][j];
      word[0][j] = static_cast<uint32_t>(p1 >> 32) ^ word[1][j] ^ k0;
      word[2][j] = static_cast<uint32_t>(p0 >> 32) ^ word[3][j] ^ k1;
      word[1][j] = static_cast<uint32_t>(p1);
      word[3][j] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// out[4 * j + k] = word[k][j]: elements in the order of their blocks.
template <int N, class T>
BNB_INLINE void interleave(const T (&word)[4][N], T* out) {
  for (int j = 0; j < N; j++) {
    out[4 * j] = word[0][j];
    out[4 * j + 1] = word[1][j];
    out[4 * j + 2] = word[2][j];
    out[4 * j + 3] = word[3][j];
  }
}

}  // namespace bnb
