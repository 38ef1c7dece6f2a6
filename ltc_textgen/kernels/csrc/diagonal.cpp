// The diagonal cell: the recurrence is elementwise, so a tile of neurons of one sequence runs through all its tokens with
// its state in registers. Tiles are shared out over threads. The backward pass keeps the states of the tokens only and
// takes the sub-steps of a token again, unless there is but one.
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
constexpr int64_t kAhead = 4;  // tokens that are fetched ahead: a tile's rows lie too far apart to be foreseen

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
      : r_e(scaled(-kLog2E, lanes.read(a.self_weight))), r_i(scaled(-kLog2E, lanes.read(a.self_weight + s.N))),
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

// Gradients of a tile, summed over the tokens of one sequence. C: sum of h times the gradient of h.
struct Gradients {
  Tile r_e, r_i, E_e, E_i, C, leak;
  Tile d_e, d_i, h;  // of the token at hand
};

// Gradients of `membrane` and `synapses`, given those of G and I; returns that of x.
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
__attribute__((noinline)) void runge_kutta(const Neurons& p, const Drive& d, Tile& x, vfloat h) {
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

template <int solver, bool whole>
void scan_tile(const Shape& s, const DiagonalForward& a, int64_t b, int64_t tile) {
  const int64_t N = s.N;
  const Lanes<whole> lanes(tile, N);
  const Neurons p(a, lanes, s);
  Tile x = lanes.read(a.x0 + b * N);
  for (int64_t t = 0; t < s.T; ++t) {
    const int64_t token = b * s.T + t;
    const float* drive = a.drive + token * 2 * N;
    if (t + kAhead < s.T) {
      lanes.template fetch<0>(drive + kAhead * 2 * N);
      lanes.template fetch<0>(drive + kAhead * 2 * N + N);
      lanes.template fetch<1>(a.states + (token + kAhead) * N);
    }
    if (a.dt[token] != 0.0f) {  // no time: the state stays as it is, to the bit
      const Drive d = read_drive(lanes, drive, N);
      for (int64_t k = 0; k < s.steps; ++k) substep<solver>(p, d, x, step_of(a.dt[token]));
    }
    lanes.write(a.states + token * N, x);
  }
}

// The way back through a sub-step of Runge-Kutta from x; `g` comes in as the gradient of its end.
__attribute__((noinline)) void runge_kutta_backward(const Neurons& p, Gradients& out, const Drive& d, const Tile& x,
                                                    vfloat h, Tile& g) {
  Tile y[4], slopes[4];
  Openings f[4];
  for (int s = 0; s < 4; ++s) {
    y[s] = s == 0 ? x : stage_start(x, h, s, slopes[s - 1]);
    f[s] = synapses(p, d, y[s]);
    LTC_EACH {
      const Membrane m = membrane(p, u, f[s].e[u], f[s].i[u]);
      slopes[s][u] = slope(y[s][u], m.G, m.I, p.C[u]);
    }
  }
  Tile gx = g, gy = {};  // gy: gradient of the start of the stage after s
  for (int s = 3; s >= 0; --s) LTC_EACH {
    const vfloat pulled = kWeight[s] * g[u] + (s < 3 ? kReach[s + 1] : 0.0f) * gy[u];
    const vfloat G = membrane(p, u, f[s].e[u], f[s].i[u]).G;
    const StageGradient q = slope_backward(y[s][u], G, p.C[u], h * pulled);
    out.h[u] += slopes[s][u] * pulled;
    gy[u] = q.x + membrane_backward(p, out, u, y[s][u], f[s].e[u], f[s].i[u], q.G, q.I);
    gx[u] += gy[u];
  }
  g = gx;
}

// The way back through a sub-step of another solver, from x, where the synapses were f, to `next`.
template <int solver>
LTC_INLINE void substep_backward(const Neurons& p, Gradients& out, const Openings& f, const Tile& x, const Tile& next,
                                 vfloat h, Tile& g) {
  LTC_EACH {
    const Membrane m = membrane(p, u, f.e[u], f.i[u]);
    const StageGradient q = advance_backward<solver>(x[u], m.G, m.I, p.C[u], h, next[u], g[u]);
    out.h[u] += q.h;
    g[u] = q.x + membrane_backward(p, out, u, x[u], f.e[u], f.i[u], q.G, q.I);
  }
}

// A sub-step, kept for the way back.
struct Kept {
  Tile x;
  Openings f;
};

// The way back through one token from x to `next`. `kept`: room for its sub-steps.
template <int solver>
LTC_INLINE void token_backward(const Neurons& p, Gradients& out, const Drive& d, Tile x, const Tile& next, vfloat h,
                               int64_t steps, Kept* kept, Tile& g) {
  if constexpr (solver != kRungeKutta) {
    if (steps == 1) return substep_backward<solver>(p, out, synapses(p, d, x), x, next, h, g);
  }
  for (int64_t k = 0; k < steps; ++k) {
    kept[k].x = x;
    if constexpr (solver == kRungeKutta) {
      if (k + 1 < steps) runge_kutta(p, d, x, h);
    } else {
      kept[k].f = synapses(p, d, x);
      if (k + 1 < steps) x = advance_tile<solver>(p, kept[k].f, x, h);
    }
  }
  for (int64_t k = steps - 1; k >= 0; --k) {
    if constexpr (solver == kRungeKutta) runge_kutta_backward(p, out, d, kept[k].x, h, g);
    else substep_backward<solver>(p, out, kept[k].f, kept[k].x, k + 1 < steps ? kept[k + 1].x : next, h, g);
  }
}

// Parameter gradients of one thread: six rows of whole tiles: r_e, r_i, E_e, E_i, C, leak.
constexpr int kRows = 6;

template <int solver, bool whole>
void scan_tile_backward(const Shape& s, const DiagonalBackward& a, int64_t b, int64_t tile, Kept* kept, float* sums,
                        float* dt_parts) {
  const int64_t N = s.N, width = (N + kTile - 1) / kTile * kTile;
  const Lanes<whole> lanes(tile, N);
  const Neurons p(a.forward, lanes, s);
  Gradients out = {};
  Tile g = a.last_grad != nullptr ? lanes.read(a.last_grad + b * N) : Tile{};
  Tile next = lanes.read(a.forward.states + (b * s.T + s.T - 1) * N);
  for (int64_t t = s.T - 1; t >= 0; --t) {
    const int64_t token = b * s.T + t;
    const float* drive = a.forward.drive + token * 2 * N;
    float* drive_grad = a.drive_grad + token * 2 * N;
    const float* before = t > 0 ? a.forward.states + (token - 1) * N : a.forward.x0 + b * N;
    const vfloat h = step_of(a.forward.dt[token]);
    if (t > kAhead) {
      lanes.template fetch<0>(drive - kAhead * 2 * N);
      lanes.template fetch<0>(drive - kAhead * 2 * N + N);
      lanes.template fetch<0>(before - kAhead * N);
      if (a.states_grad != nullptr) lanes.template fetch<0>(a.states_grad + (token - kAhead) * N);
      lanes.template fetch<1>(drive_grad - kAhead * 2 * N);
      lanes.template fetch<1>(drive_grad - kAhead * 2 * N + N);
    }
    const Tile x = lanes.read(before);
    if (a.states_grad != nullptr) {
      const Tile from_outside = lanes.read(a.states_grad + token * N);
      LTC_EACH g[u] += from_outside[u];
    }
    out.d_e = out.d_i = out.h = Tile{};
    token_backward<solver>(p, out, read_drive(lanes, drive, N), x, next, h, s.steps, kept, g);
    next = x;
    lanes.write(drive_grad, out.d_e);
    lanes.write(drive_grad + N, out.d_i);
    vfloat sum = {};
    LTC_EACH {
      out.C[u] += h * out.h[u];
      sum += out.h[u];  // lanes beyond N have gradients of zero
    }
    if (dt_parts != nullptr) dt_parts[tile * s.B * s.T + token] = lane_sum(sum);
  }
  lanes.write(a.x0_grad + b * N, g);
  const Tile* rows[kRows] = {&out.r_e, &out.r_i, &out.E_e, &out.E_i, &out.C, &out.leak};
  for (int row = 0; row < kRows; ++row) LTC_EACH {
    float* total = sums + row * width + lanes.first + u * kWidth;
    store(total, load(total) + (*rows[row])[u]);
  }
}

template <int solver>
Status forward(const Shape& s, const DiagonalForward& a) {
  const int64_t tiles = (s.N + kTile - 1) / kTile, items = s.B * tiles;
  const int parts = static_cast<int>(smaller<int64_t>(s.threads, items));
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part)
    for (int64_t i = share(items, part, parts); i < share(items, part + 1, parts); ++i) {
      if ((i % tiles + 1) * kTile <= s.N) scan_tile<solver, true>(s, a, i / tiles, i % tiles);
      else scan_tile<solver, false>(s, a, i / tiles, i % tiles);
    }
  return ltc::kOk;
}

template <int solver>
Status backward(const Shape& s, const DiagonalBackward& a) {
  const int64_t tiles = (s.N + kTile - 1) / kTile, items = s.B * tiles, width = tiles * kTile;
  const int parts = static_cast<int>(smaller<int64_t>(s.threads, items));
  Buffer sums(parts * kRows * width, true);
  Array<Kept> kept(parts * s.steps);
  Buffer dt_parts(a.dt_grad != nullptr ? tiles * s.B * s.T : 1);
  if (sums.data == nullptr || kept.data == nullptr || dt_parts.data == nullptr) return ltc::kNoMemory;
  float* dt_sums = a.dt_grad != nullptr ? dt_parts.data : nullptr;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    Kept* mine = kept.data + part * s.steps;
    float* total = sums.data + part * kRows * width;
    for (int64_t i = share(items, part, parts); i < share(items, part + 1, parts); ++i) {
      if ((i % tiles + 1) * kTile <= s.N)
        scan_tile_backward<solver, true>(s, a, i / tiles, i % tiles, mine, total, dt_sums);
      else
        scan_tile_backward<solver, false>(s, a, i / tiles, i % tiles, mine, total, dt_sums);
    }
  }
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
