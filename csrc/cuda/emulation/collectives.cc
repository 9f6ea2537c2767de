// Exchanges between the lanes of an emulated warp, and the instructions built on them.
#include <cstring>

#include "cuda/emulation/machine.h"

namespace simt {

int lane() { return self().id % kWarp; }

const unsigned char* exchange(const void* bytes, size_t size, const char* what, int line) {
  Fiber& f = self();
  // Two buffers in turn: nobody can be a whole collective ahead of a lane that still reads the last one.
  unsigned char* all =
      f.block->lanes +
      (static_cast<size_t>(f.parity) * kMaxThreads + static_cast<size_t>(f.id / kWarp * kWarp)) * kLaneBytes;
  f.parity ^= 1;
  std::memcpy(all + (f.id % kWarp) * kLaneBytes, bytes, size);
  rendezvous(Scope::warp, what, line);
  return all;
}

uint32_t ballot(const char* what, int line, bool predicate) {
  const unsigned char* all = exchange(&predicate, sizeof predicate, what, line);
  uint32_t mask = 0;
  for (int i = 0; i < kWarp; i++) mask |= static_cast<uint32_t>(all[i * kLaneBytes] != 0) << i;
  return mask;
}

void ldmatrix(uint32_t* r, int count, const void* row, bool transpose) {
  const unsigned char* all = exchange(&row, sizeof row, "ldmatrix", 0);
  auto row_of = [&](int matrix, int index) {
    const void* p;
    std::memcpy(&p, all + (matrix * 8 + index) * kLaneBytes, sizeof p);
    return static_cast<const unsigned char*>(p);
  };
  if (lane() < count * 8) check_alignment(row, 16, 16, false);
  // A matrix is a pass of eight rows of 16 bytes.
  if (machine().banks && lane() < count * 8) {
    const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(row) - self().block->shared);
    const int warp = (self().block->slot * kMaxThreads + self().id) / kWarp;
    machine().banks->note(warp, lane(), __builtin_return_address(0), Touch::ldmatrix, offset, 16);
  }
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < count; i++) {
    uint16_t half[2];
    for (int j = 0; j < 2; j++) {
      const unsigned char* p = transpose ? row_of(i, 2 * t + j) + 2 * g : row_of(i, g) + 2 * (2 * t + j);
      access(p, 2, false, nullptr);
      std::memcpy(&half[j], p, 2);
    }
    r[i] = static_cast<uint32_t>(half[1]) << 16 | half[0];
  }
}

// Lane (g, t) holds a at rows g and g + 8, k 2t..2t+1 and k + 8; b at column g. Sums run over k in order.
void mma_float(float* d, const float* a, int a_count, const float* b, int b_count, int k) {
  float mine[kLaneBytes / sizeof(float)];
  std::copy(a, a + a_count, mine);
  std::copy(b, b + b_count, mine + a_count);
  const unsigned char* all = exchange(mine, static_cast<size_t>(a_count + b_count) * sizeof(float), "mma", k);
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; i++) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    float sum = d[i];
    for (int kk = 0; kk < k; kk++) {
      const int pair = kk % 8 / 2, half = kk % 2, upper = kk / 8;
      const auto* from_a = reinterpret_cast<const float*>(all + (row % 8 * 4 + pair) * kLaneBytes);
      const auto* from_b = reinterpret_cast<const float*>(all + (column * 4 + pair) * kLaneBytes);
      sum += from_a[(upper * 2 + row / 8) * 2 + half] * from_b[a_count + upper * 2 + half];
    }
    d[i] = sum;
  }
}

void mma_int(int32_t* d, const uint32_t* a, int a_count, const uint32_t* b, int b_count, int rows, int k) {
  uint32_t mine[kLaneBytes / sizeof(uint32_t)];
  std::copy(a, a + a_count, mine);
  std::copy(b, b + b_count, mine + a_count);
  const unsigned char* all = exchange(mine, static_cast<size_t>(a_count + b_count) * sizeof(uint32_t), "mma", k);
  const int g = lane() / 4, t = lane() % 4;
  const int row_blocks = rows / 8;
  for (int i = 0; i < rows / 4; i++) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    for (int kk = 0; kk < k; kk++) {
      const int quad = kk % 16 / 4, byte = kk % 4, upper = kk / 16;
      const auto* from_a = reinterpret_cast<const uint32_t*>(all + (row % 8 * 4 + quad) * kLaneBytes);
      const auto* from_b = reinterpret_cast<const uint32_t*>(all + (column * 4 + quad) * kLaneBytes);
      d[i] += static_cast<int8_t>(from_a[upper * row_blocks + row / 8] >> (8 * byte)) *
              static_cast<int8_t>(from_b[a_count + upper] >> (8 * byte));
    }
  }
}

}  // namespace simt
