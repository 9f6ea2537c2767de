// The built-in code tables as tensors, and the proof that codebooks.h holds the published ones.
#include "kernels/codebooks.h"

#include "core/transfer.h"
#include "ops/ops.h"

namespace bnb::ops {
namespace {

// IEEE CRC32 of the little-endian bytes of a table.
template <int n>
consteval uint32_t crc32(const float (&table)[n]) {
  uint32_t crc = ~0u;
  for (const float value : table) {
    crc ^= __builtin_bit_cast(uint32_t, value);
    for (int bit = 0; bit < 32; bit++) crc = crc & 1 ? 0xedb88320u ^ (crc >> 1) : crc >> 1;
  }
  return ~crc;
}

static_assert(crc32(kNf4) == 0xc471f81au);
static_assert(crc32(kFp4) == 0x0967dbc3u);
static_assert(crc32(kAf4) == 0x8e1d711au);
static_assert(crc32(kDynamicSigned) == 0x1b137aebu);
static_assert(crc32(kDynamicUnsigned) == 0xe871278fu);

template <int n>
Tensor table(const float (&values)[n], Device& device) {
  return upload(values, sizeof(values), {n}, DType::float32, device);
}

}  // namespace

Tensor codebook(Codebook which, Device& device) {
  switch (which) {
    case Codebook::nf4: return table(kNf4, device);
    case Codebook::fp4: return table(kFp4, device);
    case Codebook::af4: return table(kAf4, device);
    case Codebook::int4: return table(kInt4, device);
    case Codebook::dynamic_signed: return table(kDynamicSigned, device);
    case Codebook::dynamic_unsigned: return table(kDynamicUnsigned, device);
  }
  fail(Code::option, "codebook", "there are 6 tables, got ", static_cast<int32_t>(which));
}

}  // namespace bnb::ops
