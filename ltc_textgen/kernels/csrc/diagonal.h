// The diagonal cell, forwards: the recurrence is elementwise, so a tile of neurons of one sequence runs through its tokens
// with its state in registers.
#pragma once

#include "kernels.h"
#include "solver.h"

namespace LTC_NAMESPACE {

using ltc::DiagonalForward;
using ltc::Shape;
using ltc::Status;

// Vectors of a tile: independent chains of arithmetic that hide each other's latency.
constexpr int kUnroll = 4;
constexpr int kTile = kUnroll * kWidth;
constexpr int64_t kAhead = 4;  // tokens that are fetched ahead: a tile's rows lie too far apart to be foreseen

LTC_INLINE int64_t tiles_of(int64_t N) { return (N + kTile - 1) / kTile; }

#define LTC_EACH _Pragma("GCC unroll 4") for (int u = 0; u < kUnroll; ++u)

struct Tile {
  vfloat of[kUnroll];
  LTC_INLINE vfloat& operator[](int u) { return of[u]; }
  LTC_INLINE const vfloat& operator[](int u) const { return of[u]; }
};

// Where a tile's neurons are in a row. In a tile that is not `whole`, lanes beyond N read as harmless values.
template <bool whole>
struct Lanes {
  int64_t first, N;
  Lanes(int64_t tile, int64_t N) : first(tile * kTile), N(N) {}
  LTC_INLINE int count(int u) const {
    const int64_t left = N - first - u * kWidth;
    return left >= kWidth ? kWidth : left > 0 ? static_cast<int>(left) : 0;
  }
  LTC_INLINE Tile read(const float* row, float rest = 0.0f) const {
    Tile result;
    LTC_EACH result[u] = whole ? load(row + first + u * kWidth) : load_part(row + first + u * kWidth, count(u), rest);
    return result;
  }
  LTC_INLINE void write(float* row, const Tile& v) const {
    LTC_EACH {
      if (whole) store(row + first + u * kWidth, v[u]);
      else store_part(row + first + u * kWidth, v[u], count(u));
    }
  }
  template <int to_write>
  LTC_INLINE void fetch(const float* row) const {
    if (whole) LTC_EACH __builtin_prefetch(row + first + u * kWidth, to_write);
  }
};

LTC_INLINE Tile scaled(float factor, Tile v) {
  LTC_EACH v[u] *= factor;
  return v;
}

// Parameters of a tile. r, like the drive of a token, is in units of -1 / log2(e), as `sigmoids_of_powers` wants it.
struct Neurons {
  Tile r_e, r_i, E_e, E_i, C, leak;
  vfloat open;  // 1: the synapses' conductances count in G; 0: tau is frozen
  template <bool whole>
  Neurons(const DiagonalForward& a, const Lanes<whole>& lanes, const Shape& s)
      : r_e(scaled(-kLog2E, lanes.read(a.feedback))), r_i(scaled(-kLog2E, lanes.read(a.feedback + s.N))),
        E_e(lanes.read(a.reversal)), E_i(lanes.read(a.reversal + s.N)), C(lanes.read(a.capacitance, 1.0f)),
        leak(lanes.read(a.leak, 1.0f)), open(splat(s.adaptive ? 1.0f : 0.0f)) {}
};

// The drive of a token.
struct Drive {
  Tile e, i;
};

template <bool whole>
LTC_INLINE Drive read_drive(const Lanes<whole>& lanes, const float* row, int64_t N) {
  return {scaled(-kLog2E, lanes.read(row)), scaled(-kLog2E, lanes.read(row + N))};
}

struct Openings {
  Tile e, i;  // f_e and f_i
};

LTC_INLINE Openings synapses(const Neurons& p, const Drive& d, const Tile& x) {
  vfloat f[2 * kUnroll];
  LTC_EACH f[u] = d.e[u] + p.r_e[u] * x[u];
  LTC_EACH f[kUnroll + u] = d.i[u] + p.r_i[u] * x[u];
  sigmoids_of_powers<2 * kUnroll>(f);
  Openings result;
  LTC_EACH result.e[u] = f[u];
  LTC_EACH result.i[u] = f[kUnroll + u];
  return result;
}

struct Membrane {
  vfloat G, I;
};

LTC_INLINE Membrane membrane(const Neurons& p, int u, vfloat f_e, vfloat f_i) {
  return {p.leak[u] + p.open * (f_e + f_i), f_e * p.E_e[u] - f_i * p.E_i[u]};
}

// A sub-step given the open synapses at x.
template <int solver>
LTC_INLINE Tile advance_tile(const Neurons& p, const Openings& f, const Tile& x, vfloat h) {
  Tile next;
  LTC_EACH {
    const Membrane m = membrane(p, u, f.e[u], f.i[u]);
    next[u] = advance<solver>(x[u], m.G, m.I, p.C[u], h);
  }
  return next;
}

// Start of stage s of Runge-Kutta, given the slopes of the stage before.
LTC_INLINE Tile stage_start(const Tile& x, vfloat h, int s, const Tile& slopes) {
  Tile y;
  LTC_EACH y[u] = x[u] + h * kReach[s] * slopes[u];
  return y;
}

// Four evaluations of the membrane: a function, where the one of the others is worth a copy in every place.
__attribute__((noinline)) inline void runge_kutta(const Neurons& p, const Drive& d, Tile& x, vfloat h) {
  Tile slopes = {}, sum = {};
  for (int s = 0; s < 4; ++s) {
    const Tile y = stage_start(x, h, s, slopes);
    const Openings f = synapses(p, d, y);
    LTC_EACH {
      const Membrane m = membrane(p, u, f.e[u], f.i[u]);
      slopes[u] = slope(y[u], m.G, m.I, p.C[u]);
      sum[u] += kWeight[s] * slopes[u];
    }
  }
  LTC_EACH x[u] += h * sum[u];
}

template <int solver>
LTC_INLINE void substep(const Neurons& p, const Drive& d, Tile& x, vfloat h) {
  if constexpr (solver == kRungeKutta) runge_kutta(p, d, x, h);
  else x = advance_tile<solver>(p, synapses(p, d, x), x, h);
}

// Some tokens of one sequence, and their drives, rows `stride` floats apart.
struct Span {
  int64_t b, begin, end;
  const float* drive;  // of token `begin`
  int64_t stride;
};

// Runs a tile of neurons through the tokens of a span; before its first token they are as the token before left them.
template <int solver, bool whole>
void scan_tile(const Shape& s, const DiagonalForward& a, const Span& span, int64_t tile) {
  const int64_t N = s.N, last = span.b * s.T + span.end;
  const Lanes<whole> lanes(tile, N);
  const Neurons p(a, lanes, s);
  int64_t token = span.b * s.T + span.begin;
  Tile x = lanes.read(span.begin > 0 ? a.states + (token - 1) * N : a.x0 + span.b * N);
  for (const float* drive = span.drive; token < last; ++token, drive += span.stride) {
    if (token + kAhead < last) {
      lanes.template fetch<0>(drive + kAhead * span.stride);
      lanes.template fetch<0>(drive + kAhead * span.stride + N);
      lanes.template fetch<1>(a.states + (token + kAhead) * N);
    }
    if (a.dt[token] != 0.0f) {  // no time: the state stays as it is, to the bit
      const Drive d = read_drive(lanes, drive, N);
      for (int64_t k = 0; k < s.steps; ++k) substep<solver>(p, d, x, step_of(a.dt[token]));
    }
    lanes.write(a.states + token * N, x);
  }
}

template <int solver>
LTC_INLINE void some_tile(const Shape& s, const DiagonalForward& a, const Span& span, int64_t tile) {
  if ((tile + 1) * kTile <= s.N) scan_tile<solver, true>(s, a, span, tile);
  else scan_tile<solver, false>(s, a, span, tile);
}

}  // namespace LTC_NAMESPACE
