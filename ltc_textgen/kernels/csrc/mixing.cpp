// What surrounds the scan in a liquid block: RMSNorm and the causal depthwise convolution as one, and the SiLU gate.
// Elementwise work that PyTorch does in a dozen passes over memory each way.
#include "math.h"
#include "tables.h"

namespace LTC_NAMESPACE {
namespace {

using ltc::Gate;
using ltc::MixingBackward;
using ltc::MixingForward;
using ltc::MixingShape;
using ltc::Status;

LTC_INLINE vfloat read(const float* row, int64_t d, int64_t D) {
  return load_part(row + d, static_cast<int>(smaller<int64_t>(D - d, kWidth)));
}
LTC_INLINE void write(float* row, int64_t d, int64_t D, vfloat v) {
  store_part(row + d, v, static_cast<int>(smaller<int64_t>(D - d, kWidth)));
}

// Row of token t of sequence b in `extended`, whose sequences begin with K - 1 columns from before.
LTC_INLINE float* extended_row(const MixingShape& s, float* extended, int64_t b, int64_t t) {
  return extended + (b * (s.T + s.K - 1) + s.K - 1 + t) * s.D;
}

void normalise(const MixingShape& s, const MixingForward& a, int64_t token) {
  const float* u = a.u + token * s.D;
  vfloat squares = {};
  for (int64_t d = 0; d < s.D; d += kWidth) {
    const vfloat v = read(u, d, s.D);
    squares += v * v;
  }
  const float scale = 1.0f / __builtin_sqrtf(lane_sum(squares) / static_cast<float>(s.D) + s.epsilon);
  float* row = extended_row(s, a.extended, token / s.T, token % s.T);
  for (int64_t d = 0; d < s.D; d += kWidth) write(row, d, s.D, read(u, d, s.D) * scale * read(a.norm_weight, d, s.D));
  a.scale[token] = scale;
}

// Taps lie as (K, D) in `taps`.
void convolve(const MixingShape& s, const MixingForward& a, const float* taps, int64_t token) {
  const float* first = extended_row(s, a.extended, token / s.T, token % s.T) - (s.K - 1) * s.D;
  for (int64_t d = 0; d < s.D; d += kWidth) {
    vfloat sum = read(a.bias, d, s.D);
    for (int64_t k = 0; k < s.K; ++k) sum += read(first + k * s.D, d, s.D) * read(taps + k * s.D, d, s.D);
    write(a.mixed + token * s.D, d, s.D, sum);
  }
}

void transpose_taps(const MixingShape& s, const float* weight, float* taps) {
  for (int64_t d = 0; d < s.D; ++d)
    for (int64_t k = 0; k < s.K; ++k) taps[k * s.D + d] = weight[d * s.K + k];
}

// Parameter gradients of one thread: rows of D. norm, bias, then K taps.
constexpr int kNorm = 0, kBias = 1, kTaps = 2;

LTC_INLINE void add_to(float* row, int64_t d, int64_t D, vfloat v) { write(row, d, D, read(row, d, D) + v); }

// Gradient of vector d of row e of `extended`: through the taps that reach it, and as a column of the state that is returned.
LTC_INLINE vfloat extended_backward(const MixingShape& s, const MixingBackward& a, const float* taps, const float* mixed_grad, int64_t b,
                       int64_t e, int64_t d) {
  const bool carried = a.after_grad != nullptr && e >= s.T;
  vfloat sum = carried ? read(a.after_grad + (b * (s.K - 1) + e - s.T) * s.D, d, s.D) : vfloat{};
  const int64_t first = e >= s.T ? e - s.T + 1 : 0, last = smaller<int64_t>(e, s.K - 1);
  for (int64_t k = first; k <= last; ++k) sum += read(mixed_grad + (e - k) * s.D, d, s.D) * read(taps + k * s.D, d, s.D);
  return sum;
}

// One sequence. `mixed_grad` (T, D) holds the gradient of what was mixed.
void sequence_backward(const MixingShape& s, const MixingBackward& a, const float* taps, int64_t b, float* mixed_grad,
                       float* row, float* sums) {
  const int64_t D = s.D, first = b * s.T;
  for (int64_t i = 0; i < s.T * D; i += kWidth)
    write(mixed_grad, i, s.T * D, read(a.grad + first * D, i, s.T * D) + read(a.other_grad + first * D, i, s.T * D));
  for (int64_t e = 0; e < s.K - 1 && a.columns_grad != nullptr; ++e)
    for (int64_t d = 0; d < D; d += kWidth)
      write(a.columns_grad + (b * (s.K - 1) + e) * D, d, D, extended_backward(s, a, taps, mixed_grad, b, e, d));
  for (int64_t t = 0; t < s.T; ++t) {
    const float *u = a.forward.u + (first + t) * D, *g = mixed_grad + t * D;
    const float* before = extended_row(s, a.forward.extended, b, t) - (s.K - 1) * D;
    const float scale = a.forward.scale[first + t];
    vfloat product = {};
    for (int64_t d = 0; d < D; d += kWidth) {
      vfloat normed = extended_backward(s, a, taps, mixed_grad, b, t + s.K - 1, d);
      const vfloat v = read(u, d, D), here = read(g, d, D);
      add_to(sums + kNorm * D, d, D, normed * v * scale);
      add_to(sums + kBias * D, d, D, here);
      for (int64_t k = 0; k < s.K; ++k) add_to(sums + (kTaps + k) * D, d, D, here * read(before + k * D, d, D));
      normed *= read(a.forward.norm_weight, d, D);
      product += normed * v;
      write(row, d, D, normed);
    }
    const float bend = lane_sum(product) * scale * scale * scale / static_cast<float>(D);
    const float* straight = a.residual_grad + (first + t) * D;
    for (int64_t d = 0; d < D; d += kWidth)
      write(a.u_grad + (first + t) * D, d, D,
            read(straight, d, D) + read(row, d, D) * scale - read(u, d, D) * bend);
  }
}

int parts_of(int64_t items, int threads) { return static_cast<int>(smaller<int64_t>(threads, items)); }

}  // namespace

Status mixing_forward(const MixingShape& s, const MixingForward& a) {
  const int64_t tokens = s.B * s.T;
  const int parts = parts_of(tokens, s.threads);
  Buffer taps(s.K * s.D);
  if (taps.data == nullptr) return ltc::kNoMemory;
  transpose_taps(s, a.weight, taps.data);
  for (int64_t b = 0; s.K > 1 && b < s.B; ++b)
    std::memcpy(extended_row(s, a.extended, b, 0) - (s.K - 1) * s.D, a.columns + b * (s.K - 1) * s.D,
                sizeof(float) * (s.K - 1) * s.D);
#pragma omp parallel num_threads(parts) if (parts > 1)
  {
#pragma omp for schedule(static)
    for (int64_t token = 0; token < tokens; ++token) normalise(s, a, token);
#pragma omp for schedule(static)
    for (int64_t token = 0; token < tokens; ++token) convolve(s, a, taps.data, token);
  }
  return ltc::kOk;
}

Status mixing_backward(const MixingShape& s, const MixingBackward& a) {
  const int parts = parts_of(s.B, s.threads);
  const int64_t rows = kTaps + s.K, each = (rows + s.T + 1) * s.D;
  Buffer taps(s.K * s.D), space(parts * each, true);
  if (taps.data == nullptr || space.data == nullptr) return ltc::kNoMemory;
  transpose_taps(s, a.forward.weight, taps.data);
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    float *sums = space.data + part * each, *row = sums + rows * s.D, *mixed_grad = row + s.D;
    for (int64_t b = share(s.B, part, parts); b < share(s.B, part + 1, parts); ++b)
      sequence_backward(s, a, taps.data, b, mixed_grad, row, sums);
  }
  for (int64_t d = 0; d < s.D; ++d) {
    for (int64_t r = 0; r < rows; ++r) {
      float sum = 0.0f;
      for (int part = 0; part < parts; ++part) sum += space.data[part * each + r * s.D + d];
      float* out = r == kNorm ? a.norm_grad + d : r == kBias ? a.bias_grad + d : a.weight_grad + d * s.K + r - kTaps;
      *out = sum;
    }
  }
  return ltc::kOk;
}

// gated = y silu(z)
Status gate_forward(int64_t count, int threads, const Gate& a) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < count; i += kWidth) {
    const vfloat z = read(a.z, i, count);
    write(a.gated, i, count, read(a.y, i, count) * z * sigmoid(z));
  }
  return ltc::kOk;
}

Status gate_backward(int64_t count, int threads, const Gate& a) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < count; i += kWidth) {
    const vfloat z = read(a.z, i, count), open = sigmoid(z), g = read(a.gated, i, count), silu = z * open;
    write(a.z_grad, i, count, g * read(a.y, i, count) * (open + silu * (1.0f - open)));
    write(a.y_grad, i, count, g * silu);
  }
  return ltc::kOk;
}

}  // namespace LTC_NAMESPACE
