// Sums over synapses: G_i = sum_j w s and I_i = sum_j w s E with s = sigmoid(sigma (y_j - mu)), forward and backward.
//
// Synapses are kept in entries: one source and a block of kBlock targets, of which at least one has a synapse; absent
// blocks cost nothing. Entries are sorted by source, with a second order by target block. With
//     t = a y + c,   a = -log2(e) sigma,   c = log2(e) sigma mu,   s = 1 / (1 + 2^t),   u = w,   v = w E
// an entry is four vectors of kBlock floats, and so is its gradient; absent synapses in a block have u = v = 0.
#pragma once

#include "recurrence.h"

namespace LTC_NAMESPACE {

constexpr int kFields = 4;                       // a, c, u, v
constexpr int kEntry = kFields * kBlock;         // floats of an entry
constexpr int kGroup = 4;                        // rows that share an entry in registers, on the way forward

using Matrices = ltc::SynapseArrays;  // (sources, targets)

class Synapses {
 public:
  Synapses(const Matrices& m, int64_t sources, int64_t targets)
      : sources_(sources), targets_(targets), blocks_((targets + kBlock - 1) / kBlock), entries_(count(m)),
        source_start(sources + 1), target_start(blocks_ + 1), target_of(entries_ + 1), source_of(entries_ + 1),
        by_target(entries_ + 1), table(entries_ * kEntry + 1) {
    if (ok()) fill(m);
  }
  bool ok() const {
    return source_start.data != nullptr && target_start.data != nullptr && target_of.data != nullptr &&
           source_of.data != nullptr && by_target.data != nullptr && table.data != nullptr;
  }
  int64_t entries() const { return entries_; }

  // G and I (rows, stride) from y.
  void sum(const float* y, int64_t y_stride, int rows, float* G, float* I, int64_t stride) const {
    for (int64_t block = 0; block < blocks_; ++block)
      for (int lane = 0; lane < kBlock; lane += kWidth) {
        const int64_t at = block * kBlock + lane;
        int r = 0;
        for (; r + kGroup <= rows; r += kGroup)
          sum_rows<kGroup>(y + r * y_stride, y_stride, block, lane, G + r * stride + at, I + r * stride + at, stride);
        for (; r < rows; ++r)
          sum_rows<1>(y + r * y_stride, y_stride, block, lane, G + r * stride + at, I + r * stride + at, stride);
      }
  }

  // Adds to gy what gG and gI mean for y, and to `gradient`, laid out like the table, what they mean for the entries.
  // `partial`: room for `rows` vectors.
  void sum_backward(const float* y, int64_t y_stride, int rows, const float* gG, const float* gI, int64_t stride,
                    float* gy, int64_t gy_stride, float* gradient, float* partial) const {
    for (int64_t j = 0; j < sources_; ++j) {
      const int64_t begin = source_start.data[j], end = source_start.data[j + 1];
      if (begin == end) continue;
      for (int r = 0; r < rows; ++r) store(partial + r * kWidth, vfloat{});
      for (int64_t e = begin; e < end; ++e)
        for (int lane = 0; lane < kBlock; lane += kWidth) {
          const int64_t at = target_of.data[e] * kBlock + lane;
          entry_backward(y + j, y_stride, rows, gG + at, gI + at, stride, table.data + e * kEntry + lane,
                         gradient + e * kEntry + lane, partial);
        }
      for (int r = 0; r < rows; ++r) gy[r * gy_stride + j] -= kLn2 * lane_sum(load(partial + r * kWidth));
    }
  }

  // From gradients of entries, summed over threads, to those of the matrices.
  void unpack(const Matrices& m, const float* parts, int threads, int64_t apart, const ltc::SynapseGradients& out) const {
    const size_t bytes = sizeof(float) * static_cast<size_t>(sources_ * targets_);
    float* const all[] = {out.w, out.sigma, out.mu, out.reversal};
    for (float* matrix : all) std::memset(matrix, 0, bytes);
    for (int64_t e = 0; e < entries_; ++e)
      for (int64_t lane = 0; lane < kBlock; ++lane) {
        const int64_t n = target_of.data[e] * kBlock + lane, i = source_of.data[e] * targets_ + n;
        if (n >= targets_ || !m.mask[i]) continue;
        float sum[kFields];
        for (int field = 0; field < kFields; ++field)
          add_parts(parts + e * kEntry + field * kBlock + lane, threads, apart, 1, sum + field);
        out.w[i] = sum[2] + m.reversal[i] * sum[3];
        out.reversal[i] = m.w[i] * sum[3];
        out.sigma[i] = sum[0] - m.mu[i] * sum[1];
        out.mu[i] = -m.sigma[i] * sum[1];
      }
  }

 private:
  bool present(const Matrices& m, int64_t j, int64_t block) const {
    for (int64_t n = block * kBlock; n < smaller(block * kBlock + kBlock, targets_); ++n)
      if (m.mask[j * targets_ + n]) return true;
    return false;
  }
  int64_t count(const Matrices& m) const {
    int64_t found = 0;
    for (int64_t j = 0; j < sources_; ++j)
      for (int64_t block = 0; block < blocks_; ++block) found += present(m, j, block);
    return found;
  }

  void fill(const Matrices& m) {
    int64_t e = 0;
    for (int64_t j = 0; j < sources_; ++j) {
      source_start.data[j] = e;
      for (int64_t block = 0; block < blocks_; ++block) {
        if (!present(m, j, block)) continue;
        target_of.data[e] = block;
        source_of.data[e] = j;
        fill_entry(m, j, block, table.data + e * kEntry);
        ++e;
      }
    }
    source_start.data[sources_] = e;
    // Counting sort: how many entries every block has, where each begins, and the entries in their places.
    int64_t* start = target_start.data;
    std::memset(start, 0, sizeof(int64_t) * (blocks_ + 1));
    for (int64_t i = 0; i < entries_; ++i) ++start[target_of.data[i] + 1];
    for (int64_t block = 0; block < blocks_; ++block) start[block + 1] += start[block];
    for (int64_t i = entries_ - 1; i >= 0; --i) by_target.data[--start[target_of.data[i] + 1]] = i;
    for (int64_t block = 0; block < blocks_; ++block) start[block] = start[block + 1];
    start[blocks_] = entries_;
  }

  void fill_entry(const Matrices& m, int64_t j, int64_t block, float* entry) const {
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      const int64_t n = block * kBlock + lane, i = j * targets_ + n;
      const bool exists = n < targets_ && m.mask[i];
      const float slope = exists ? kLog2E * m.sigma[i] : 0.0f;
      entry[lane] = -slope;
      entry[kBlock + lane] = exists ? slope * m.mu[i] : 0.0f;
      entry[2 * kBlock + lane] = exists ? m.w[i] : 0.0f;
      entry[3 * kBlock + lane] = exists ? m.w[i] * m.reversal[i] : 0.0f;
    }
  }

  template <int rows>
  void sum_rows(const float* y, int64_t y_stride, int64_t block, int lane, float* G, float* I, int64_t stride) const {
    vfloat g[rows], i[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) g[r] = i[r] = vfloat{};
    for (int64_t k = target_start.data[block]; k < target_start.data[block + 1]; ++k) {
      const int64_t e = by_target.data[k];
      const float *p = table.data + e * kEntry + lane, *from = y + source_of.data[e];
      const vfloat a = load(p), c = load(p + kBlock), u = load(p + 2 * kBlock), v = load(p + 3 * kBlock);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const vfloat s = sigmoid_of_power(a * splat(from[r * y_stride]) + c);
        g[r] += u * s;
        i[r] += v * s;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      store(G + r * stride, g[r]);
      store(I + r * stride, i[r]);
    }
  }

  static LTC_INLINE void entry_backward(const float* y, int64_t y_stride, int rows, const float* gG, const float* gI,
                                        int64_t stride, const float* p, float* gradient, float* partial) {
    const vfloat a = load(p), c = load(p + kBlock), u = load(p + 2 * kBlock), v = load(p + 3 * kBlock);
    vfloat ga = load(gradient), gc = load(gradient + kBlock);
    vfloat gu = load(gradient + 2 * kBlock), gv = load(gradient + 3 * kBlock);
    for (int r = 0; r < rows; ++r) {
      const vfloat x = splat(y[r * y_stride]), dG = load(gG + r * stride), dI = load(gI + r * stride);
      const vfloat s = sigmoid_of_power(a * x + c);
      const vfloat gz = (u * dG + v * dI) * (s - s * s);  // of z = -t log(2), the argument of the sigmoid
      ga += gz * x;
      gc += gz;
      gu += s * dG;
      gv += s * dI;
      store(partial + r * kWidth, load(partial + r * kWidth) + gz * a);
    }
    store(gradient, ga);
    store(gradient + kBlock, gc);
    store(gradient + 2 * kBlock, gu);
    store(gradient + 3 * kBlock, gv);
  }

  int64_t sources_, targets_, blocks_, entries_;
  Array<int64_t> source_start, target_start, target_of, source_of, by_target;
  Buffer table;
};

}  // namespace LTC_NAMESPACE
