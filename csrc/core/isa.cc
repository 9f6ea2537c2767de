// Detection of the instruction sets named in kernel.h. Each level is a bundle: all of it or the one below.

#include "core/isa.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace bnb {
namespace {

struct Level {
  const char* name;
  Isa isa;
  bool supported;
  bool avx_vnni;
};

#if defined(__x86_64__)
// What __builtin_cpu_supports does not know everywhere. Vectors of 256 bits must be usable, which avx2 says.
bool cpu_has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}
bool cpu_has_avx_vnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1) != 0;
}
#endif

Level choose_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                    cpu_has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  const Level levels[] = {{"avx512", Isa::avx512, avx512, false},
                          {"avx_vnni", Isa::avx2, avx2 && cpu_has_avx_vnni(), true},
                          {"avx2", Isa::avx2, avx2, false},
                          {"base", Isa::base, true, false}};
#else
  const Level levels[] = {{"base", Isa::base, true, false}};
#endif
  const Level* best = levels;
  while (!best->supported) best++;
  const char* wanted = std::getenv("BNB_CPU");
  if (!wanted || !*wanted) return *best;
  for (const Level& level : levels) {
    if (std::strcmp(wanted, level.name) != 0) continue;
    if (level.supported) return level;
    std::fprintf(stderr, "bitsandbytes-node: BNB_CPU=%s is not supported by this CPU, using %s\n", wanted, best->name);
    return *best;
  }
  std::fprintf(stderr, "bitsandbytes-node: BNB_CPU must be base, avx2, avx_vnni or avx512, got %s; using %s\n", wanted,
               best->name);
  return *best;
}

const Level& active_level() {
  static const Level level = choose_level();
  return level;
}

}  // namespace

Isa active_isa() { return active_level().isa; }

bool has_avx_vnni() { return active_level().avx_vnni; }

const char* isa_name() { return active_level().name; }

}  // namespace bnb
