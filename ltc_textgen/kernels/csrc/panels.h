// Products with weights that are packed once and then read for every token: in panels, each a few vectors of outputs wide
// and as deep as the inputs are many, so that a product walks through memory in one direction.
//
// Weights are floats, or bytes with one scale per output. Bytes meet inputs of 16 bits (scaled per row), two of them in
// each lane, and sums are exact integers.
//
// An output is summed in the order of depth whatever the number of rows: a row does not depend on the rows beside it.
#pragma once

#include "math.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace LTC_NAMESPACE {

typedef int16_t vshort __attribute__((vector_size(4 * kWidth), may_alias));
typedef int8_t vbyte __attribute__((vector_size(2 * kWidth), aligned(1), may_alias));

constexpr int kMostByte = 127;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

struct Floats {
  using Value = float;
  using Weight = float;
  using Sum = vfloat;
  static constexpr int kDepth = 1;  // inputs that a lane takes at once
  template <int V>
  static constexpr int kTall = kRegisters == 32 ? 8 : V == 3 ? 4 : 6;  // most rows of a tile: sums, weights, a value
  static LTC_INLINE vfloat weight(const float* w) { return load(w); }
  static LTC_INLINE vfloat value(const float* a) { return splat(*a); }
  static LTC_INLINE void add(vfloat& sum, vfloat value, vfloat weight) { sum += value * weight; }
  static LTC_INLINE vfloat finish(vfloat sum, const float*, float) { return sum; }
};

struct Bytes {
  using Value = int16_t;
  using Weight = int8_t;
  using Sum = vint;
  static constexpr int kDepth = 2;
  template <int V>
  static constexpr int kTall = kRegisters == 32 ? 8 : V == 3 ? 3 : 5;  // as of floats, and a product before it is added
  static LTC_INLINE vshort weight(const int8_t* w) {
#if defined(__AVX512BW__)
    return reinterpret_cast<vshort>(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w))));
#elif defined(__AVX2__)
    return reinterpret_cast<vshort>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))));
#else
    return __builtin_convertvector(*reinterpret_cast<const vbyte*>(w), vshort);
#endif
  }
  static LTC_INLINE vshort value(const int16_t* a) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return reinterpret_cast<vshort>(pair - vint{});
  }
  static LTC_INLINE void add(vint& sum, vshort value, vshort weight) {
#if defined(__AVX512VNNI__)
    sum = reinterpret_cast<vint>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(value),
                                                     reinterpret_cast<__m512i>(weight)));
#elif defined(__AVX512BW__)
    sum += reinterpret_cast<vint>(
        _mm512_madd_epi16(reinterpret_cast<__m512i>(value), reinterpret_cast<__m512i>(weight)));
#elif defined(__AVX2__)
    sum += reinterpret_cast<vint>(
        _mm256_madd_epi16(reinterpret_cast<__m256i>(value), reinterpret_cast<__m256i>(weight)));
#elif defined(__SSE2__)
    sum += reinterpret_cast<vint>(_mm_madd_epi16(reinterpret_cast<__m128i>(value), reinterpret_cast<__m128i>(weight)));
#else
    const vint a = reinterpret_cast<vint>(value), w = reinterpret_cast<vint>(weight);
    sum += (a >> 16) * (w >> 16) + ((a << 16) >> 16) * ((w << 16) >> 16);
#endif
  }
  static LTC_INLINE vfloat finish(vint sum, const float* scale, float row_scale) {
    return __builtin_convertvector(sum, vfloat) * (load(scale) * row_scale);
  }
};

// `panels` panels of V vectors of outputs. `scale` and `bias` have one number per output; scale only for bytes.
template <class Kind>
struct Panels {
  int64_t depth, panels;
  typename Kind::Weight* weights;
  float *scale, *bias;
};

LTC_INLINE int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Inputs of a product: rows of values, each with its scale (which only bytes have).
template <class Kind>
struct Inputs {
  const typename Kind::Value* values;
  int64_t row;
  const float* scale;
  int64_t rows;
};

// Where a product goes: row r at data + r * row, its panels one after the other.
struct Outputs {
  float* data;
  int64_t row;
};

// Sums of G panels for R rows; `panel` weights from one panel to the next, `depth` inputs.
template <class Kind, int G, int V, int R>
LTC_INLINE void product(const typename Kind::Value* a, int64_t a_row, const typename Kind::Weight* w, int64_t panel,
                        int64_t depth, typename Kind::Sum (&sum)[G][R][V]) {
  constexpr int64_t line = V * kWidth * Kind::kDepth;
  using Sum = typename Kind::Sum;
  using Value = decltype(Kind::value(a));
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[g][r][v] = Sum{};
  for (int64_t j = 0; j < depth; j += Kind::kDepth, w += line) {
    if constexpr (R <= 2) {  // few rows: their values stay in registers, weights pass by
      Value value[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) value[r] = Kind::value(a + r * a_row + j);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          const auto weight = Kind::weight(w + g * panel + v * kWidth * Kind::kDepth);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) Kind::add(sum[g][r][v], value[r], weight);
        }
    } else {
      decltype(Kind::weight(w)) weight[G][V];
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) weight[g][v] = Kind::weight(w + g * panel + v * kWidth * Kind::kDepth);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Value value = Kind::value(a + r * a_row + j);
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) Kind::add(sum[g][r][v], value, weight[g][v]);
      }
    }
  }
}

// Outputs of panels p .. p + G - 1 for rows r .. r + R - 1.
template <class Kind, int G, int V, int R>
LTC_INLINE void multiply_tile(const Panels<Kind>& m, const Inputs<Kind>& a, int64_t p, int64_t r, int64_t from,
                              int64_t depth, Outputs to) {
  const int64_t panel = m.depth * V * kWidth;
  typename Kind::Sum sum[G][R][V];
  product<Kind, G, V, R>(a.values + r * a.row, a.row, m.weights + p * panel + from * V * kWidth, panel, depth, sum);
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const int64_t n = ((p + g) * V + v) * kWidth;
        store(to.data + (r + i) * to.row + (g * V + v) * kWidth,
              Kind::finish(sum[g][i][v], m.scale + n, a.scale[r + i]) + load(m.bias + n));
      }
}

// Outputs of `count` panels (one or two) from p on, for every row. Inputs are those that the weights from `from` on meet,
// `depth` of them.
template <class Kind, int V>
void multiply(const Panels<Kind>& m, int64_t p, int64_t count, const Inputs<Kind>& a, int64_t from, int64_t depth,
              Outputs to) {
  if (count == 2 && a.rows <= 2) {  // two panels, for sums that do not wait for each other
    if (a.rows == 1) multiply_tile<Kind, 2, V, 1>(m, a, p, 0, from, depth, to);
    else multiply_tile<Kind, 2, V, 2>(m, a, p, 0, from, depth, to);
    return;
  }
  constexpr int tall = Kind::template kTall<V>;
  const int64_t tiles = (a.rows + tall - 1) / tall;
  for (int64_t g = 0; g < count; ++g, to.data += V * kWidth)
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t r = share(a.rows, i, tiles), height = share(a.rows, i + 1, tiles) - r;
#define LTC_HEIGHT(h) \
  if constexpr ((h) <= tall)                                                     \
    if (height == (h)) multiply_tile<Kind, 1, V, (h)>(m, a, p + g, r, from, depth, to);
      LTC_HEIGHT(1) LTC_HEIGHT(2) LTC_HEIGHT(3) LTC_HEIGHT(4) LTC_HEIGHT(5) LTC_HEIGHT(6) LTC_HEIGHT(7) LTC_HEIGHT(8)
#undef LTC_HEIGHT
    }
}

// Where packed weights come from: output n has its weights at source(n), or is nothing (null), `count` of them.
template <class Source>
void pack_panels(Panels<Floats>& m, int V, int64_t count, Source source) {
  const int64_t width = V * kWidth;
  for (int64_t n = 0; n < m.panels * width; ++n) {
    const float* row = source(n);
    float* to = m.weights + n / width * m.depth * width + n % width;
    for (int64_t j = 0; j < m.depth; ++j) to[j * width] = row != nullptr && j < count ? row[j] : 0.0f;
  }
}

template <class Source>
void pack_panels(Panels<Bytes>& m, int V, int64_t count, Source source) {
  const int64_t width = V * kWidth;
  for (int64_t n = 0; n < m.panels * width; ++n) {
    const float* row = source(n);
    float most = 0.0f;
    bool broken = false;
    for (int64_t j = 0; row != nullptr && j < count; ++j) {
      const float size = row[j] < 0.0f ? -row[j] : row[j];
      most = size > most ? size : most;
      broken |= !(size <= 3.4e38f);
    }
    // A weight that is no number is none as a byte either: its output must not be one.
    m.scale[n] = broken ? __builtin_nanf("") : most / kMostByte;
    const float inverse = broken || most < 1e-37f ? 0.0f : kMostByte / most;
    int8_t* to = m.weights + n / width * m.depth * width + n % width * 2;
    for (int64_t j = 0; j < m.depth; ++j) {
      const float w = row != nullptr && j < count ? row[j] * inverse : 0.0f;
      to[j / 2 * 2 * width + j % 2] = static_cast<int8_t>(broken ? 0.0f : w + (w < 0.0f ? -0.5f : 0.5f));
    }
  }
}

// A row in 16 bits: `scale` times what is stored. Smaller than 16 bits where a long sum could overflow.
LTC_INLINE void quantise(const float* a, int64_t count, int64_t depth, int16_t* values, float* scale) {
  typedef int16_t vhalf __attribute__((vector_size(2 * kWidth), aligned(2), may_alias));
  if (count == 0) {
    *scale = 0.0f;
    return;
  }
  const float limit = static_cast<float>(smaller<int64_t>(32767, 2147483647 / (kMostByte * depth)));
  vfloat most = {};
  vint broken = {};
  for (int64_t i = 0; i < count; i += kWidth) {
    const vfloat v = load(a + i), size = v < 0.0f ? -v : v;
    most = size > most ? size : most;
    broken |= ~(size <= 3.4e38f);
  }
  float top = 0.0f;
  bool bad = false;
  for (int i = 0; i < kWidth; ++i) {
    top = most[i] > top ? most[i] : top;
    bad |= broken[i] != 0;
  }
  *scale = bad ? __builtin_nanf("") : top / limit;
  const float inverse = bad || top < 1e-30f ? 0.0f : limit / top;
  for (int64_t i = 0; i < count; i += kWidth) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const vfloat shifted = (bad ? vfloat{} : load(a + i) * inverse) + kRound;
    *reinterpret_cast<vhalf*>(values + i) = __builtin_convertvector(reinterpret_cast<vint>(shifted) - 0x4b400000, vhalf);
  }
}

}  // namespace LTC_NAMESPACE
