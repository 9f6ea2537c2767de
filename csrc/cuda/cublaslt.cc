// cuBLASLt for large 16-bit products, opened with dlopen so that the addon needs no CUDA library at all. The
// declarations are our own, from NVIDIA's documentation: twelve functions, a few enums, and one structure whose size
// has not changed from CUDA 11 to 13.
//
// A library is used only if its major version is known and, per device and type, its 64 x 64 x 64 product of random
// numbers agrees with our own kernel's; otherwise it is off for the rest of the process. A shape that it refuses goes
// to our own kernel from then on, and other shapes stay with it. BNB_CUBLASLT=0 turns it off from the start; a path
// opens that file. An emulated device looks for it only with BNB_EMULATED_CUBLASLT, for tests.

#include "cuda/cublaslt.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/error.h"
#include "cuda/kernels/matmul/matmul.h"

namespace bnb::cuda {
namespace {

using Status = int;        // 0 is success
using Handle = void*;      // cublasLtHandle_t
using Desc = void*;        // cublasLtMatmulDesc_t
using Layout = void*;      // cublasLtMatrixLayout_t
using Preference = void*;  // cublasLtMatmulPreference_t

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  Status state;
  float waves;
  int32_t reserved[4];
};
static_assert(sizeof(Algorithm) == 64 && sizeof(Heuristic) == 96);

enum DataType : int32_t { kR32F = 0, kR16F = 2, kR16BF = 14 };                        // cudaDataType_t
enum ComputeType : int32_t { kCompute32F = 68 };                                      // cublasComputeType_t
enum DescAttribute : int32_t { kTransA = 3, kTransB = 4, kEpilogue = 7, kBias = 8 };  // ...MatmulDescAttributes_t
enum LayoutAttribute : int32_t { kBatchCount = 5, kBatchOffset = 6 };                 // ...MatrixLayoutAttribute_t
enum PreferenceAttribute : int32_t { kMaxWorkspace = 1, kReductions = 3, kAlignment = 5 };  // A; then B, C, D
constexpr uint32_t kEpilogueNone = 1, kEpilogueBias = 4;
constexpr uint32_t kReduceInFloat32 = 2;  // parts of a split sum stay in the compute type
constexpr size_t kWorkspace = size_t{32} << 20;
constexpr size_t kTestBytes = size_t{64} << 10;  // before the workspace

struct Library {
  Status (*create)(Handle*);
  Status (*destroy)(Handle);
  Status (*desc_create)(Desc*, int32_t compute, int32_t scale);
  Status (*desc_destroy)(Desc);
  Status (*desc_set)(Desc, int32_t attribute, const void* value, size_t size);
  Status (*layout_create)(Layout*, int32_t type, uint64_t rows, uint64_t cols, int64_t ld);
  Status (*layout_destroy)(Layout);
  Status (*layout_set)(Layout, int32_t attribute, const void* value, size_t size);
  Status (*preference_create)(Preference*);
  Status (*preference_set)(Preference, int32_t attribute, const void* value, size_t size);
  Status (*heuristic)(Handle, Desc, Layout, Layout, Layout, Layout, Preference, int wanted, Heuristic*, int* found);
  Status (*matmul)(Handle, Desc, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta,
                   const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace, size_t, void* stream);
  size_t (*version)();
  bool open = false;
};

// What a chosen algorithm depends on: the logarithm of m, so that prompts of any length share one.
using Key = std::tuple<int, int64_t, int64_t, int64_t, int64_t, int>;

struct DeviceState {
  Handle handle = nullptr;
  std::map<Key, std::optional<Algorithm>> algorithms;  // none: refused
  bool tested[2] = {false, false};                     // float16, bfloat16
};

std::mutex mutex;
std::string& status() {
  static auto* text = new std::string("not needed yet");
  return *text;
}
bool disabled = false;
// Why the last product was refused.
std::string& refusal() {
  static auto* text = new std::string;
  return *text;
}
bool refuse(const char* call, int status) {
  refusal() = std::string(call) + " gave status " + std::to_string(status);
  return false;
}

void disable(const std::string& why) {
  disabled = true;
  status() = why;
}

#if defined(_WIN32)
void load(Library&) { disable("not looked for on Windows"); }
#else
template <class F>
bool find(void* file, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(file, name));
  return function != nullptr;
}

bool load_from(void* file, Library& lib) {
  if (!file) return false;
  if (!find(file, "cublasLtGetVersion", lib.version)) return false;
  const size_t version = lib.version(), major = version / 10000;
  if (major < 11 || major > 13) {
    status() = "version " + std::to_string(version) + " is not known";
    return false;
  }
  lib.open = find(file, "cublasLtCreate", lib.create) && find(file, "cublasLtDestroy", lib.destroy) &&
             find(file, "cublasLtMatmulDescCreate", lib.desc_create) &&
             find(file, "cublasLtMatmulDescDestroy", lib.desc_destroy) &&
             find(file, "cublasLtMatmulDescSetAttribute", lib.desc_set) &&
             find(file, "cublasLtMatrixLayoutCreate", lib.layout_create) &&
             find(file, "cublasLtMatrixLayoutDestroy", lib.layout_destroy) &&
             find(file, "cublasLtMatrixLayoutSetAttribute", lib.layout_set) &&
             find(file, "cublasLtMatmulPreferenceCreate", lib.preference_create) &&
             find(file, "cublasLtMatmulPreferenceSetAttribute", lib.preference_set) &&
             find(file, "cublasLtMatmulAlgoGetHeuristic", lib.heuristic) && find(file, "cublasLtMatmul", lib.matmul);
  if (lib.open) status() = "version " + std::to_string(version);
  return lib.open;
}

// Where pip puts NVIDIA's packages and what PyTorch brings along, below these folders.
void add_python_folders(const std::filesystem::path& root, std::vector<std::string>& folders) {
  namespace fs = std::filesystem;
  std::error_code error;
  for (fs::directory_iterator at(root, error), end; !error && at != end; at.increment(error)) {
    if (at->path().filename().string().rfind("python3", 0) != 0) continue;
    for (const char* packages : {"site-packages", "dist-packages"})
      for (const char* folder : {"nvidia/cu13/lib", "nvidia/cublas/lib", "torch/lib"}) {
        const fs::path path = at->path() / packages / folder;
        if (std::error_code missing; fs::is_directory(path, missing)) folders.push_back(path.string() + "/");
      }
  }
}

// The active virtual environment, where the loader looks, the toolkit, and other environments.
std::vector<std::string> folders_to_search() {
  std::vector<std::string> folders;
  const auto below = [&](const char* variable, const char* folder) {
    if (const char* root = std::getenv(variable); root && *root)
      add_python_folders(std::filesystem::path(root) / folder, folders);
  };
  below("VIRTUAL_ENV", "lib");
  below("CONDA_PREFIX", "lib");
  folders.insert(folders.end(), {"", "/usr/local/cuda/lib64/"});
  below("HOME", ".local/lib");
  for (const char* root : {"/usr/local/lib", "/usr/lib", "/opt/conda/lib"}) add_python_folders(root, folders);
  return folders;
}

void load(Library& lib) {
  const char* wanted = std::getenv("BNB_CUBLASLT");
  if (wanted && std::string(wanted) == "0") return disable("turned off by BNB_CUBLASLT=0");
  status() = "not found";
  if (wanted && *wanted) {
    if (!load_from(dlopen(wanted, RTLD_NOW | RTLD_LOCAL), lib)) disable(std::string(wanted) + " " + status());
    return;
  }
#if BNB_CUDA_EMULATE
  if (!std::getenv("BNB_EMULATED_CUBLASLT")) return disable("not used by an emulated device");
#endif
  // A copy that this process has loaded already comes first: two versions side by side are asking for trouble.
  const std::vector<std::string> names = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"};
  for (const std::string& name : names)
    if (load_from(dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD), lib)) return;
  for (const std::string& folder : folders_to_search())
    for (const std::string& name : names)
      if (load_from(dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL), lib)) return;
  disable(status());
}
#endif

Library& library() {
  static Library* lib = [] {
    auto* fresh = new Library;
    load(*fresh);
    return fresh;
  }();
  return *lib;
}

// By the stream, of which each device has one.
std::map<const CudaStream*, DeviceState>& states() {
  static auto* states = new std::map<const CudaStream*, DeviceState>;
  return *states;
}

// The descriptors of one product, freed at its end. Row-major c = a b is column-major c^T = b^T a^T: the library's A
// is our b, and its matrices are ours transposed.
class Problem {
 public:
  Problem(Library& lib, const MatmulArgs& a) : lib_(lib) {
    const int32_t type = a.dtype_c == DType::float16 ? kR16F : kR16BF;
    const int32_t trans_a = a.transpose_b, trans_b = a.transpose_a;
    const uint32_t epilogue = a.bias ? kEpilogueBias : kEpilogueNone;
    ok_ = lib.desc_create(&desc, kCompute32F, kR32F) == 0;
    set(kTransA, &trans_a, sizeof trans_a);
    set(kTransB, &trans_b, sizeof trans_b);
    set(kEpilogue, &epilogue, sizeof epilogue);
    if (a.bias) set(kBias, &a.bias, sizeof a.bias);
    layout(left, type, a.transpose_b ? a.k : a.n, a.transpose_b ? a.n : a.k, 0, a.batch, a.stride_b);
    layout(right, type, a.transpose_a ? a.m : a.k, a.transpose_a ? a.k : a.m, 0, a.batch, a.stride_a);
    layout(result, type, a.n, a.m, a.row_c, a.batch, a.m * (a.row_c ? a.row_c : a.n));
  }
  ~Problem() {
    if (desc) lib_.desc_destroy(desc);
    for (Layout l : {left, right, result})
      if (l) lib_.layout_destroy(l);
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;
  bool ok() const { return ok_; }

  Desc desc = nullptr;
  Layout left = nullptr, right = nullptr, result = nullptr;

 private:
  void set(int32_t attribute, const void* value, size_t size) {
    ok_ = ok_ && lib_.desc_set(desc, attribute, value, size) == 0;
  }
  // `step` from one of the columns to the next, 0 for rows.
  void layout(Layout& l, int32_t type, int64_t rows, int64_t cols, int64_t step, int64_t batch, int64_t stride) {
    ok_ = ok_ && lib_.layout_create(&l, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                                    step ? step : rows) == 0;
    if (batch == 1) return;
    const auto count = static_cast<int32_t>(batch);
    ok_ = ok_ && lib_.layout_set(l, kBatchCount, &count, sizeof count) == 0 &&
          lib_.layout_set(l, kBatchOffset, &stride, sizeof stride) == 0;
  }
  Library& lib_;
  bool ok_ = false;
};

// The power of two, up to 256, that all addresses of the product are multiples of.
uint32_t alignment_of(const MatmulArgs& a) {
  const auto bits = reinterpret_cast<uintptr_t>(a.a) | reinterpret_cast<uintptr_t>(a.b) |
                    reinterpret_cast<uintptr_t>(a.c) | reinterpret_cast<uintptr_t>(a.bias) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

bool choose(Library& lib, DeviceState& state, const Problem& p, uint32_t alignment, Algorithm& algorithm) {
  Preference preference = nullptr;
  if (lib.preference_create(&preference) != 0) return false;  // a few dozen in a process: never destroyed
  const uint64_t workspace = kWorkspace;
  bool ok = lib.preference_set(preference, kMaxWorkspace, &workspace, sizeof workspace) == 0 &&
            lib.preference_set(preference, kReductions, &kReduceInFloat32, sizeof kReduceInFloat32) == 0;
  for (int32_t i = 0; i < 4; i++)
    ok = ok && lib.preference_set(preference, kAlignment + i, &alignment, sizeof alignment) == 0;
  if (!ok) return refuse("cublasLtMatmulPreferenceSetAttribute", -1);
  Heuristic found{};
  int count = 0;
  const Status status =
      lib.heuristic(state.handle, p.desc, p.left, p.right, p.result, p.result, preference, 1, &found, &count);
  if (status != 0 || count < 1) return refuse("cublasLtMatmulAlgoGetHeuristic", status);
  if (found.state != 0 || found.workspace > kWorkspace) return refuse("the heuristic's algorithm", found.state);
  algorithm = found.algorithm;
  return true;
}

int log2_of(int64_t n) {
  int log = 0;
  while ((int64_t{1} << log) < n) log++;
  return log;
}

bool multiply(Library& lib, DeviceState& state, const MatmulArgs& a, void* workspace, const CudaStream& s) {
  const Problem p(lib, a);
  if (!p.ok()) return refuse("a descriptor of the problem", -1);
  const uint32_t alignment = alignment_of(a);
  const int flags = (a.dtype_c == DType::float16) | a.transpose_a << 1 | a.transpose_b << 2 | (a.bias != nullptr) << 3 |
                    a.accumulate << 4 | log2_of(alignment) << 5;
  const Key key = {log2_of(a.m), a.n, a.k, a.row_c, a.batch, flags};
  const float alpha = 1.0f, beta = a.accumulate ? 1.0f : 0.0f;
  const auto run = [&](const Algorithm& algorithm) {
    const Status status = lib.matmul(state.handle, p.desc, &alpha, a.b, p.left, a.a, p.right, &beta, a.c, p.result, a.c,
                                     p.result, &algorithm, workspace, kWorkspace, s.handle);
    return status == 0 || refuse("cublasLtMatmul", status);
  };
  const auto [entry, is_new] = state.algorithms.try_emplace(key);
  std::optional<Algorithm>& known = entry->second;
  if (!is_new && !known) return false;
  if (known && run(*known)) return true;
  // None yet, or one for another m that does not do for this one.
  Algorithm algorithm;
  known.reset();
  if (!choose(lib, state, p, alignment, algorithm) || !run(algorithm)) return false;
  known = algorithm;
  return true;
}

// 64 x 64 x 64 against matmul_simt, with every flag that products use.
template <class T>
bool agrees(Library& lib, DeviceState& state, DType dtype, unsigned char* memory, CudaStream& s) {
  constexpr int64_t kSide = 64, kCount = kSide * kSide;
  static_assert((4 * kCount + kSide) * sizeof(T) <= kTestBytes);
  std::vector<T> host(4 * kCount + kSide);  // a, b, bias, then c twice
  uint32_t random = 12345;
  for (T& x : host) {
    random = random * 1664525 + 1013904223;
    x = from_float<T>(static_cast<float>(random >> 8) * 0x1p-23f - 1.0f);
  }
  T* device = reinterpret_cast<T*>(memory);
  T *a = device, *b = a + kCount, *bias = b + kCount, *c = bias + kSide, *d = c + kCount;
  std::vector<T> theirs(kCount), ours(kCount);
  for (int flags = 0; flags < 4; flags++) {
    copy_and_wait(s, device, host.data(), host.size() * sizeof(T));
    copy_and_wait(s, d, host.data() + (c - device), kCount * sizeof(T));
    MatmulArgs args = {.a = a,
                       .b = b,
                       .bias = flags & 1 ? bias : nullptr,
                       .c = c,
                       .batch = 1,
                       .m = kSide,
                       .n = kSide,
                       .k = kSide,
                       .stride_a = 0,
                       .stride_b = 0,
                       .dtype_a = dtype,
                       .dtype_b = dtype,
                       .dtype_c = dtype,
                       .transpose_a = (flags & 2) != 0,
                       .transpose_b = (flags & 1) != 0,
                       .accumulate = (flags & 2) != 0};
    if (!multiply(lib, state, args, memory + kTestBytes, s)) return false;
    args.c = d;
    matmul_simt(args, plan_with(MatmulVariant::simt, problem_of(args), s.gpu), s);
    copy_and_wait(s, theirs.data(), c, kCount * sizeof(T));
    copy_and_wait(s, ours.data(), d, kCount * sizeof(T));
    for (int64_t i = 0; i < kCount; i++) {
      const float x = to_float(theirs[static_cast<size_t>(i)]), y = to_float(ours[static_cast<size_t>(i)]);
      // One rounding apart at most; 64 products of numbers below 1 give sums of a few units.
      if (std::fabs(x - y) <= 0x1p-7f * std::fabs(y) + 1e-3f) continue;
      refusal() = std::to_string(x) + " where our kernel has " + std::to_string(y);
      return false;
    }
  }
  return true;
}

bool ready(Library& lib, DeviceState& state, DType dtype, unsigned char* memory, CudaStream& s) {
  bool& tested = state.tested[dtype == DType::bfloat16];
  if (tested) return true;
  if (!state.handle && lib.create(&state.handle) != 0) {
    disable(status() + " does not start on this driver");
    return false;
  }
  tested =
      dtype == DType::float16 ? agrees<f16>(lib, state, dtype, memory, s) : agrees<bf16>(lib, state, dtype, memory, s);
  if (!tested) disable(status() + " failed the self-test: " + refusal());
  return tested;
}

}  // namespace

bool cublaslt_present() {
  const std::lock_guard lock(mutex);
  return library().open && !disabled;
}

const char* cublaslt_status() {
  const std::lock_guard lock(mutex);
  return status().c_str();
}

bool cublaslt_matmul(const MatmulArgs& a, CudaStream& s) {
  const std::lock_guard lock(mutex);
  Library& lib = library();
  if (!lib.open || disabled || a.batch > INT32_MAX || a.row_c % 8 != 0) return false;
  DeviceState& state = states()[&s];
  // A test reads its results, which a graph cannot do while it is recorded.
  if (s.capturing && !state.tested[a.dtype_c == DType::bfloat16]) return false;
  CudaStream& inner = s.inner();
  auto* memory = static_cast<unsigned char*>(inner.scratch(kTestBytes + kWorkspace));
  if (!ready(lib, state, a.dtype_c, memory, inner)) return false;
  return multiply(lib, state, a, memory + kTestBytes, s);
}

void cublaslt_forget(const CudaStream& s) {
  const std::lock_guard lock(mutex);
  const auto found = states().find(&s);
  if (found == states().end()) return;
  if (found->second.handle) library().destroy(found->second.handle);
  states().erase(found);
}

}  // namespace bnb::cuda
