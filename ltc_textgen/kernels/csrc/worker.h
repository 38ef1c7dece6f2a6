// What one thread does for the tokens of a call: its neurons of every block, its rows, its share of the output layer.
#pragma once

#include "choose.h"
#include "network.h"
#include "solver.h"
#include "team.h"

namespace LTC_NAMESPACE {

using ltc::DecoderCall;

constexpr int kShares = 4;  // of the neurons of a block: what each adds to the residual stream is rounded by itself
constexpr int64_t kLate = 8, kRarely = 64;  // waits that may be long: eight, and one in so many

// A token of one vector of neurons: z holds the drives. Returns the state after it.
template <int solver>
LTC_INLINE vfloat through_token(const float* p, bool adaptive, const vfloat* z, vfloat x, float step, int64_t steps) {
  if (step == 0.0f) return x;  // no time: the state stays as it is, to the bit
  const vfloat r_e = load(p), r_i = load(p + kWidth), E_e = load(p + 2 * kWidth), E_i = load(p + 3 * kWidth);
  const vfloat C = load(p + 4 * kWidth), leak = load(p + 5 * kWidth), h = splat(step);
  const vfloat d_e = -kLog2E * z[0], d_i = -kLog2E * z[1];
  vfloat G, I;
  const auto membrane = [&](vfloat y) {
    const vfloat f_e = sigmoid_of_power(d_e + r_e * y), f_i = sigmoid_of_power(d_i + r_i * y);
    G = adaptive ? leak + f_e + f_i : leak;
    I = f_e * E_e - f_i * E_i;
  };
  for (int64_t k = 0; k < steps; ++k) {
    if constexpr (solver == kRungeKutta) {
      vfloat y = x, sum = {};
      for (int stage = 0; stage < 4; ++stage) {
        membrane(y);
        const vfloat here = slope(y, G, I, C);
        sum += kWeight[stage] * here;
        if (stage < 3) y = x + h * kReach[stage + 1] * here;
      }
      x += h * sum;
    } else {
      membrane(x);
      x = advance<solver>(x, G, I, C, h);
    }
  }
  return x;
}

// What the threads of a call share.
template <class Kind>
struct Shared {
  Barrier barrier;
  float *states, *gated, *partial, *logits;  // (L, tiles, B, kWidth), (B, Ns), (2, kShares, B, Dp), (B, Vp)
  typename Kind::Value* leaving;             // (B, Ns): gated, as the last matrix takes it
  float* leaving_scale;                      // (kShares, B)
  int64_t* next;                             // (B): tokens just drawn, -1 where there is no distribution
  int halt = 0;
  bool crowded[2] = {false, false};  // at an even token, and at an odd one, so that all threads see the same
};

// Rows of the residual stream, and what is made of them; every thread has one if rows are few.
template <class Kind>
struct Rows {
  float *u, *mixed, *columns;    // (B, Dp), (B, Ds), (L, B, K, Dp): a ring in which time t stands at t mod K
  typename Kind::Value* values;  // (B, Ds): mixed, as the products take it
  float* scale;                  // (B)
};

template <class Kind>
Rows<Kind> take_rows(const Network<Kind>& n, int64_t B, Arena& arena) {
  Rows<Kind> rows = {arena.take<float>(B * n.Dp), arena.take<float>(B * n.Ds), arena.take<float>(n.m.L * n.m.K * B * n.Dp),
                     nullptr, arena.take<float>(B)};
  rows.values = Kind::kDepth == 1 ? reinterpret_cast<typename Kind::Value*>(rows.mixed)
                                  : arena.take<typename Kind::Value>(B * n.Ds);
  return rows;
}

LTC_INLINE void as_values(const float*, int64_t, int64_t, float*, float*) {}  // floats are their own values
LTC_INLINE void as_values(const float* a, int64_t count, int64_t depth, int16_t* values, float* scale) {
  quantise(a, count, depth, values, scale);
}

template <class Kind>
struct Worker {
  const Network<Kind>& n;
  const DecoderCall& c;
  Shared<Kind>& shared;
  Rows<Kind> rows;
  Chooser chooser;
  int me, team;
  bool alone;  // this thread's rows are its own, all B of them
  int64_t first_row = alone ? 0 : share(c.B, me, team), end_row = alone ? c.B : share(c.B, me + 1, team);
  int64_t first_share = share(kShares, me, team), end_share = share(kShares, me + 1, team);
  int64_t first_tile = share(n.tiles, first_share, kShares), end_tile = share(n.tiles, end_share, kShares);
  int64_t sums = 0;  // how often partial results were made: they go into two places in turn

  LTC_INLINE float* ring(int64_t l, int64_t r, int64_t time) const {
    const int64_t K = n.m.K;
    return rows.columns + ((l * c.B + r) * K + (time + K) % K) * n.Dp;
  }
  LTC_INLINE float* state(int64_t l, int64_t r, int64_t tile) const {
    return shared.states + ((l * n.tiles + tile) * c.B + r) * kWidth;
  }
  float* partial(int64_t part) const { return shared.partial + ((sums % 2) * kShares + part) * c.B * n.Dp; }

  void load_state(int64_t time) {
    const DecoderModel& m = n.m;
    for (int64_t l = 0; l < m.L; ++l)
      for (int64_t r = 0; r < c.B; ++r) {
        const int64_t from = first_tile * kWidth, to = smaller(m.N, end_tile * kWidth);
        for (int64_t i = from; i < end_tile * kWidth; ++i)
          state(l, r, i / kWidth)[i % kWidth] = i < to ? c.neurons[(l * c.B + r) * m.N + i] : 0.0f;
        if (r < first_row || r >= end_row) continue;
        for (int64_t k = 0; k + 1 < m.K; ++k) {
          float* column = ring(l, r, (time - (m.K - 1) + k) % m.K);
          for (int64_t d = 0; d < n.Dp; ++d)
            column[d] = d < m.D ? c.columns[((l * c.B + r) * (m.K - 1) + k) * m.D + d] : 0.0f;
        }
      }
  }

  void store_state(int64_t fed) const {
    const DecoderModel& m = n.m;
    for (int64_t l = 0; l < m.L; ++l)
      for (int64_t r = 0; r < c.B; ++r) {
        for (int64_t i = first_tile * kWidth; i < smaller(m.N, end_tile * kWidth); ++i)
          c.neurons[(l * c.B + r) * m.N + i] = state(l, r, i / kWidth)[i % kWidth];
        if (r < first_row || r >= end_row || (alone && me > 0)) continue;
        for (int64_t k = 0; k + 1 < m.K; ++k)
          std::memcpy(c.columns + ((l * c.B + r) * (m.K - 1) + k) * m.D, ring(l, r, (fed - (m.K - 1) + k) % m.K),
                      sizeof(float) * m.D);
      }
  }

  // u of a row plus what the shares made of it, normalised into `to`.
  void normalise(int64_t r, bool add, float epsilon, const float* weight, float* to) const {
    float* u = rows.u + r * n.Dp;
    vfloat squares = {};
    for (int64_t d = 0; d < n.Dp; d += kWidth) {
      vfloat v = load(u + d);
      for (int part = 0; add && part < kShares; ++part) v += load(partial(part) + r * n.Dp + d);
      store(u + d, v);
      squares += v * v;
    }
    const float scale = 1.0f / __builtin_sqrtf(lane_sum(squares) / static_cast<float>(n.m.D) + epsilon);
    for (int64_t d = 0; d < n.Dp; d += kWidth) store(to + d, load(u + d) * scale * load(weight + d));
  }

  // Norm and convolution of this thread's rows, before block l.
  void mix(int64_t l, int64_t time) const {
    const Block<Kind>& b = n.blocks[l];
    const int64_t K = n.m.K;
    for (int64_t r = first_row; r < end_row; ++r) {
      normalise(r, l > 0, b.epsilon, b.norm, ring(l, r, time % K));
      float* mixed = rows.mixed + r * n.Ds;
      for (int64_t d = 0; d < n.Dp; d += kWidth) {
        vfloat sum = load(b.taps_bias + d);
        for (int64_t k = 0; k < K; ++k) sum += load(ring(l, r, (time + 1 + k) % K) + d) * load(b.taps + k * n.Dp + d);
        store(mixed + d, sum);
      }
      as_values(mixed, n.Dp, n.m.D, rows.values + r * n.Ds, rows.scale + r);
    }
    if (!alone) shared.barrier.wait(team);
  }

  // What the neurons of one share add to the residual stream.
  void leave(const Block<Kind>& b, int64_t part) const {
    const int64_t begin = share(n.tiles, part, kShares) * kWidth, count = share(n.tiles, part + 1, kShares) * kWidth - begin;
    float *scale = shared.leaving_scale + part * c.B, *sum = partial(part);
    for (int64_t r = 0; r < c.B; ++r)
      as_values(shared.gated + r * n.Ns + begin, count, count, shared.leaving + r * n.Ns + begin, scale + r);
    multiply<Kind, kPlain>(b.out, 0, b.out.panels, {shared.leaving + begin, n.Ns, scale, c.B}, begin, count,
                           [&](int64_t r, int64_t p, const vfloat* z) {
                             for (int v = 0; v < kPlain; ++v) store(sum + r * n.Dp + (p * kPlain + v) * kWidth, z[v]);
                           });
  }

  template <int solver>
  void block(int64_t l, int64_t time) {
    mix(l, time);
    ++sums;
    const Block<Kind>& b = n.blocks[l];
    const auto neurons = [&](int64_t r, int64_t tile, const vfloat* z) {
      float* x = state(l, r, tile);
      const vfloat after = through_token<solver>(b.neurons + tile * kNeuron * kWidth, n.m.adaptive, z, load(x), c.h, n.m.steps);
      store(x, after);
      store(shared.gated + r * n.Ns + tile * kWidth, after * z[2] * sigmoid(z[2]));
    };
    multiply<Kind, kDrives>(b.drives, first_tile, end_tile, {rows.values, n.Ds, rows.scale, c.B}, 0, b.drives.depth, neurons);
    for (int64_t part = first_share; part < end_share; ++part) leave(b, part);
    shared.barrier.wait(team);
  }

  // Logits of all rows, after the last block.
  void predict() {
    for (int64_t r = first_row; r < end_row; ++r) {
      normalise(r, true, n.m.epsilon, n.norm, rows.mixed + r * n.Ds);
      as_values(rows.mixed + r * n.Ds, n.Dp, n.m.D, rows.values + r * n.Ds, rows.scale + r);
    }
    if (!alone) shared.barrier.wait(team);
    multiply<Kind, kPlain>(n.head, share(n.head.panels, me, team), share(n.head.panels, me + 1, team),
                           {rows.values, n.Ds, rows.scale, c.B}, 0, n.head.depth,
                           [&](int64_t r, int64_t p, const vfloat* z) {
                             for (int v = 0; v < kPlain; ++v)
                               store(shared.logits + r * n.Vp + (p * kPlain + v) * kWidth, z[v]);
                           });
    shared.barrier.wait(team);
  }

  // The next token of this thread's share of the rows.
  void choose(int64_t column) {
    for (int64_t r = share(c.B, me, team); r < share(c.B, me + 1, team); ++r) {
      const int64_t token = chooser.choose(shared.logits + r * n.Vp, r, column);
      shared.next[r] = token;
      bool halt = token < 0;
      for (int64_t i = 0; i < c.stop_count; ++i) halt |= token == c.stops[i];
      if (halt) __atomic_store_n(&shared.halt, 1, __ATOMIC_RELAXED);
      if (token < 0) continue;
      c.tokens[r * c.count + column] = token;
      if (c.seen != nullptr) c.seen[r * n.m.V + token] = 1;
    }
    shared.barrier.wait(team);
  }

  // Feeds the tokens from `begin` on, to `end` or until something stops it. Returns how many have been fed.
  template <int solver>
  int64_t work(int64_t begin, int64_t end) {
    load_state(begin);
    shared.barrier.wait(team);
    int64_t time = begin;
    while (time < end) {
      if (me == 0)
        shared.crowded[time % 2] = __atomic_load_n(&shared.barrier.late, __ATOMIC_RELAXED) >
                                   kLate + (time - begin) * n.m.L / kRarely;
      for (int64_t r = first_row; r < end_row; ++r) {
        const int64_t token = time < c.given ? c.ids[r * c.given + time] : shared.next[r];
        std::memcpy(rows.u + r * n.Dp, n.embedding + token * n.Dp, sizeof(float) * n.Dp);
      }
      for (int64_t l = 0; l < n.m.L; ++l) block<solver>(l, time);
      const bool wanted = c.logits != nullptr && time < c.given, draws = c.count > 0 && time >= c.given - 1;
      if (wanted || draws) predict();
      for (int64_t r = share(c.B, me, team); wanted && r < share(c.B, me + 1, team); ++r)
        std::memcpy(c.logits + (r * c.given + time) * n.m.V, shared.logits + r * n.Vp, sizeof(float) * n.m.V);
      if (draws) choose(time - (c.given - 1));
      ++time;
      if (draws && __atomic_load_n(&shared.halt, __ATOMIC_RELAXED)) break;
      if (shared.crowded[(time - 1) % 2]) break;
    }
    store_state(time);
    return time;
  }
};

}  // namespace LTC_NAMESPACE
