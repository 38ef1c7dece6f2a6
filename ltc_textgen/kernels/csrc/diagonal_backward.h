// The diagonal cell, backwards: keeps the states of the tokens only and takes the sub-steps of a token again, unless there
// is but one.
#pragma once

#include "diagonal.h"

namespace LTC_NAMESPACE {

using ltc::DiagonalBackward;

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

// Backward pass of a Runge-Kutta sub-step from x; `g` is the gradient of its end, then of x.
__attribute__((noinline)) inline void runge_kutta_backward(const Neurons& p, Gradients& out, const Drive& d, const Tile& x,
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
    const vfloat slope_grad = kWeight[s] * g[u] + (s < 3 ? kReach[s + 1] : 0.0f) * gy[u];
    const vfloat G = membrane(p, u, f[s].e[u], f[s].i[u]).G;
    const StageGradient q = slope_backward(y[s][u], G, p.C[u], h * slope_grad);
    out.h[u] += slopes[s][u] * slope_grad;
    gy[u] = q.x + membrane_backward(p, out, u, y[s][u], f[s].e[u], f[s].i[u], q.G, q.I);
    gx[u] += gy[u];
  }
  g = gx;
}

// Backward pass of a sub-step of another solver, from x, where the synapses were f, to `next`.
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

// A sub-step, kept for the backward pass.
struct Kept {
  Tile x;
  Openings f;
};

// Backward pass of one token, from x to `next`. `kept`: room for its sub-steps.
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

// What the backward pass of one thread sums: gradients of the parameters, six rows of whole tiles (r_e, r_i, E_e, E_i, C,
// leak), and parts of those of dt.
constexpr int kSums = 6;

struct Sums {
  float* rows;      // (kSums, whole tiles)
  float* dt_parts;  // (tiles, B T), shared by all threads, or null
  Kept* kept;       // (steps)
};

// Backward pass of `scan_tile`. Gradients of drives go where `drive_grad` says for the first token of the span, rows
// `grad_stride` apart. x0_grad carries the gradient of the state from one span of a sequence to the span before it.
template <int solver, bool whole>
void scan_tile_backward(const Shape& s, const DiagonalBackward& a, const Span& span, float* drive_grad,
                        int64_t grad_stride, int64_t tile, const Sums& sums) {
  const int64_t N = s.N, first = span.b * s.T + span.begin, count = span.end - span.begin;
  const Lanes<whole> lanes(tile, N);
  const Neurons p(a.forward, lanes, s);
  Gradients out = {};
  float* carried = a.x0_grad + span.b * N;
  Tile g = span.end < s.T ? lanes.read(carried) : a.last_grad != nullptr ? lanes.read(a.last_grad + span.b * N) : Tile{};
  Tile next = lanes.read(a.forward.states + (first + count - 1) * N);
  for (int64_t i = count - 1; i >= 0; --i) {
    const int64_t token = first + i;
    const float* drive = span.drive + i * span.stride;
    float* to = drive_grad + i * grad_stride;
    const float* before = span.begin + i > 0 ? a.forward.states + (token - 1) * N : a.forward.x0 + span.b * N;
    const vfloat h = step_of(a.forward.dt[token]);
    if (i > kAhead) {
      lanes.template fetch<0>(drive - kAhead * span.stride);
      lanes.template fetch<0>(drive - kAhead * span.stride + N);
      lanes.template fetch<0>(before - kAhead * N);
      if (a.states_grad != nullptr) lanes.template fetch<0>(a.states_grad + (token - kAhead) * N);
      lanes.template fetch<1>(to - kAhead * grad_stride);
      lanes.template fetch<1>(to - kAhead * grad_stride + N);
    }
    const Tile x = lanes.read(before);
    if (a.states_grad != nullptr) {
      const Tile from_outside = lanes.read(a.states_grad + token * N);
      LTC_EACH g[u] += from_outside[u];
    }
    out.d_e = out.d_i = out.h = Tile{};
    token_backward<solver>(p, out, read_drive(lanes, drive, N), x, next, h, s.steps, sums.kept, g);
    next = x;
    lanes.write(to, out.d_e);
    lanes.write(to + N, out.d_i);
    vfloat sum = {};
    LTC_EACH {
      out.C[u] += h * out.h[u];
      sum += out.h[u];  // lanes beyond N have gradients of zero
    }
    if (sums.dt_parts != nullptr) sums.dt_parts[tile * s.B * s.T + token] = lane_sum(sum);
  }
  lanes.write(carried, g);
  const Tile* rows[kSums] = {&out.r_e, &out.r_i, &out.E_e, &out.E_i, &out.C, &out.leak};
  for (int row = 0; row < kSums; ++row) LTC_EACH {
    float* total = sums.rows + (row * tiles_of(N) + tile) * kTile + u * kWidth;
    store(total, load(total) + (*rows[row])[u]);
  }
}

template <int solver>
LTC_INLINE void some_tile_backward(const Shape& s, const DiagonalBackward& a, const Span& span, float* drive_grad,
                                   int64_t grad_stride, int64_t tile, const Sums& sums) {
  if ((tile + 1) * kTile <= s.N)
    scan_tile_backward<solver, true>(s, a, span, drive_grad, grad_stride, tile, sums);
  else
    scan_tile_backward<solver, false>(s, a, span, drive_grad, grad_stride, tile, sums);
}

// The sums of all threads, added up in the same order in every run.
struct AllSums {
  const Shape& s;
  int parts;
  Buffer rows, dt_parts;
  Array<Kept> kept;

  AllSums(const Shape& s, int parts, bool with_dt)
      : s(s), parts(parts), rows(parts * kSums * width(), true), dt_parts(with_dt ? tiles_of(s.N) * s.B * s.T : 1),
        kept(parts * s.steps) {}
  int64_t width() const { return tiles_of(s.N) * kTile; }
  bool complete() const { return rows.data != nullptr && dt_parts.data != nullptr && kept.data != nullptr; }
  Sums of(int part, bool with_dt) const {
    return {rows.data + part * kSums * width(), with_dt ? dt_parts.data : nullptr, kept.data + part * s.steps};
  }
  void write(const DiagonalBackward& a) const {
    float* to[kSums] = {a.feedback_grad,    a.feedback_grad + s.N, a.reversal_grad,
                        a.reversal_grad + s.N, a.capacitance_grad,       a.leak_grad};
    for (int row = 0; row < kSums; ++row)
      add_parts(rows.data + row * width(), parts, kSums * width(), s.N, to[row]);
    for (int64_t n = 0; n < s.N; ++n) a.capacitance_grad[n] /= -a.forward.capacitance[n];
    if (a.dt_grad != nullptr)
      add_parts(dt_parts.data, static_cast<int>(tiles_of(s.N)), s.B * s.T, s.B * s.T, a.dt_grad);
  }
};

}  // namespace LTC_NAMESPACE
