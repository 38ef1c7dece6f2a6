// The diagonal cell: the recurrence is elementwise, so a tile of neurons of one sequence runs through all its tokens with
// its state in registers. Tiles are shared out over threads. The backward pass keeps the states of the tokens only and
// takes the sub-steps of a token again.
#include "kernels.h"
#include "solver.h"
#include "tables.h"

namespace LTC_NAMESPACE {
namespace {

using ltc::DiagonalBackward;
using ltc::DiagonalForward;
using ltc::Shape;
using ltc::Status;

// Vectors of a tile: independent chains of arithmetic that hide each other's latency.
constexpr int kUnroll = 4;
constexpr int kTile = kUnroll * kWidth;

#define LTC_EACH _Pragma("GCC unroll 4") for (int u = 0; u < kUnroll; ++u)

// Neurons of a tile: how many of each vector's lanes exist. Lanes beyond read as harmless values.
struct Lanes {
  int64_t first;
  int count[kUnroll];
  Lanes(int64_t tile, int64_t N) : first(tile * kTile) {
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t left = N - first - u * kWidth;
      count[u] = left >= kWidth ? kWidth : left > 0 ? static_cast<int>(left) : 0;
    }
  }
  LTC_INLINE vfloat read(const float* row, int u, float rest = 0.0f) const {
    return load_part(row + first + u * kWidth, count[u], rest);
  }
  LTC_INLINE void write(float* row, int u, vfloat v) const { store_part(row + first + u * kWidth, v, count[u]); }
};

// Parameters of a tile. r, like the drive of a token, is in units of -1 / log2(e), as `sigmoid_of_power` wants it.
struct Neurons {
  vfloat r_e[kUnroll], r_i[kUnroll], E_e[kUnroll], E_i[kUnroll], C[kUnroll], leak[kUnroll];
  vfloat open;  // 1: the synapses' conductances count in G; 0: tau is frozen
  Neurons(const DiagonalForward& a, const Lanes& lanes, const Shape& s) : open(splat(s.adaptive ? 1.0f : 0.0f)) {
    const int64_t N = s.N;
    LTC_EACH {
      r_e[u] = -kLog2E * lanes.read(a.self_weight, u);
      r_i[u] = -kLog2E * lanes.read(a.self_weight + N, u);
      E_e[u] = lanes.read(a.reversal, u);
      E_i[u] = lanes.read(a.reversal + N, u);
      C[u] = lanes.read(a.capacitance, u, 1.0f);
      leak[u] = lanes.read(a.leak, u, 1.0f);
    }
  }
};

struct Conductances {
  vfloat f_e, f_i, G, I;
};

LTC_INLINE Conductances membrane(const Neurons& p, int u, vfloat d_e, vfloat d_i, vfloat x) {
  const vfloat f_e = sigmoid_of_power(d_e + p.r_e[u] * x), f_i = sigmoid_of_power(d_i + p.r_i[u] * x);
  return {f_e, f_i, p.leak[u] + p.open * (f_e + f_i), f_e * p.E_e[u] - f_i * p.E_i[u]};
}

// Gradients of a tile, summed over the tokens of one sequence. C: sum of h times the gradient of h.
struct Gradients {
  vfloat r_e[kUnroll] = {}, r_i[kUnroll] = {}, E_e[kUnroll] = {}, E_i[kUnroll] = {}, C[kUnroll] = {}, leak[kUnroll] = {};
  vfloat d_e[kUnroll], d_i[kUnroll], h[kUnroll];  // of the token at hand
};

// Gradients of `membrane`, given those of G and I; returns that of x.
LTC_INLINE vfloat membrane_backward(const Neurons& p, Gradients& out, int u, vfloat x, vfloat f_e, vfloat f_i, vfloat gG,
                                    vfloat gI) {
  const vfloat open = p.open * gG;
  const vfloat z_e = (open + gI * p.E_e[u]) * (f_e - f_e * f_e), z_i = (open - gI * p.E_i[u]) * (f_i - f_i * f_i);
  out.leak[u] += gG;
  out.E_e[u] += gI * f_e;
  out.E_i[u] -= gI * f_i;
  out.d_e[u] += z_e;
  out.d_i[u] += z_i;
  out.r_e[u] += z_e * x;
  out.r_i[u] += z_i * x;
  return -kLn2 * (z_e * p.r_e[u] + z_i * p.r_i[u]);
}

// Four evaluations of the membrane: a function, where the one of the others is worth a copy per vector.
__attribute__((noinline)) vfloat runge_kutta(const Neurons& p, int u, vfloat d_e, vfloat d_i, vfloat x, vfloat h) {
  vfloat k = {}, sum = {};
  for (int s = 0; s < 4; ++s) {
    const Conductances c = membrane(p, u, d_e, d_i, x + h * kReach[s] * k);
    k = slope(x + h * kReach[s] * k, c.G, c.I, p.C[u]);
    sum += kWeight[s] * k;
  }
  return x + h * sum;
}

template <int solver>
LTC_INLINE vfloat substep(const Neurons& p, int u, vfloat d_e, vfloat d_i, vfloat x, vfloat h) {
  if constexpr (solver == kRungeKutta) {
    return runge_kutta(p, u, d_e, d_i, x, h);
  } else {
    const Conductances c = membrane(p, u, d_e, d_i, x);
    return advance<solver>(x, c.G, c.I, p.C[u], h);
  }
}

template <int solver>
void scan_tile(const Shape& s, const DiagonalForward& a, int64_t b, int64_t tile) {
  const int64_t N = s.N;
  const Lanes lanes(tile, N);
  const Neurons p(a, lanes, s);
  vfloat x[kUnroll];
  LTC_EACH x[u] = lanes.read(a.x0 + b * N, u);
  for (int64_t t = 0; t < s.T; ++t) {
    const int64_t token = b * s.T + t;
    const float* drive = a.drive + token * 2 * N;
    if (a.dt[token] != 0.0f) {  // no time: the state stays as it is, to the bit
      const vfloat h = splat(a.dt[token]);
      vfloat d_e[kUnroll], d_i[kUnroll];
      LTC_EACH {
        d_e[u] = -kLog2E * lanes.read(drive, u);
        d_i[u] = -kLog2E * lanes.read(drive + N, u);
      }
      for (int64_t k = 0; k < s.steps; ++k) LTC_EACH x[u] = substep<solver>(p, u, d_e[u], d_i[u], x[u], h);
    }
    LTC_EACH lanes.write(a.states + token * N, u, x[u]);
  }
}

// Sub-steps of one token of one vector, kept for the way back: x, f_e, f_i of every sub-step, then the last x.
struct Trace {
  float* data;
  LTC_INLINE float* at(int64_t k, int field, int u) const { return data + ((k * 3 + field) * kUnroll + u) * kWidth; }
  static int64_t size(int64_t steps) { return (steps + 1) * 3 * kTile; }
};

template <int solver>
LTC_INLINE vfloat substep_traced(const Neurons& p, const Trace& trace, int64_t k, int u, vfloat d_e, vfloat d_i, vfloat x,
                                 vfloat h) {
  store(trace.at(k, 0, u), x);
  if constexpr (solver == kRungeKutta) {
    return substep<solver>(p, u, d_e, d_i, x, h);
  } else {
    const Conductances c = membrane(p, u, d_e, d_i, x);
    store(trace.at(k, 1, u), c.f_e);
    store(trace.at(k, 2, u), c.f_i);
    return advance<solver>(x, c.G, c.I, p.C[u], h);
  }
}

__attribute__((noinline)) vfloat runge_kutta_backward(const Neurons& p, Gradients& out, int u, vfloat d_e, vfloat d_i,
                                                      vfloat x, vfloat h, vfloat g) {
  vfloat y[4], slopes[4];
  Conductances c[4];
  for (int s = 0; s < 4; ++s) {
    y[s] = s == 0 ? x : x + h * kReach[s] * slopes[s - 1];
    c[s] = membrane(p, u, d_e, d_i, y[s]);
    slopes[s] = slope(y[s], c[s].G, c[s].I, p.C[u]);
  }
  vfloat gx = g, gy = {};  // gy: gradient of the start of the stage after s
  for (int s = 3; s >= 0; --s) {
    const vfloat pulled = kWeight[s] * g + (s < 3 ? kReach[s + 1] : 0.0f) * gy;
    const StageGradient q = slope_backward(y[s], c[s].G, p.C[u], h * pulled);
    out.h[u] += slopes[s] * pulled;
    gy = q.x + membrane_backward(p, out, u, y[s], c[s].f_e, c[s].f_i, q.G, q.I);
    gx += gy;
  }
  return gx;
}

// Gradient of x before a sub-step, given `g`, that of the x after it.
template <int solver>
LTC_INLINE vfloat substep_backward(const Neurons& p, Gradients& out, const Trace& trace, int64_t k, int u, vfloat d_e,
                                   vfloat d_i, vfloat h, vfloat g) {
  const vfloat x = load(trace.at(k, 0, u));
  if constexpr (solver == kRungeKutta) {
    return runge_kutta_backward(p, out, u, d_e, d_i, x, h, g);
  } else {
    const vfloat f_e = load(trace.at(k, 1, u)), f_i = load(trace.at(k, 2, u));
    const vfloat next = load(trace.at(k + 1, 0, u));
    const vfloat G = p.leak[u] + p.open * (f_e + f_i), I = f_e * p.E_e[u] - f_i * p.E_i[u];
    const StageGradient q = advance_backward<solver>(x, G, I, p.C[u], h, next, g);
    out.h[u] += q.h;
    return q.x + membrane_backward(p, out, u, x, f_e, f_i, q.G, q.I);
  }
}

// Parameter gradients of one thread: six rows of whole tiles, in the order of `add_row`.
constexpr int kRows = 6;

LTC_INLINE void add_row(float* sums, int64_t width, int row, const Lanes& lanes, const vfloat* gradient) {
  LTC_EACH {
    float* p = sums + row * width + lanes.first + u * kWidth;
    store(p, load(p) + gradient[u]);
  }
}

template <int solver>
void scan_tile_backward(const Shape& s, const DiagonalBackward& a, int64_t b, int64_t tile, Trace trace, float* sums,
                        float* dt_parts) {
  const int64_t N = s.N, width = (N + kTile - 1) / kTile * kTile;
  const Lanes lanes(tile, N);
  const Neurons p(a.forward, lanes, s);
  Gradients out;
  vfloat g[kUnroll];
  LTC_EACH g[u] = a.last_grad != nullptr ? lanes.read(a.last_grad + b * N, u) : vfloat{};
  for (int64_t t = s.T - 1; t >= 0; --t) {
    const int64_t token = b * s.T + t;
    const float* drive = a.forward.drive + token * 2 * N;
    const float* before = t > 0 ? a.forward.states + (token - 1) * N : a.forward.x0 + b * N;
    const vfloat h = splat(a.forward.dt[token]);
    vfloat d_e[kUnroll], d_i[kUnroll], x[kUnroll];
    LTC_EACH {
      d_e[u] = -kLog2E * lanes.read(drive, u);
      d_i[u] = -kLog2E * lanes.read(drive + N, u);
      x[u] = lanes.read(before, u);
      if (a.states_grad != nullptr) g[u] += lanes.read(a.states_grad + token * N, u);
      out.d_e[u] = out.d_i[u] = out.h[u] = vfloat{};
    }
    for (int64_t k = 0; k < s.steps; ++k)
      LTC_EACH x[u] = substep_traced<solver>(p, trace, k, u, d_e[u], d_i[u], x[u], h);
    LTC_EACH store(trace.at(s.steps, 0, u), x[u]);
    for (int64_t k = s.steps - 1; k >= 0; --k)
      LTC_EACH g[u] = substep_backward<solver>(p, out, trace, k, u, d_e[u], d_i[u], h, g[u]);
    LTC_EACH {
      lanes.write(a.drive_grad + token * 2 * N, u, out.d_e[u]);
      lanes.write(a.drive_grad + token * 2 * N + N, u, out.d_i[u]);
      out.C[u] += h * out.h[u];
    }
    if (dt_parts != nullptr) {
      vfloat sum = {};
      LTC_EACH sum += out.h[u];  // lanes beyond N have gradients of zero
      dt_parts[tile * s.B * s.T + token] = lane_sum(sum);
    }
  }
  LTC_EACH lanes.write(a.x0_grad + b * N, u, g[u]);
  add_row(sums, width, 0, lanes, out.r_e);
  add_row(sums, width, 1, lanes, out.r_i);
  add_row(sums, width, 2, lanes, out.E_e);
  add_row(sums, width, 3, lanes, out.E_i);
  add_row(sums, width, 4, lanes, out.C);
  add_row(sums, width, 5, lanes, out.leak);
}

template <int solver>
Status forward(const Shape& s, const DiagonalForward& a) {
  const int64_t tiles = (s.N + kTile - 1) / kTile, items = s.B * tiles;
  const int parts = static_cast<int>(smaller<int64_t>(s.threads, items));
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part)
    for (int64_t i = share(items, part, parts); i < share(items, part + 1, parts); ++i)
      scan_tile<solver>(s, a, i / tiles, i % tiles);
  return ltc::kOk;
}

template <int solver>
Status backward(const Shape& s, const DiagonalBackward& a) {
  const int64_t tiles = (s.N + kTile - 1) / kTile, items = s.B * tiles, width = tiles * kTile;
  const int parts = static_cast<int>(smaller<int64_t>(s.threads, items));
  Buffer sums(parts * kRows * width, true), traces(parts * Trace::size(s.steps));
  Buffer dt_parts(a.dt_grad != nullptr ? tiles * s.B * s.T : 1);
  if (sums.data == nullptr || traces.data == nullptr || dt_parts.data == nullptr) return ltc::kNoMemory;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part)
    for (int64_t i = share(items, part, parts); i < share(items, part + 1, parts); ++i)
      scan_tile_backward<solver>(s, a, i / tiles, i % tiles, {traces.data + part * Trace::size(s.steps)},
                                           sums.data + part * kRows * width,
                                           a.dt_grad != nullptr ? dt_parts.data : nullptr);
  float* rows[kRows] = {a.self_weight_grad,     a.self_weight_grad + s.N, a.reversal_grad,
                        a.reversal_grad + s.N, a.capacitance_grad,       a.leak_grad};
  for (int row = 0; row < kRows; ++row) {
    for (int64_t n = 0; n < s.N; ++n) {
      float sum = 0.0f;
      for (int part = 0; part < parts; ++part) sum += sums.data[(part * kRows + row) * width + n];
      rows[row][n] = sum;
    }
  }
  for (int64_t n = 0; n < s.N; ++n) a.capacitance_grad[n] /= -a.forward.capacitance[n];
  if (a.dt_grad != nullptr) {
    for (int64_t token = 0; token < s.B * s.T; ++token) {
      float sum = 0.0f;
      for (int64_t tile = 0; tile < tiles; ++tile) sum += dt_parts.data[tile * s.B * s.T + token];
      a.dt_grad[token] = sum;
    }
  }
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
