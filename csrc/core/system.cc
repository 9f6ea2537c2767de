// The one place of the CPU's code that differs between operating systems.

#include "core/system.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace bnb {

#if defined(__linux__)

int available_cores() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = CPU_COUNT(&set);
  std::ifstream quota("/sys/fs/cgroup/cpu.max");  // "max 100000" or "200000 100000"
  double limit = 0, period = 0;
  if (quota >> limit >> period && limit > 0 && period > 0)
    cores = std::min(cores, static_cast<int>((limit + period - 1) / period));
  return std::max(cores, 1);
}

int64_t physical_memory() {
  const int64_t bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  std::ifstream limit("/sys/fs/cgroup/memory.max");  // "max" or a number
  int64_t cgroup = 0;
  return limit >> cgroup && cgroup > 0 ? std::min(bytes, cgroup) : bytes;
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "CPU";
}

void ask_for_huge_pages(void* block, size_t nbytes) { madvise(block, nbytes, MADV_HUGEPAGE); }

#else

int available_cores() { return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1); }

int64_t physical_memory() { return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE); }

std::string cpu_name() {
#if defined(__APPLE__)
  char name[256] = {};
  size_t length = sizeof(name) - 1;
  if (sysctlbyname("machdep.cpu.brand_string", name, &length, nullptr, 0) == 0) return name;
#endif
  return "CPU";
}

void ask_for_huge_pages(void*, size_t) {}

#endif

}  // namespace bnb
