// The diagonal layer with its input projection, in one pass over the tokens. A thread takes whole sequences, some tokens
// at a time: their drives are made, scanned, and in the backward pass turned into gradients of inputs and weights while they
// are in its second-level cache. Threads meet at the end, and in the backward pass once more to sum the weight gradients.
#include "diagonal_backward.h"
#include "blocked.h"
#include "tables.h"

namespace LTC_NAMESPACE {
namespace {

using ltc::LayerBackward;
using ltc::LayerForward;

constexpr int64_t kChunk = 128;  // most tokens at a time

// Tokens that are worked on together: whole sequences if those are short, or a part of one. They follow each other in
// memory.
struct Chunk {
  int64_t first, sequences, begin, end;
  int64_t row(const Shape& s) const { return first * s.T + begin; }
  int64_t rows() const { return sequences * (end - begin); }
};

// Calls `body` with the chunks of sequences first .. last - 1, or with the last one first.
template <bool reversed, class Body>
void each_chunk(const Shape& s, int64_t first, int64_t last, Body body) {
  const int64_t together = s.T < kChunk ? kChunk / s.T : 1, chunks = (s.T + kChunk - 1) / kChunk;
  for (int64_t b = first; b < last; b += together)
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t chunk = reversed ? chunks - 1 - i : i;
      body(Chunk{b, smaller(together, last - b), share(s.T, chunk, chunks), share(s.T, chunk + 1, chunks)});
    }
}

// Calls `body` with each sequence's part of a chunk and its first row in the chunk; drives of the chunk are at `drive`.
template <class Body>
LTC_INLINE void each_span(const Chunk& chunk, const float* drive, int64_t stride, Body body) {
  const int64_t tokens = chunk.end - chunk.begin;
  for (int64_t i = 0; i < chunk.sequences; ++i)
    body(Span{chunk.first + i, chunk.begin, chunk.end, drive + i * tokens * stride, stride}, i * tokens);
}

template <int solver>
Status forward(const Shape& s, const LayerForward& a) {
  const int64_t N = s.N, D = a.D, packed = packed_size(D, 2 * N), scratch = kChunk * kPanel;
  const int64_t each = packed + scratch + (a.drive == nullptr ? kChunk * 2 * N : 0);
  const int parts = static_cast<int>(smaller<int64_t>(s.threads, s.B));
  Buffer space(parts * each);
  if (space.data == nullptr) return ltc::kNoMemory;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    float* mine = space.data + part * each;
    Product p = {0, D, 2 * N, 1, nullptr, D, 1, a.weight, 1, D, a.bias, nullptr, nullptr};
    pack_all(p, mine);
    each_chunk<false>(s, share(s.B, part, parts), share(s.B, part + 1, parts), [&](const Chunk& chunk) {
      p.rows = chunk.rows();
      p.a = a.u + chunk.row(s) * D;
      p.c = a.drive != nullptr ? a.drive + chunk.row(s) * 2 * N : mine + packed + scratch;
      multiply_packed(p, mine, false, mine + packed);
      each_span(chunk, p.c, 2 * N, [&](const Span& span, int64_t) {
        for (int64_t tile = 0; tile < tiles_of(N); ++tile) some_tile<solver>(s, a.scan, span, tile);
      });
    });
  }
  return ltc::kOk;
}

// sums[n] += the sum of column n, or is set to it if there is no `more`.
void add_columns(const float* rows, int64_t stride, int64_t count, int64_t columns, bool more, float* sums) {
  for (int64_t n = 0; n < columns; n += kWidth) {
    const int width = static_cast<int>(smaller<int64_t>(columns - n, kWidth));
    vfloat sum = more ? load_part(sums + n, width) : vfloat{};
    for (int64_t r = 0; r < count; ++r) sum += load_part(rows + r * stride + n, width);
    store_part(sums + n, sum, width);
  }
}

// Workspace of a thread in the backward pass. The first thread's gradients of weights are the result itself.
struct Space {
  int64_t stride;  // of the gradients of drives, whose rows are not to fall into the same cache sets
  int64_t weights, inputs, scratch, drives, weight_grad, bias_grad;
  Space(const LayerBackward& a, int64_t N, int64_t D)
      : stride((2 * N + kWidth - 1) / kWidth * kWidth + kWidth),
        weights(a.u_grad != nullptr ? packed_size(2 * N, D) : 0),
        inputs(a.weight_grad != nullptr ? packed_size(kChunk, D) : 0),
        scratch((2 * N > kChunk ? 2 * N : kChunk) * kPanel), drives(kChunk * stride),
        weight_grad(a.weight_grad != nullptr ? 2 * N * D : 0), bias_grad(a.weight_grad != nullptr ? 2 * N : 0) {}
  int64_t before_gradients() const { return weights + inputs + scratch + drives; }
  int64_t each() const { return (before_gradients() + weight_grad + bias_grad + kWidth - 1) / kWidth * kWidth; }
};

template <int solver>
void some_sequences(const Shape& s, const LayerBackward& a, int64_t first, int64_t last, const Space& space, float* mine,
                    float* weight_grad, float* bias_grad, const Sums& sums) {
  const int64_t N = s.N, D = a.forward.D;
  float *inputs = mine + space.weights, *scratch = inputs + space.inputs, *drives = scratch + space.scratch;
  Product back = {0, 2 * N, D, 1, drives, space.stride, 1, a.forward.weight, D, 1, nullptr, nullptr, nullptr};
  if (a.u_grad != nullptr) pack_all(back, mine);
  bool more = false;
  each_chunk<true>(s, first, last, [&](const Chunk& chunk) {
    const int64_t row = chunk.row(s), rows = chunk.rows();
    each_span(chunk, a.forward.drive + row * 2 * N, 2 * N, [&](const Span& span, int64_t begin) {
      for (int64_t tile = 0; tile < tiles_of(N); ++tile)
        some_tile_backward<solver>(s, a.scan, span, drives + begin * space.stride, space.stride, tile, sums);
    });
    if (a.u_grad != nullptr) {
      back.rows = rows;
      back.c = a.u_grad + row * D;
      multiply_packed(back, mine, false, scratch);
    }
    if (a.weight_grad != nullptr) {
      const Product weights = {2 * N, rows, D, 1, drives, 1, space.stride, a.forward.u + row * D, D, 1, nullptr,
                               weight_grad, nullptr};
      pack_all(weights, inputs);
      multiply_packed(weights, inputs, more, scratch);
      add_columns(drives, space.stride, rows, 2 * N, more, bias_grad);
    }
    more = true;
  });
}

template <int solver>
Status backward(const Shape& s, const LayerBackward& a) {
  const int64_t N = s.N, D = a.forward.D;
  const int parts = static_cast<int>(smaller<int64_t>(s.threads, s.B));
  const bool with_dt = a.scan.dt_grad != nullptr;
  const Space space(a, N, D);
  AllSums sums(s, parts, with_dt);
  Buffer memory(parts * space.each());
  if (!sums.complete() || memory.data == nullptr) return ltc::kNoMemory;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    float *mine = memory.data + part * space.each(), *gradients = mine + space.before_gradients();
    some_sequences<solver>(s, a, share(s.B, part, parts), share(s.B, part + 1, parts), space, mine,
                           part == 0 ? a.weight_grad : gradients,
                           part == 0 ? a.bias_grad : gradients + space.weight_grad, sums.of(part, with_dt));
  }
  sums.write(a.scan);
  if (a.weight_grad == nullptr || parts == 1) return ltc::kOk;
  const float* others = memory.data + space.before_gradients();
#pragma omp parallel for schedule(static, 1) num_threads(parts)
  for (int part = 0; part < parts; ++part) {
    const int64_t begin = share(2 * N * D, part, parts), end = share(2 * N * D, part + 1, parts);
    for (int other = 1; other < parts; ++other) {
      const float* from = others + other * space.each();
      for (int64_t i = begin; i < end; ++i) a.weight_grad[i] += from[i];
    }
  }
  for (int other = 1; other < parts; ++other)
    for (int64_t n = 0; n < 2 * N; ++n) a.bias_grad[n] += others[other * space.each() + space.weight_grad + n];
  return ltc::kOk;
}

}  // namespace

Status layer_forward(const Shape& s, const LayerForward& a) {
  return with_solver(s.solver, [&](auto solver) { return forward<solver()>(s, a); });
}

Status layer_backward(const Shape& s, const LayerBackward& a) {
  return with_solver(s.solver, [&](auto solver) { return backward<solver()>(s, a); });
}

}  // namespace LTC_NAMESPACE
