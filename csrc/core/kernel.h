// A kernel is a plain function with one name in several namespaces, one per target. The linker is the
// registry: BNB_KERNEL declares the function for every target, and a target that lacks it does not link.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace bnb {

// Ordered: each level includes the ones before it. Detection is in core/isa.cc.
#if defined(__x86_64__) || defined(_M_X64)
enum class Isa : int32_t { base, avx2, avx512 };
constexpr int kIsaCount = 3;
#define BNB_FOR_EACH_ISA(X, name, Args) X(cpu_base, name, Args) X(cpu_avx2, name, Args) X(cpu_avx512, name, Args)
#define BNB_ISA_TABLE(name) \
  { &cpu_base::name, &cpu_avx2::name, &cpu_avx512::name }
#else
enum class Isa : int32_t { base };
constexpr int kIsaCount = 1;
#define BNB_FOR_EACH_ISA(X, name, Args) X(cpu_base, name, Args)
#define BNB_ISA_TABLE(name) \
  { &cpu_base::name }
#endif

struct CudaStream;

template <class Args>
struct Kernel {
  const char* name;
  void (*cpu[kIsaCount])(const Args&);
  void (*cuda)(const Args&, CudaStream&);  // null in a build without CUDA
};

#if BNB_CUDA
#define BNB_IF_CUDA(fn) fn
#else
#define BNB_IF_CUDA(fn) nullptr
#endif

#define BNB_DECLARE_CPU(isa, name, Args) \
  namespace isa {                        \
  void name(const Args&);                \
  }

#define BNB_KERNEL(name, Args)                                                          \
  BNB_FOR_EACH_ISA(BNB_DECLARE_CPU, name, Args)                                         \
  namespace cuda {                                                                      \
  void name(const Args&, CudaStream&);                                                  \
  }                                                                                     \
  namespace kernels {                                                                   \
  constexpr Kernel<Args> name = {#name, BNB_ISA_TABLE(name), BNB_IF_CUDA(&cuda::name)}; \
  }

// Where a kernel reports bad data that only it can see, such as a token id beyond the table. One cell per
// stream; the first report wins and becomes the stream's error at the next read.
enum class FaultCode : int32_t { none, index_out_of_range };
struct Fault {
  int32_t code;   // FaultCode
  int64_t value;  // the offending value
  int64_t limit;  // it must be in [0, limit)
  // Who reports. Null on a CPU, where the fault is seen right after the kernel that made it.
  const char* op;
};

}  // namespace bnb
