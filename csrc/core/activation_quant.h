// To how many bits a CPU may round the activations of a product with a 4-bit weight.
#pragma once
#include <cstdint>

namespace bnb {

// int16, int8: it may where that is faster on its instruction set; what multiplies exactly as fast does so.
enum class ActivationQuant : int32_t { none, int16, int8 };
constexpr int kActivationQuantCount = 3;

}  // namespace bnb
