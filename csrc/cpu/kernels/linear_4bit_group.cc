// Products of one x with several 4-bit weights, and SwiGLU of two of them.
//
// Layout    as linear_4bit.cc; the two products under a SwiGLU are float32 scratch memory.
// Work      one product after the other, each as linear_4bit does it.
// Numerics  as linear_4bit.cc; SwiGLU takes the sums before any rounding, and is rounded once.
// Needs     what the contract says.
#include "cpu/lanes.h"
#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "kernels/linear_4bit.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 8192;

}  // namespace

void linear_4bit_group(const Linear4BitGroupArgs& a) {
  if (!a.swiglu) {
    for (int i = 0; i < a.count; i++) linear_4bit(one_of(a, i, a.y[i], a.dtype));
    return;
  }
  const int64_t size = a.m * a.n[0];
  const Scratch<float> gate(2 * size);
  float* up = gate + size;
  linear_4bit(one_of(a, 0, gate, DType::float32));
  linear_4bit(one_of(a, 1, up, DType::float32));
  visit_float(a.dtype, [&](auto t) {
    auto* y = static_cast<decltype(t)*>(a.y[0]);
    parallel_for(size, kChunkElements, [&](int64_t begin, int64_t end) {
      for_lanes(end - begin, [&](int64_t i, auto lanes) {
        const F32 g = lanes.load(gate + begin + i);
        lanes.store(y + begin + i, g * sigmoid(g) * lanes.load(up + begin + i));
      });
    });
  });
}

}  // namespace bnb::BNB_ISA
