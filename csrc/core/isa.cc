// Detection of the instruction sets named in kernel.h. Each level is a bundle: all of it or the one below.

#include "core/isa.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace bnb {
namespace {

constexpr const char* kNames[] = {"base", "avx2", "avx512"};

Isa supported_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::base;
#else
  return Isa::base;
#endif
}

Isa choose_isa() {
  const Isa best = supported_isa();
  const char* wanted = std::getenv("BNB_CPU");
  if (!wanted || !*wanted) return best;
  for (int i = 0; i < kIsaCount; i++) {
    if (std::strcmp(wanted, kNames[i]) != 0) continue;
    if (i <= static_cast<int>(best)) return static_cast<Isa>(i);
    std::fprintf(stderr, "bitsandbytes-node: BNB_CPU=%s is not supported by this CPU, using %s\n", wanted,
                 isa_name(best));
    return best;
  }
  std::fprintf(stderr, "bitsandbytes-node: BNB_CPU must be base, avx2 or avx512, got %s; using %s\n", wanted,
               isa_name(best));
  return best;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace bnb
