// One instruction set per compilation: every source is compiled once for each set, with its own flags and LTC_ISA, into
// its own namespace, and api.cpp picks the table of the best set that the running CPU has.
//
// These sources use no standard library templates: an inline function compiled here with AVX-512 would be merged by
// the linker with its baseline twin, and an older CPU would run the wrong one.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifndef LTC_ISA
#define LTC_ISA baseline
#endif
#define LTC_CONCAT2(a, b) a##b
#define LTC_CONCAT(a, b) LTC_CONCAT2(a, b)
#define LTC_NAMESPACE LTC_CONCAT(ltc_, LTC_ISA)

#define LTC_INLINE inline __attribute__((always_inline))

namespace LTC_NAMESPACE {

template <class T>
LTC_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}

// First of the items that thread `part` of `parts` works on: contiguous, and a function of the counts alone, so that
// sums over threads are the same in every run.
LTC_INLINE int64_t share(int64_t items, int64_t part, int64_t parts) { return items * part / parts; }

// Aligned memory that is freed with its scope; `data` is null when there is none.
template <class T>
struct Array {
  T* data;
  explicit Array(int64_t count, bool zero = false) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
    data = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data != nullptr && zero) std::memset(static_cast<void*>(data), 0, bytes);
  }
  ~Array() { std::free(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
};
using Buffer = Array<float>;

// result[n] = sum over threads of parts[n], always in the same order. `apart`: floats from one thread's to the next's.
inline void add_parts(const float* parts, int threads, int64_t apart, int64_t count, float* result) {
  for (int64_t n = 0; n < count; ++n) {
    float sum = 0.0f;
    for (int part = 0; part < threads; ++part) sum += parts[part * apart + n];
    result[n] = sum;
  }
}

}  // namespace LTC_NAMESPACE
