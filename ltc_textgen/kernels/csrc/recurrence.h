// The token loop of the layers whose neurons are connected to each other. A thread carries a block of sequences through all tokens;
// what happens between neurons is left to a Membrane, which is called once per stage of the solver:
//
//   prepare(y)                       the effect of the states y on all neurons (a matrix product, sums over synapses)
//   at(row, token, v, tape) -> G, I  of one vector of neurons, from what was prepared and the token's drive; fills the
//                                    tape, kTape vectors per stage from which
//   recall(row, token, v, tape)      the same G and I, in the backward pass
//   push(row, v, tape, gG, gI)       takes their gradients
//   states_backward(y, gy)           adds to gy the gradients of the states y, from the gradients pushed
//   begin_token(t), end_token(t)     around the backward pass of one token
//
// Blocks of states are rows of `stride` floats with every vector complete; lanes beyond N hold harmless values and
// gradients of zero.
#pragma once

#include "kernels.h"
#include "solver.h"

namespace LTC_NAMESPACE {

using ltc::Shape;
using ltc::Status;

constexpr int kBlock = 16;  // neurons of a block: whole vectors on every instruction set

LTC_INLINE int64_t padded(int64_t N) { return (N + kBlock - 1) / kBlock * kBlock; }
// Rows of a block start 17 lines apart for N = 256, not 16, so that they do not fall into the same cache sets.
LTC_INLINE int64_t stride_of(int64_t N) { return padded(N) + kBlock; }

struct Pair {
  vfloat G, I;
};

// A row of N values in memory that nobody padded.
struct Row {
  int64_t N;
  LTC_INLINE vfloat read(const float* row, int64_t v, float rest = 0.0f) const {
    return load_part(row + v, static_cast<int>(smaller<int64_t>(N - v, kWidth)), rest);
  }
  LTC_INLINE void write(float* row, int64_t v, vfloat value) const {
    store_part(row + v, value, static_cast<int>(smaller<int64_t>(N - v, kWidth)));
  }
};

// Sequences first .. first + rows - 1 of the batch.
struct Rows {
  int64_t first;
  int rows;
};

// How sequences (or other items) are shared out: `parts` threads, each of which carries `rows` of them at a time.
struct Plan {
  static constexpr int kMostRows = 32;
  int64_t P, stride, area;  // area: floats of a block of states
  int parts, rows;
  Plan(int64_t items, int64_t N, int threads) : P(padded(N)), stride(stride_of(N)) {
    parts = static_cast<int>(smaller<int64_t>(threads, items));
    rows = static_cast<int>(smaller<int64_t>(kMostRows, (items + parts - 1) / parts));
    area = rows * stride;
  }
};

// Arrays of a scan that do not depend on the kind of membrane. Gradients may be null.
struct Common {
  const float *x0, *dt, *capacitance;
  float *states, *tape;
  const float *states_grad, *last_grad;
  float *x0_grad, *dt_grad;
};

template <int solver, class Membrane>
struct Scan {
  static constexpr int kStages = stages_of(solver), kBuffers = 3;

  const Shape& s;
  const Common& a;
  Membrane& membrane;
  Rows block;
  int64_t P, stride;
  float* elapsed_sum;  // (P), the thread's sum of h times the gradient of h
  float* space;

  // Floats of workspace for a block of `rows` sequences.
  static int64_t forward_workspace(const Shape& s, int rows) { return kBuffers * rows * stride_of(s.N); }
  static int64_t backward_workspace(const Shape& s, int rows) {
    return (kBuffers + s.steps * kStages + 1) * rows * stride_of(s.N);
  }
  LTC_INLINE float* buffer(int64_t index) const { return space + index * block.rows * stride; }
  LTC_INLINE float* start(int64_t stage) const { return buffer(kBuffers + stage); }  // states that a stage starts from
  LTC_INLINE int64_t token(int r, int64_t t) const { return (block.first + r) * s.T + t; }
  LTC_INLINE float* tape(int r, int64_t t, int64_t stage) const {
    return a.tape + (token(r, t) * s.steps * kStages + stage) * Membrane::kTape * P;
  }

  template <class Body>
  LTC_INLINE void each(Body body) const {
    for (int r = 0; r < block.rows; ++r)
      for (int64_t v = 0; v < P; v += kWidth) body(r, v, r * stride + v);
  }

  void forward() {
    float* x = buffer(0);
    const Row row{s.N};
    each([&](int r, int64_t v, int64_t i) { store(x + i, row.read(a.x0 + (block.first + r) * s.N, v)); });
    for (int64_t t = 0; t < s.T; ++t) {
      for (int64_t k = 0; k < s.steps; ++k) substep(t, k, x);
      each([&](int r, int64_t v, int64_t i) { row.write(a.states + token(r, t) * s.N, v, load(x + i)); });
    }
  }

  void substep(int64_t t, int64_t k, float* x) {
    float *y = buffer(1), *sum = buffer(2);
    const Row row{s.N};
    for (int stage = 0; stage < kStages; ++stage) {
      membrane.prepare(stage == 0 ? x : y);
      for (int r = 0; r < block.rows; ++r) {
        const float dt = a.dt[token(r, t)];
        const bool still = dt == 0.0f;  // no time: the state stays as it is, to the bit
        const vfloat h = step_of(dt);
        float* saved = a.tape != nullptr ? tape(r, t, k * kStages + stage) : nullptr;
        for (int64_t v = 0; v < P; v += kWidth) {
          const int64_t i = r * stride + v;
          const vfloat C = row.read(a.capacitance, v, 1.0f), before = load(x + i);
          const Pair m = membrane.at(r, token(r, t), v, saved);
          if constexpr (kStages == 1) {
            store(x + i, still ? before : advance<solver>(before, m.G, m.I, C, h));
          } else {
            const vfloat slope_here = slope(load((stage == 0 ? x : y) + i), m.G, m.I, C);
            const vfloat total = (stage == 0 ? vfloat{} : load(sum + i)) + kWeight[stage] * slope_here;
            store(sum + i, total);
            if (stage < 3) store(y + i, before + h * kReach[stage < 3 ? stage + 1 : 0] * slope_here);
            if (stage == 3 && !still) store(x + i, before + h * total);
          }
        }
      }
    }
  }

  // Takes the sub-steps of a token again, from the tape; leaves the start of every stage, and the last state after them.
  void retrace(int64_t t) {
    const Row row{s.N};
    const float* before = t > 0 ? a.states + (t - 1) * s.N : a.x0;
    const int64_t between = t > 0 ? s.T * s.N : s.N;
    each([&](int r, int64_t v, int64_t i) { store(start(0) + i, row.read(before + (block.first + r) * between, v)); });
    for (int64_t k = 0; k < s.steps; ++k) {
      each([&](int r, int64_t v, int64_t i) {
        const vfloat C = row.read(a.capacitance, v, 1.0f), h = step_of(a.dt[token(r, t)]);
        const vfloat x = load(start(k * kStages) + i);
        vfloat y = x, sum = {}, next = {};
        for (int stage = 0; stage < kStages; ++stage) {
          const Pair m = membrane.recall(token(r, t), v, tape(r, t, k * kStages + stage));
          if constexpr (kStages == 1) {
            next = advance<solver>(x, m.G, m.I, C, h);
          } else {
            store(start(k * kStages + stage) + i, y);
            const vfloat slope_here = slope(y, m.G, m.I, C);
            sum += kWeight[stage] * slope_here;
            if (stage < 3) y = x + h * kReach[stage < 3 ? stage + 1 : 0] * slope_here;
            next = x + h * sum;
          }
        }
        store(start((k + 1) * kStages) + i, next);
      });
    }
  }

  void backward() {
    float* g = buffer(0);
    const Row row{s.N};
    each([&](int r, int64_t v, int64_t i) {
      store(g + i, a.last_grad != nullptr ? row.read(a.last_grad + (block.first + r) * s.N, v) : vfloat{});
    });
    for (int64_t t = s.T - 1; t >= 0; --t) {
      if (a.states_grad != nullptr)
        each([&](int r, int64_t v, int64_t i) {
          store(g + i, load(g + i) + row.read(a.states_grad + token(r, t) * s.N, v));
        });
      retrace(t);
      membrane.begin_token(t);
      for (int r = 0; r < block.rows && a.dt_grad != nullptr; ++r) a.dt_grad[token(r, t)] = 0.0f;
      for (int64_t k = s.steps - 1; k >= 0; --k) substep_backward(t, k, g);
      membrane.end_token(t, start(0));
    }
    each([&](int r, int64_t v, int64_t i) { row.write(a.x0_grad + (block.first + r) * s.N, v, load(g + i)); });
  }

  void substep_backward(int64_t t, int64_t k, float* g) {
    float *gy = buffer(1), *gx = buffer(2);  // of the stage after, and of the start of the sub-step
    const Row row{s.N};
    for (int stage = kStages - 1; stage >= 0; --stage) {
      const int64_t index = k * kStages + stage;
      const float *y = start(index), *next = start((k + 1) * kStages);
      for (int r = 0; r < block.rows; ++r) {
        const vfloat h = step_of(a.dt[token(r, t)]);
        const float* saved = tape(r, t, index);
        vfloat elapsed = {};
        for (int64_t v = 0; v < P; v += kWidth) {
          const int64_t i = r * stride + v;
          const vfloat C = row.read(a.capacitance, v, 1.0f), after = load(g + i);
          const Pair m = membrane.recall(token(r, t), v, saved);
          StageGradient q;
          if constexpr (kStages == 1) {
            q = advance_backward<solver>(load(y + i), m.G, m.I, C, h, load(next + i), after);
            store(g + i, q.x);
          } else {
            vfloat slope_grad = kWeight[stage] * after;
            if (stage < 3) slope_grad += kReach[stage < 3 ? stage + 1 : 0] * load(gy + i);
            q = slope_backward(load(y + i), m.G, C, h * slope_grad);
            q.h = slope_grad * slope(load(y + i), m.G, m.I, C);
            store(gy + i, q.x);
          }
          elapsed += q.h;
          store(elapsed_sum + v, load(elapsed_sum + v) + h * q.h);
          membrane.push(r, index, v, saved, q.G, q.I);
        }
        if (a.dt_grad != nullptr) a.dt_grad[token(r, t)] += lane_sum(elapsed);
      }
      if constexpr (kStages == 1) {
        membrane.states_backward(index, y, g);
      } else {
        membrane.states_backward(index, y, gy);
        each([&](int, int64_t, int64_t i) {
          store(gx + i, (stage == 3 ? load(g + i) : load(gx + i)) + load(gy + i));
          if (stage == 0) store(g + i, load(gx + i));
        });
      }
    }
  }
};

}  // namespace LTC_NAMESPACE
