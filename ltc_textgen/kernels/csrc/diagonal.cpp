// The scan of the diagonal cell: tiles of neurons of all sequences are shared out over threads, so that one sequence uses
// them all.
#include "diagonal_backward.h"
#include "tables.h"

namespace LTC_NAMESPACE {
namespace {

Span whole_sequence(const Shape& s, const DiagonalForward& a, int64_t b) {
  return {b, 0, s.T, a.drive + b * s.T * 2 * s.N, 2 * s.N};
}

template <int solver>
Status forward(const Shape& s, const DiagonalForward& a) {
  const int64_t tiles = tiles_of(s.N), items = s.B * tiles;
  const int parts = static_cast<int>(smaller<int64_t>(s.threads, items));
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part)
    for (int64_t i = share(items, part, parts); i < share(items, part + 1, parts); ++i)
      some_tile<solver>(s, a, whole_sequence(s, a, i / tiles), i % tiles);
  return ltc::kOk;
}

template <int solver>
Status backward(const Shape& s, const DiagonalBackward& a) {
  const int64_t tiles = tiles_of(s.N), items = s.B * tiles, stride = 2 * s.N;
  const int parts = static_cast<int>(smaller<int64_t>(s.threads, items));
  const bool with_dt = a.dt_grad != nullptr;
  AllSums sums(s, parts, with_dt);
  if (!sums.complete()) return ltc::kNoMemory;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part)
    for (int64_t i = share(items, part, parts); i < share(items, part + 1, parts); ++i) {
      const int64_t b = i / tiles;
      some_tile_backward<solver>(s, a, whole_sequence(s, a.forward, b), a.drive_grad + b * s.T * stride, stride,
                                 i % tiles, sums.of(part, with_dt));
    }
  sums.write(a);
  return ltc::kOk;
}

}  // namespace

Status diagonal_forward(const Shape& s, const DiagonalForward& a) {
  return with_solver(s.solver, [&](auto solver) { return forward<solver()>(s, a); });
}

Status diagonal_backward(const Shape& s, const DiagonalBackward& a) {
  return with_solver(s.solver, [&](auto solver) { return backward<solver()>(s, a); });
}

}  // namespace LTC_NAMESPACE
