// Products of large matrices. Threads share the rows of C and wait for each other only at the end: each packs for itself
// the piece of B that it multiplies by, which costs less than meeting. Every element is summed in the order of depth,
// whatever the number of threads.
#include "gemm.h"
#include "tables.h"

namespace LTC_NAMESPACE {
namespace {

using ltc::Product;

constexpr int64_t kDepth = 256;        // of a piece of B: one of its panels fits the first-level cache
constexpr int64_t kColumns = 512;      // of a piece of B: it fits the second-level cache
constexpr int64_t kRows = 16 * kTall;  // of A, kept in the second-level cache while the panels pass

// Rows of A whose columns lie apart, brought into the order in which a tile reads them.
void pack_rows(const Product& p, int64_t row, int64_t rows, int64_t from, int64_t depth, float* packed) {
  for (int64_t r = 0; r < rows; r += kTall)
    for (int64_t j = 0; j < depth; ++j, packed += kTall) {
      const float* column = p.a + (row + r) * p.a_row + (from + j) * p.a_column;
      for (int64_t i = 0; i < kTall; ++i) packed[i] = r + i < rows ? column[i * p.a_row] : 0.0f;
    }
}

// One panel of C, for `rows` rows: whole panels in place, the last one by way of `scratch` (kRows, kPanel).
void panel(const Product& p, int64_t row, int64_t rows, const float* a, bool packed, const float* b, int64_t first,
           int64_t from, int64_t depth, float* scratch) {
  const int64_t width = smaller<int64_t>(kPanel, p.columns - first);
  float* c = p.c + row * p.columns + first;
  const bool whole = width == kPanel, begin = from == 0;
  float* target = whole ? c : scratch;
  const int64_t stride = whole ? p.columns : kPanel;
  if (!whole || begin) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t n = 0; n < width; ++n)
        target[r * stride + n] = !begin ? c[r * p.columns + n] : p.bias != nullptr ? p.bias[first + n] : 0.0f;
  }
  for (int64_t r = 0; r < rows; r += kTall) {
    const int64_t height = smaller<int64_t>(kTall, rows - r);
    if (packed) tiles<true>(height, a + r * depth, 1, kTall, b, kPanel, depth, target + r * stride, stride);
    else tiles<true>(height, a + r * p.a_row, p.a_row, 1, b, kPanel, depth, target + r * stride, stride);
  }
  for (int64_t r = 0; r < rows && !whole; ++r) std::memcpy(c + r * p.columns, scratch + r * kPanel, sizeof(float) * width);
}

// Rows begin .. end of C, for one thread with its `space`.
void some_rows(const Product& p, int64_t begin, int64_t end, float* space) {
  float *packed = space, *gathered = packed + kDepth * kColumns, *scratch = gathered + kRows * kDepth;
  const bool gather = p.a_column != 1;
  for (int64_t column = 0; column < p.columns; column += kColumns)
    for (int64_t from = 0; from < p.depth; from += kDepth) {
      const int64_t depth = smaller(kDepth, p.depth - from), columns = smaller(kColumns, p.columns - column);
      pack(p.b + from * p.b_row + column * p.b_column, p.b_row, p.b_column, depth, columns, packed);
      for (int64_t row = begin; row < end; row += kRows) {
        const int64_t rows = smaller(kRows, end - row);
        if (gather) pack_rows(p, row, rows, from, depth, gathered);
        const float* a = gather ? gathered : p.a + row * p.a_row + from;
        for (int64_t n = 0; n < panels_of(columns); ++n)
          panel(p, row, rows, a, gather, packed + n * depth * kPanel, column + n * kPanel, from, depth, scratch);
      }
    }
}

}  // namespace

ltc::Status product(const Product& p) {
  const int64_t tall_rows = (p.rows + kTall - 1) / kTall;
  const int parts = static_cast<int>(smaller<int64_t>(p.threads, tall_rows));
  const int64_t each = kDepth * kColumns + kRows * kDepth + kRows * kPanel;
  Buffer space(parts * each);
  if (space.data == nullptr) return ltc::kNoMemory;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part)
    some_rows(p, share(tall_rows, part, parts) * kTall, smaller(p.rows, share(tall_rows, part + 1, parts) * kTall),
              space.data + part * each);
  return ltc::kOk;
}

}  // namespace LTC_NAMESPACE
