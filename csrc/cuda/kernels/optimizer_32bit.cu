// One optimizer step with float32 states, updated where they are.
//
// Layout    state1 [n] ([2, n] for AdEMAMix), state2 [n].
// Work      cuda/optimizer_step.cuh; bound by memory (AdamW on float32: 28 bytes an element).
// Numerics  kernels/optimizer_rules.h.
// Needs     nothing beyond the contract.
#include "cuda/optimizer_step.cuh"
#include "kernels/optimizer_32bit.h"

namespace bnb::cuda {
namespace {

struct Float32States {
  static constexpr int kItems = 4, kThreads = 256;
  static constexpr int blocks_per_sm(UpdateRule) { return 3; }
  static constexpr size_t kSharedBytes = 0;
  struct Tables {
    __device__ void load() {}
  };
  template <class Rule>
  struct Raw {
    RawItems<kItems> items[Rule::kStates];
  };

  template <class Rule>
  __device__ static float* state(const OptimizerJob& job, int j) {
    if (j >= Rule::kStates - Rule::kUnsigned) return static_cast<float*>(job.state2);
    return static_cast<float*>(job.state1) + j * job.n;
  }

  template <class Rule>
  __device__ static Raw<Rule> fetch(const OptimizerJob& job, const Tile<kItems>& t) {
    Raw<Rule> raw;
#pragma unroll
    for (int j = 0; j < Rule::kStates; j++) raw.items[j] = fetch_items(state<Rule>(job, j), DType::float32, t, 0.0f);
    return raw;
  }

  template <class Rule>
  __device__ static void decode(const Tables&, const Raw<Rule>& raw, const Tile<kItems>&,
                                float (&s)[Rule::kStates][kItems]) {
#pragma unroll
    for (int j = 0; j < Rule::kStates; j++) widen_items(raw.items[j], s[j]);
  }

  template <class Rule>
  __device__ __forceinline__ static bool aligned(const OptimizerJob& job) {
    uintptr_t bits = 0;
    for (int j = 0; j < Rule::kStates; j++) bits |= reinterpret_cast<uintptr_t>(state<Rule>(job, j));
    return bits % 16 == 0;
  }

  template <class Rule, int Run>
  struct Plain {
    static_assert(Run == kItems);
    float* state_of_lane[Rule::kStates];

    __device__ __forceinline__ Plain(const OptimizerJob& job, int lane) {
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) state_of_lane[j] = state<Rule>(job, j) + lane * kItems;
    }
    __device__ __forceinline__ void load(const Tables&, int tile, float (&s)[Rule::kStates][kItems]) const {
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) load_plain(state_of_lane[j] + int64_t{tile} * (kItems * kWarp), s[j]);
    }
    __device__ __forceinline__ bool plain(const float (&top)[Rule::kStates], bool fine) const {
      float all = 0.0f;
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) all = max_magnitude(all, top[j]);
      return !__any_sync(kFullMask, !(fine && all <= kLargestFloat));
    }
    __device__ __forceinline__ void store(const Tables&, int tile, const float (&s)[Rule::kStates][kItems],
                                          const float (&)[Rule::kStates]) const {
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) store_plain(state_of_lane[j] + int64_t{tile} * (kItems * kWarp), s[j]);
    }
  };

  template <class Rule>
  struct Single {
    float* states[Rule::kStates];

    __device__ __forceinline__ Single(const OptimizerJob& job, int64_t) {
#pragma unroll
      for (int j = 0; j < Rule::kStates; j++) states[j] = state<Rule>(job, j);
    }
    __device__ __forceinline__ float load(const Tables&, int j, int64_t i) const { return states[j][i]; }
    __device__ __forceinline__ void set_scales(const float (&)[Rule::kStates]) {}
    __device__ __forceinline__ void store(const Tables&, int j, int64_t i, float x) const { states[j][i] = x; }
  };
};

}  // namespace

void optimizer_32bit(const OptimizerArgs& a, CudaStream& s) { optimizer_step<Float32States>(a, s); }

}  // namespace bnb::cuda
