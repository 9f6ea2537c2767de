// A stand-in for cuBLASLt on the memory of an emulated device: it multiplies on the spot, refuses every product with
// k = 136, and appends what it was asked to the file in FAKE_CUBLASLT_LOG.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

constexpr int kFloat16 = 2;
constexpr uint64_t kRefused = 136;

struct Desc {
  int32_t transposes[2] = {0, 0};
  uint32_t epilogue = 1;
  const void* bias = nullptr;
};
struct Layout {
  int32_t type;
  uint64_t rows, cols;
  int64_t ld;
  int32_t batch = 1;
  int64_t stride = 0;
};

float widen(uint16_t bits, int type) {
  if (type != kFloat16) {
    const uint32_t u = uint32_t{bits} << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}

uint16_t narrow(float f, int type) {
  if (type == kFloat16) {
    const _Float16 half = static_cast<_Float16>(f);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

void log(const char* what, uint64_t m, uint64_t n, uint64_t k) {
  FILE* file = std::fopen(std::getenv("FAKE_CUBLASLT_LOG"), "a");
  std::fprintf(file, "%s %llu %llu %llu\n", what, (unsigned long long)m, (unsigned long long)n, (unsigned long long)k);
  std::fclose(file);
}

uint64_t depth(const Desc& d, const Layout& a) { return d.transposes[0] ? a.rows : a.cols; }

}  // namespace

extern "C" {
size_t cublasLtGetVersion() { return 120900; }
int cublasLtCreate(void** handle) {
  log("create", 0, 0, 0);
  *handle = new int;
  return 0;
}
int cublasLtDestroy(void* handle) {
  log("destroy", 0, 0, 0);
  delete static_cast<int*>(handle);
  return 0;
}
int cublasLtMatmulDescCreate(void** desc, int32_t, int32_t) {
  *desc = new Desc;
  return 0;
}
int cublasLtMatmulDescDestroy(void* desc) {
  delete static_cast<Desc*>(desc);
  return 0;
}
int cublasLtMatmulDescSetAttribute(void* desc, int32_t attribute, const void* value, size_t size) {
  auto* d = static_cast<Desc*>(desc);
  void* const fields[] = {&d->transposes[0], &d->transposes[1], nullptr, nullptr, &d->epilogue, &d->bias};
  std::memcpy(fields[attribute - 3], value, size);
  return 0;
}
int cublasLtMatrixLayoutCreate(void** layout, int32_t type, uint64_t rows, uint64_t cols, int64_t ld) {
  *layout = new Layout{type, rows, cols, ld};
  return 0;
}
int cublasLtMatrixLayoutDestroy(void* layout) {
  delete static_cast<Layout*>(layout);
  return 0;
}
int cublasLtMatrixLayoutSetAttribute(void* layout, int32_t attribute, const void* value, size_t size) {
  auto* l = static_cast<Layout*>(layout);
  std::memcpy(attribute == 5 ? static_cast<void*>(&l->batch) : &l->stride, value, size);
  return 0;
}
int cublasLtMatmulPreferenceCreate(void** preference) {
  *preference = preference;
  return 0;
}
int cublasLtMatmulPreferenceSetAttribute(void*, int32_t, const void*, size_t) { return 0; }
int cublasLtMatmulAlgoGetHeuristic(void*, void* desc, void* left, void*, void* result, void*, void*, int, void* found,
                                   int* count) {
  const auto* d = static_cast<Layout*>(result);
  const uint64_t k = depth(*static_cast<Desc*>(desc), *static_cast<Layout*>(left));
  log("choose", d->cols, d->rows, k);
  std::memset(found, 0, 96);
  *count = k == kRefused ? 0 : 1;
  return 0;
}
int cublasLtMatmul(void*, void* desc, const void*, const void* a, void* left, const void* b, void* right,
                   const void* beta, const void*, void*, void* d, void* result, const void*, void*, size_t, void*) {
  const auto& t = *static_cast<Desc*>(desc);
  const auto &la = *static_cast<Layout*>(left), &lb = *static_cast<Layout*>(right), &ld = *static_cast<Layout*>(result);
  const uint64_t m = ld.rows, n = ld.cols, k = depth(t, la);
  log("multiply", n, m, k);
  const float old = *static_cast<const float*>(beta);
  std::vector<float> x(m * k), y(n * k);
  for (int32_t batch = 0; batch < ld.batch; batch++) {
    const auto* pa = static_cast<const uint16_t*>(a) + batch * la.stride;
    const auto* pb = static_cast<const uint16_t*>(b) + batch * lb.stride;
    auto* pd = static_cast<uint16_t*>(d) + batch * ld.stride;
    for (uint64_t i = 0; i < m; i++)
      for (uint64_t j = 0; j < k; j++)
        x[i * k + j] = widen(pa[t.transposes[0] ? j + i * la.ld : i + j * la.ld], la.type);
    for (uint64_t i = 0; i < n; i++)
      for (uint64_t j = 0; j < k; j++)
        y[i * k + j] = widen(pb[t.transposes[1] ? i + j * lb.ld : j + i * lb.ld], lb.type);
    for (uint64_t c = 0; c < n; c++) {
      for (uint64_t r = 0; r < m; r++) {
        float sum = 0;
        for (uint64_t j = 0; j < k; j++) sum += x[r * k + j] * y[c * k + j];
        if (t.bias) sum += widen(static_cast<const uint16_t*>(t.bias)[r], ld.type);
        uint16_t& to = pd[r + c * ld.ld];
        if (old != 0) sum += old * widen(to, ld.type);
        to = narrow(sum, ld.type);
      }
    }
  }
  return 0;
}
}
