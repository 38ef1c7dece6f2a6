// Small matrix products out of registers: the weights are packed once per call and stay in the second-level cache.
#pragma once

#include "math.h"

namespace LTC_NAMESPACE {

constexpr int kPanel = 2 * kWidth;  // columns of a panel
#if defined(__AVX512F__)
constexpr int kTall = 8;  // rows of a register tile
#else
constexpr int kTall = 6;
#endif

LTC_INLINE int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
LTC_INLINE int64_t packed_size(int64_t depth, int64_t columns) { return panels_of(columns) * depth * kPanel; }

// Packs B (depth, columns), element (j, n) at b[j * down + n * across], into panels; columns beyond are zero. One of
// `down` and `across` should be 1: reading goes along it.
inline void pack(const float* b, int64_t down, int64_t across, int64_t depth, int64_t columns, float* packed) {
  for (int64_t first = 0; first < columns; first += kPanel, packed += depth * kPanel) {
    const int64_t width = smaller<int64_t>(kPanel, columns - first);
    const float* corner = b + first * across;
    if (width < kPanel) std::memset(packed, 0, sizeof(float) * depth * kPanel);
    if (across == 1) {
      for (int64_t j = 0; j < depth; ++j) std::memcpy(packed + j * kPanel, corner + j * down, sizeof(float) * width);
    } else {
      for (int64_t c = 0; c < width; ++c)
        for (int64_t j = 0; j < depth; ++j) packed[j * kPanel + c] = corner[j * down + c * across];
    }
  }
}

// C (height, one panel) = or += A B for A with rows `a_row` and columns `a_column` apart and rows of B `b_row` apart.
// Each element is summed in the order of depth, whatever the height.
template <int height, bool add>
LTC_INLINE void tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, int64_t depth,
                     float* c, int64_t c_row) {
  vfloat left[height], right[height];
#pragma GCC unroll 8
  for (int r = 0; r < height; ++r) left[r] = right[r] = vfloat{};
  for (int64_t j = 0; j < depth; ++j) {
    const vfloat b0 = load(b), b1 = load(b + kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < height; ++r) {
      const vfloat value = splat(a[r * a_row]);
      left[r] += value * b0;
      right[r] += value * b1;
    }
    a += a_column;
    b += b_row;
  }
#pragma GCC unroll 8
  for (int r = 0; r < height; ++r) {
    float* row = c + r * c_row;
    store(row, add ? load(row) + left[r] : left[r]);
    store(row + kWidth, add ? load(row + kWidth) + right[r] : right[r]);
  }
}

template <bool add>
inline void tiles(int64_t rows, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                  int64_t depth, float* c, int64_t c_row) {
  int64_t r = 0;
  for (; r + kTall <= rows; r += kTall)
    tile<kTall, add>(a + r * a_row, a_row, a_column, b, b_row, depth, c + r * c_row, c_row);
  for (; r + 2 <= rows; r += 2) tile<2, add>(a + r * a_row, a_row, a_column, b, b_row, depth, c + r * c_row, c_row);
  if (r < rows) tile<1, add>(a + r * a_row, a_row, a_column, b, b_row, depth, c + r * c_row, c_row);
}

}  // namespace LTC_NAMESPACE
