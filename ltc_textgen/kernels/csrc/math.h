// Vectors of floats and the few functions of them that the kernels need, through the vector extensions of GCC and
// Clang: the same text becomes AVX-512, AVX2, SSE2 or NEON.
#pragma once

#include "isa.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace LTC_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * kWidth), may_alias));
typedef int32_t vint __attribute__((vector_size(4 * kWidth), may_alias));
typedef float vfloat_unaligned __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));

LTC_INLINE vfloat splat(float value) { return value - vfloat{}; }
LTC_INLINE vfloat load(const float* p) { return *reinterpret_cast<const vfloat_unaligned*>(p); }
LTC_INLINE void store(float* p, vfloat v) { *reinterpret_cast<vfloat_unaligned*>(p) = v; }

// The end of a row: a function, to keep it out of the loops.
__attribute__((noinline)) inline vfloat load_end(const float* p, int count, float rest) {
  float lanes[kWidth];
  for (int i = 0; i < kWidth; ++i) lanes[i] = i < count ? p[i] : rest;
  return load(lanes);
}
__attribute__((noinline)) inline void store_end(float* p, vfloat v, int count) {
  float lanes[kWidth];
  store(lanes, v);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

// The first `count` lanes; the others read as `rest` and are not written.
LTC_INLINE vfloat load_part(const float* p, int count, float rest = 0.0f) {
  return count >= kWidth ? load(p) : load_end(p, count, rest);
}
LTC_INLINE void store_part(float* p, vfloat v, int count) {
  if (count >= kWidth) store(p, v);
  else store_end(p, v, count);
}

LTC_INLINE float lane_sum(vfloat v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  float sum = 0.0f;
  for (int i = 0; i < kWidth; ++i) sum += v[i];
  return sum;
#endif
}

// Bounds that let NaN through.
LTC_INLINE vfloat at_least(vfloat v, float bound) {
  const vfloat b = splat(bound);
#if defined(__AVX512F__)
  return reinterpret_cast<vfloat>(_mm512_max_ps(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(v)));
#else
  return v < b ? b : v;
#endif
}
LTC_INLINE vfloat at_most(vfloat v, float bound) {
  const vfloat b = splat(bound);
#if defined(__AVX512F__)
  return reinterpret_cast<vfloat>(_mm512_min_ps(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(v)));
#else
  return v > b ? b : v;
#endif
}

// 1 / v for normal v, to an ulp or two.
LTC_INLINE vfloat reciprocal(vfloat v) {
#if defined(__AVX512F__)
  const __m512 a = reinterpret_cast<__m512>(v);
  const __m512 guess = _mm512_rcp14_ps(a);
  const __m512 error = _mm512_fnmadd_ps(a, guess, _mm512_set1_ps(1.0f));
  return reinterpret_cast<vfloat>(_mm512_fmadd_ps(guess, error, guess));
#else
  return splat(1.0f) / v;
#endif
}

constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;

struct PowerOfTwo {
  vfloat scale;     // 2^n
  vfloat fraction;  // 2^f - 1, |f| <= 1/2
};

// exp(v) = scale * (1 + fraction), v in [-87, 87]; relative error 1e-7 (minimax polynomial of degree 5, fitted in
// double precision).
LTC_INLINE PowerOfTwo exp_parts(vfloat v) {
  constexpr float kLog2ELow = 1.92596299e-8f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const vfloat shifted = v * kLog2E + kRound;
  const vfloat n = shifted - kRound;
  const vfloat f = (v * kLog2E - n) + v * kLog2ELow;
  vfloat q = f * 0.00132647273f + 0.00967151299f;
  q = q * f + 0.0555073359f;
  q = q * f + 0.240222424f;
  q = q * f + 0.693147004f;
  const vint bits = (reinterpret_cast<vint>(shifted) << 23) + 0x3f800000;
  return {reinterpret_cast<vfloat>(bits), q * f};
}

LTC_INLINE vfloat exponential(vfloat v) {
  const PowerOfTwo p = exp_parts(v);
  return p.scale + p.scale * p.fraction;
}

// sigmoid(v). Beyond +-87 it is flat at 0 or 1, to 1e-38.
LTC_INLINE vfloat sigmoid(vfloat v) {
  return reciprocal(exponential(at_most(at_least(-v, -87.0f), 87.0f)) + 1.0f);
}

#define LTC_ALL _Pragma("GCC unroll 8") for (int i = 0; i < n; ++i)

// 1 / (1 + 2^t) in place of each t: the sigmoid of -t log(2), for callers that fold the factor into t. Rounding of t makes
// it less precise far out, 5e-7 relative at t = 16. Stage by stage: one after the other, their chains of dependent
// operations would be longer than what a processor looks ahead.
template <int n>
LTC_INLINE void sigmoids_of_powers(vfloat* t) {
  vfloat whole[n], q[n];
  LTC_ALL t[i] = at_least(t[i], -126.0f);
  LTC_ALL t[i] = at_most(t[i], 126.0f);
#if defined(__AVX512F__)
  LTC_ALL whole[i] = reinterpret_cast<vfloat>(
      _mm512_roundscale_ps(reinterpret_cast<__m512>(t[i]), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  LTC_ALL t[i] -= whole[i];
#else
  constexpr float kRound = 12582912.0f;
  LTC_ALL whole[i] = t[i] + kRound;
  LTC_ALL t[i] -= whole[i] - kRound;
#endif
  LTC_ALL q[i] = t[i] * 0.00132647273f + 0.00967151299f;
  LTC_ALL q[i] = q[i] * t[i] + 0.0555073359f;
  LTC_ALL q[i] = q[i] * t[i] + 0.240222424f;
  LTC_ALL q[i] = q[i] * t[i] + 0.693147004f;
#if defined(__AVX512F__)
  LTC_ALL q[i] = q[i] * t[i] + 1.0f;
  LTC_ALL q[i] = reinterpret_cast<vfloat>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(q[i]), reinterpret_cast<__m512>(whole[i])));
  LTC_ALL q[i] += 1.0f;
#else
  LTC_ALL {
    const vfloat scale = reinterpret_cast<vfloat>((reinterpret_cast<vint>(whole[i]) << 23) + 0x3f800000);
    q[i] = scale * (q[i] * t[i]) + (scale + 1.0f);
  }
#endif
  LTC_ALL t[i] = reciprocal(q[i]);
}
#undef LTC_ALL

LTC_INLINE vfloat sigmoid_of_power(vfloat t) {
  sigmoids_of_powers<1>(&t);
  return t;
}

// exp(-r) and 1 - exp(-r) for r >= 0, both to full relative precision.
LTC_INLINE void decay(vfloat r, vfloat* kept, vfloat* lost) {
  const PowerOfTwo p = exp_parts(at_least(-r, -87.0f));
  *kept = p.scale + p.scale * p.fraction;
  *lost = (1.0f - p.scale) - p.scale * p.fraction;
}

}  // namespace LTC_NAMESPACE
