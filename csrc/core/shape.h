// An inline shape of at most eight axes. Every tensor is contiguous and row-major, so strides follow from it.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <ostream>

#include "core/error.h"

namespace bnb {

constexpr int kMaxAxes = 8;
// A JavaScript number holds integers exactly up to here; no tensor may have more bytes.
constexpr int64_t kMaxBytes = int64_t{1} << 53;

// The one product of sizes: of several numbers, or of a shape's axes (below). Where it could exceed what any tensor may
// have it throws Code::shape, so that no size that comes from it can wrap around.
inline int64_t size_product(int64_t a, int64_t b) {
  int64_t product;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) || product > kMaxBytes) [[unlikely]]
    fail(Code::shape, "size", "sizes must be at least 0 and multiply to at most 2^53, got ", a, " * ", b);
  return product;
}
template <class... More>
int64_t size_product(int64_t a, int64_t b, More... more) {
  return size_product(size_product(a, b), more...);
}

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    for (const int64_t d : dims) push_back(d);
  }

  int ndim() const { return ndim_; }
  // Negative axes count from the end.
  int64_t operator[](int axis) const { return dims_[axis < 0 ? axis + ndim_ : axis]; }
  int64_t& operator[](int axis) { return dims_[axis < 0 ? axis + ndim_ : axis]; }
  const int64_t* begin() const { return dims_; }
  const int64_t* end() const { return dims_ + ndim_; }

  void push_back(int64_t dim) {
    if (ndim_ == kMaxAxes) fail(Code::shape, "shape", "at most ", kMaxAxes, " axes, got more");
    dims_[ndim_++] = dim;
  }

  // Product of the axes [from, to); negative bounds count from the end. The empty product is 1. Throws Code::shape for
  // sizes that no tensor has: below 0, or too large together, also beside an axis of size 0, so that each product of
  // some axes of a tensor is a size, too.
  int64_t product(int from, int to) const {
    int64_t n = 1;
    bool empty = false;
    for (int i = from < 0 ? from + ndim_ : from; i < (to < 0 ? to + ndim_ : to); i++) {
      empty = empty || dims_[i] == 0;
      if (dims_[i] < 0) [[unlikely]]
        fail_product("sizes must be at least 0");
      if (dims_[i] != 0 && (__builtin_mul_overflow(n, dims_[i], &n) || n > kMaxBytes)) [[unlikely]]
        fail_product("the size must stay below 2^53 bytes");
    }
    return empty ? 0 : n;
  }
  int64_t numel() const { return product(0, ndim_); }

  Shape with_last(int64_t dim) const {
    Shape s = *this;
    s[-1] = dim;
    return s;
  }

  Shape without_last() const {
    Shape s = *this;
    s.dims_[--s.ndim_] = 0;
    return s;
  }

  bool operator==(const Shape& other) const {
    if (ndim_ != other.ndim_) return false;
    for (int i = 0; i < ndim_; i++)
      if (dims_[i] != other.dims_[i]) return false;
    return true;
  }

 private:
  [[noreturn]] void fail_product(const char* rule) const;  // below operator<<

  int64_t dims_[kMaxAxes] = {};
  int ndim_ = 0;
};

inline std::ostream& operator<<(std::ostream& out, const Shape& s) {
  out << '[';
  for (int i = 0; i < s.ndim(); i++) out << (i ? ", " : "") << s[i];
  return out << ']';
}

inline void Shape::fail_product(const char* rule) const { fail(Code::shape, "tensor", rule, ", got ", *this); }

// NumPy broadcasting of two shapes.
inline Shape broadcast(const char* op, const Shape& a, const Shape& b) {
  const int n = a.ndim() > b.ndim() ? a.ndim() : b.ndim();
  Shape out;
  for (int i = 0; i < n; i++) {
    const int ia = i - (n - a.ndim()), ib = i - (n - b.ndim());
    const int64_t da = ia < 0 ? 1 : a[ia], db = ib < 0 ? 1 : b[ib];
    if (da != db && da != 1 && db != 1) fail(Code::shape, op, "shapes must broadcast, got ", a, " and ", b);
    out.push_back(da == 1 ? db : da);
  }
  return out;
}

}  // namespace bnb
