// Products of large matrices, in blocks that fit the caches.
#pragma once

#include "gemm.h"
#include "kernels.h"

namespace LTC_NAMESPACE {

using ltc::Product;

constexpr int64_t kDepth = 256;       // of a block of B: one of its panels fits the first-level cache
constexpr int64_t kColumns = 512;     // of a block of B: it fits the second-level cache
constexpr int64_t kTiles = 22;        // of A, kept in the second-level cache while the panels pass
constexpr int64_t kRows = kTiles * kTall;
constexpr int64_t kApart = kDepth * kTall + kWidth;  // from one packed tile to the next, in other cache sets

// One panel of C, for `rows` rows of A from `a` on (`packed` by pack_rows, or as they lie): set to the product with a block
// of B, or with `more` added to. Whole panels are computed in place, the last one in `scratch` (rows, kPanel).
inline void panel(const Product& p, int64_t row, int64_t rows, const float* a, bool packed, const float* b,
                  int64_t first, bool more, int64_t depth, float* scratch) {
  const int64_t width = smaller<int64_t>(kPanel, p.columns - first);
  float* c = p.c + row * p.columns + first;
  const bool whole = width == kPanel;
  float* target = whole ? c : scratch;
  const int64_t stride = whole ? p.columns : kPanel;
  const float* start = more ? target : p.bias != nullptr ? p.bias + first : nullptr;
  int64_t start_row = more ? stride : 0;
  if (!whole && start != nullptr) {
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(scratch + r * kPanel, more ? c + r * p.columns : start, sizeof(float) * width);
    start = scratch;
    start_row = kPanel;
  }
  if (packed) tiles<true>(rows, a, 1, kTall, b, kPanel, depth, target, stride, start, start_row, kApart);
  else if (p.a_row == 1) tiles<true>(rows, a, 1, p.a_column, b, kPanel, depth, target, stride, start, start_row);
  else tiles<false>(rows, a, p.a_row, 1, b, kPanel, depth, target, stride, start, start_row);
  for (int64_t r = 0; r < rows && !whole; ++r) std::memcpy(c + r * p.columns, scratch + r * kPanel, sizeof(float) * width);
}

// All of B, packed in blocks of kDepth rows.
inline void pack_all(const Product& p, float* packed) {
  for (int64_t from = 0; from < p.depth; from += kDepth) {
    pack(p.b + from * p.b_row, p.b_row, p.b_column, smaller(kDepth, p.depth - from), p.columns, packed);
    packed += packed_size(kDepth, p.columns);
  }
}

// C from a B that `pack_all` has packed, or C with the product added to it. A lies along its rows, or along its columns
// if its depth is at most kDepth. `scratch`: (rows, kPanel).
inline void multiply_packed(const Product& p, const float* packed, bool more, float* scratch) {
  for (int64_t from = 0; from < p.depth; from += kDepth, packed += packed_size(kDepth, p.columns)) {
    const int64_t depth = smaller(kDepth, p.depth - from);
    for (int64_t n = 0; n < panels_of(p.columns); ++n)
      panel(p, 0, p.rows, p.a + from * p.a_column, false, packed + n * depth * kPanel, n * kPanel, more || from != 0,
            depth, scratch);
  }
}

}  // namespace LTC_NAMESPACE
