// Small matrix products out of registers: the weights are packed once per call and stay in the second-level cache.
#pragma once

#include "math.h"

namespace LTC_NAMESPACE {

constexpr int kPanel = 2 * kWidth;  // columns of a panel
#if defined(__AVX512F__)
constexpr int kTall = 12;  // most rows of a register tile
#else
constexpr int kTall = 6;
#endif

LTC_INLINE int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
LTC_INLINE int64_t packed_size(int64_t depth, int64_t columns) { return panels_of(columns) * depth * kPanel; }

#if defined(__AVX512F__)
// Exchanges rows and columns of 16 vectors: four rounds that swap quarters, each half the size of the one before.
LTC_INLINE void transpose(vfloat* rows) {
  alignas(64) int32_t left[kWidth], right[kWidth];
#pragma GCC unroll 4
  for (int size = kWidth / 2; size > 0; size /= 2) {
    for (int i = 0; i < kWidth; ++i) {
      left[i] = (i & size) != 0 ? kWidth + i - size : i;
      right[i] = (i & size) != 0 ? kWidth + i : i + size;
    }
    const __m512i first = _mm512_load_si512(left), second = _mm512_load_si512(right);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if ((i & size) != 0) continue;
      const __m512 a = reinterpret_cast<__m512>(rows[i]), b = reinterpret_cast<__m512>(rows[i + size]);
      rows[i] = reinterpret_cast<vfloat>(_mm512_permutex2var_ps(a, first, b));
      rows[i + size] = reinterpret_cast<vfloat>(_mm512_permutex2var_ps(a, second, b));
    }
  }
}
#endif

// Packs kWidth or fewer columns that lie `across` floats apart, each of `depth` floats in a row.
inline void pack_columns(const float* b, int64_t across, int64_t depth, int64_t width, float* packed) {
  int64_t j = 0;
#if defined(__AVX512F__)
  for (; width == kWidth && j + kWidth <= depth; j += kWidth) {
    vfloat rows[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) rows[i] = load(b + i * across + j);
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) store(packed + (j + i) * kPanel, rows[i]);
  }
#endif
  for (int64_t c = 0; c < width; ++c)
    for (int64_t i = j; i < depth; ++i) packed[i * kPanel + c] = b[i + c * across];
}

// Packs B (depth, columns), element (j, n) at b[j * down + n * across], into panels; columns beyond are zero. One of
// `down` and `across` should be 1: reading goes along it.
inline void pack(const float* b, int64_t down, int64_t across, int64_t depth, int64_t columns, float* packed) {
  for (int64_t first = 0; first < columns; first += kPanel, packed += depth * kPanel) {
    const int64_t width = smaller<int64_t>(kPanel, columns - first);
    const float* corner = b + first * across;
    if (width < kPanel) std::memset(packed, 0, sizeof(float) * depth * kPanel);
    if (across == 1 && width == kPanel) {
      for (int64_t j = 0; j < depth; ++j, corner += down) {
        __builtin_prefetch(corner + 24 * down, 0, 2);
        __builtin_prefetch(corner + 24 * down + kWidth, 0, 2);
        store(packed + j * kPanel, load(corner));
        store(packed + j * kPanel + kWidth, load(corner + kWidth));
      }
    } else if (down == 1) {
      for (int64_t c = 0; c < width; c += kWidth)
        pack_columns(corner + c * across, across, depth, smaller<int64_t>(kWidth, width - c), packed + c);
    } else {
      for (int64_t j = 0; j < depth; ++j)
        for (int64_t c = 0; c < width; ++c) packed[j * kPanel + c] = corner[j * down + c * across];
    }
  }
}

// C (height, one panel) = A B + start, for A with rows `a_row` and columns `a_column` apart, rows of B `b_row` apart and
// rows of `start`, which may be C, `start_row` apart; none if null. Each element is summed in the order of depth,
// whatever the height.
template <int height>
LTC_INLINE void tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, int64_t depth,
                     float* c, int64_t c_row, const float* start, int64_t start_row) {
  vfloat left[height], right[height];
#pragma GCC unroll 12
  for (int r = 0; r < height; ++r) {
    left[r] = right[r] = vfloat{};
    __builtin_prefetch(c + r * c_row, 1);
    __builtin_prefetch(c + r * c_row + kWidth, 1);
  }
  for (int64_t j = 0; j < depth; ++j) {
    const vfloat b0 = load(b), b1 = load(b + kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < height; ++r) {
      const vfloat value = splat(a[r * a_row]);
      left[r] += value * b0;
      right[r] += value * b1;
    }
    a += a_column;
    b += b_row;
  }
#pragma GCC unroll 12
  for (int r = 0; r < height; ++r) {
    float* row = c + r * c_row;
    const float* from = start + r * start_row;
    store(row, start != nullptr ? load(from) + left[r] : left[r]);
    store(row + kWidth, start != nullptr ? load(from + kWidth) + right[r] : right[r]);
  }
}

// As `tile` for any number of rows, in tiles of about the same height. A is dense in memory along its rows (`a_row` is 1)
// or in any order. With `apart`, every tile's part of A begins so many floats after the one before, not a_row after it.
template <bool dense>
inline void tiles(int64_t rows, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                  int64_t depth, float* c, int64_t c_row, const float* start, int64_t start_row, int64_t apart = 0) {
  const int64_t count = (rows + kTall - 1) / kTall;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t r = share(rows, i, count);
    const float *from = a + (apart != 0 ? i * apart : r * a_row), *begin = start == nullptr ? nullptr : start + r * start_row;
    float* to = c + r * c_row;
#define LTC_HEIGHT(h)                                                                                     \
  case h:                                                                                                 \
    tile<(h)>(from, dense ? 1 : a_row, a_column, b, b_row, depth, to, c_row, begin, start_row); \
    break;
    switch (share(rows, i + 1, count) - r) {
      LTC_HEIGHT(1) LTC_HEIGHT(2) LTC_HEIGHT(3) LTC_HEIGHT(4) LTC_HEIGHT(5)
#if defined(__AVX512F__)
      LTC_HEIGHT(6) LTC_HEIGHT(7) LTC_HEIGHT(8) LTC_HEIGHT(9) LTC_HEIGHT(10) LTC_HEIGHT(11)
#endif
      default: tile<kTall>(from, dense ? 1 : a_row, a_column, b, b_row, depth, to, c_row, begin, start_row);
    }
#undef LTC_HEIGHT
  }
}

}  // namespace LTC_NAMESPACE
