// Products of large matrices. Threads share the rows of C and wait for each other only at the end: each packs for itself
// the block of B that it multiplies by, which costs less than synchronising. Every element is summed in the order of depth,
// whatever the number of threads.
#include "blocked.h"
#include "tables.h"

namespace LTC_NAMESPACE {
namespace {

constexpr int64_t kAhead = 24;  // columns

// Rows of A whose columns lie apart, brought into the order in which a tile reads them: tiles kApart apart, as
// `tiles` divides rows. May write kTall floats beyond a tile.
void pack_rows(const Product& p, int64_t row, int64_t rows, int64_t from, int64_t depth, float* packed) {
  const int64_t count = (rows + kTall - 1) / kTall;
  int64_t starts[kTiles + 1];
  for (int64_t i = 0; i <= count; ++i) starts[i] = share(rows, i, count);
  const bool vectors = p.a_row == 1 && kWidth >= kTall && p.a_column >= kWidth;
  for (int64_t j = 0; j < depth; ++j) {
    const float* column = p.a + row * p.a_row + (from + j) * p.a_column;
    const bool last = from + j + 1 == p.depth;  // there is no column after it for a vector to reach into
    float* to = packed + j * kTall;
    for (int64_t i = 0; i < count; ++i, to += kApart) {
      __builtin_prefetch(column + kAhead * p.a_column + starts[i], 0, 2);
      if (vectors && !(last && row + starts[i] + kWidth > p.rows)) store(to, load(column + starts[i]));
      else
        for (int64_t n = 0; n < starts[i + 1] - starts[i]; ++n) to[n] = column[(starts[i] + n) * p.a_row];
    }
  }
}

// Adds the sums of some rows of A over the columns of a block, while they are in the cache.
void add_row_sums(const Product& p, int64_t row, int64_t rows, int64_t from, int64_t depth) {
  for (int64_t r = row; r < row + rows; ++r) {
    const float* a = p.a + r * p.a_row + from * p.a_column;
    float sum = 0.0f;
    for (int64_t j = 0; j < depth; ++j) sum += a[j * p.a_column];
    p.row_sums[r] = (from != 0 ? p.row_sums[r] : 0.0f) + sum;
  }
}

// The same for rows that `pack_rows` has packed.
void add_packed_sums(const Product& p, int64_t row, int64_t rows, int64_t from, int64_t depth, const float* packed) {
  constexpr int kVectors = (kTall + kWidth - 1) / kWidth, kChains = 4;
  const int64_t count = (rows + kTall - 1) / kTall;
  for (int64_t i = 0; i < count; ++i, packed += kApart) {
    vfloat sums[kChains][kVectors] = {};
    for (int64_t j = 0; j < depth; j += kChains)
      for (int chain = 0; chain < kChains; ++chain)
        for (int v = 0; v < kVectors && j + chain < depth; ++v)
          sums[chain][v] += load(packed + (j + chain) * kTall + v * kWidth);
    const int64_t begin = share(rows, i, count), height = share(rows, i + 1, count) - begin;
    for (int64_t n = 0; n < height; ++n) {
      float sum = 0.0f;
      for (int chain = 0; chain < kChains; ++chain) sum += sums[chain][n / kWidth][n % kWidth];
      float* to = p.row_sums + row + begin + n;
      *to = (from != 0 ? *to : 0.0f) + sum;
    }
  }
}

// Rows begin .. end of C, for one thread with its `space`.
void some_rows(const Product& p, int64_t begin, int64_t end, float* space) {
  float *packed = space, *gathered = packed + kDepth * kColumns, *scratch = gathered + kTiles * kApart;
  const bool gather = p.a_column != 1;
  for (int64_t column = 0; column < p.columns; column += kColumns)
    for (int64_t from = 0; from < p.depth; from += kDepth) {
      const int64_t depth = smaller(kDepth, p.depth - from), columns = smaller(kColumns, p.columns - column);
      pack(p.b + from * p.b_row + column * p.b_column, p.b_row, p.b_column, depth, columns, packed);
      const int64_t blocks = (end - begin + kRows - 1) / kRows;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = begin + share(end - begin, block, blocks);
        const int64_t rows = begin + share(end - begin, block + 1, blocks) - row;
        if (gather) pack_rows(p, row, rows, from, depth, gathered);
        if (p.row_sums != nullptr && column == 0) {
          if (gather) add_packed_sums(p, row, rows, from, depth, gathered);
          else add_row_sums(p, row, rows, from, depth);
        }
        const float* a = gather ? gathered : p.a + row * p.a_row + from;
        for (int64_t n = 0; n < panels_of(columns); ++n)
          panel(p, row, rows, a, gather, packed + n * depth * kPanel, column + n * kPanel, from != 0, depth, scratch);
      }
    }
}

}  // namespace

ltc::Status product(const Product& p) {
  const int parts = static_cast<int>(smaller<int64_t>(p.threads, p.rows));
  const int64_t each = kDepth * kColumns + kTiles * kApart + kRows * kPanel;
  Buffer space(parts * each);
  if (space.data == nullptr) return ltc::kNoMemory;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part)
    some_rows(p, share(p.rows, part, parts), share(p.rows, part + 1, parts), space.data + part * each);
  return ltc::kOk;
}

}  // namespace LTC_NAMESPACE
