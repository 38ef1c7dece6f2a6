// One sub-step of the membrane equation C dx/dt = I - G x and its derivative, for each solver (see solvers.py).
#pragma once

#include "math.h"

namespace LTC_NAMESPACE {

enum Solver { kSemiImplicit = 0, kExplicit = 1, kRungeKutta = 2, kExponential = 3 };

// A solver as a type, so that each has its own copy of a kernel.
template <int code>
struct SolverCode {
  constexpr int operator()() const { return code; }
};

// Calls `run` with the SolverCode of `solver`.
template <class Run>
auto with_solver(int solver, Run run) {
  switch (solver) {
    case kSemiImplicit: return run(SolverCode<kSemiImplicit>{});
    case kExplicit: return run(SolverCode<kExplicit>{});
    case kRungeKutta: return run(SolverCode<kRungeKutta>{});
    default: return run(SolverCode<kExponential>{});
  }
}

// Longest sub-step, in token time; LONGEST_STEP in solvers.py. After it nothing moves, and h G stays far from overflow.
constexpr float kLongestStep = 1e25f;

LTC_INLINE vfloat step_of(float dt) { return splat(smaller(dt, kLongestStep)); }

constexpr int stages_of(int solver) { return solver == kRungeKutta ? 4 : 1; }

// Gradients of one stage. That of C is -(h / C) times that of h, for a step depends on their quotient alone.
struct StageGradient {
  vfloat x, G, I, h;
};

// The step of a solver that evaluates the membrane once: x(t + h) from x, G(x), I(x).
template <int solver>
LTC_INLINE vfloat advance(vfloat x, vfloat G, vfloat I, vfloat C, vfloat h);

// Gradients of `advance`, given `g`, the gradient of its result, and the result itself.
template <int solver>
LTC_INLINE StageGradient advance_backward(vfloat x, vfloat G, vfloat I, vfloat C, vfloat h, vfloat next, vfloat g);

template <>
LTC_INLINE vfloat advance<kSemiImplicit>(vfloat x, vfloat G, vfloat I, vfloat C, vfloat h) {
  return (C * x + h * I) * reciprocal(C + h * G);
}

template <>
LTC_INLINE StageGradient advance_backward<kSemiImplicit>(vfloat, vfloat G, vfloat I, vfloat C, vfloat h, vfloat next,
                                                         vfloat g) {
  const vfloat scaled = g * reciprocal(C + h * G);
  const vfloat current = h * scaled;
  return {C * scaled, -current * next, current, scaled * (I - G * next)};
}

template <>
LTC_INLINE vfloat advance<kExplicit>(vfloat x, vfloat G, vfloat I, vfloat C, vfloat h) {
  return x + h * reciprocal(C) * (I - G * x);
}

template <>
LTC_INLINE StageGradient advance_backward<kExplicit>(vfloat x, vfloat G, vfloat I, vfloat C, vfloat h, vfloat,
                                                     vfloat g) {
  const vfloat scaled = g * reciprocal(C);
  const vfloat current = h * scaled;
  return {g - current * G, -current * x, current, scaled * (I - G * x)};
}

constexpr float kTiny = 1.17549435e-38f;  // G -> 0: the limit of (1 - exp(-G h / C)) / G is h / C

template <>
LTC_INLINE vfloat advance<kExponential>(vfloat x, vfloat G, vfloat I, vfloat C, vfloat h) {
  const vfloat s = h * reciprocal(C);
  const vfloat rate = at_least(G, kTiny) * s;
  vfloat kept, lost;
  decay(rate, &kept, &lost);
  // lost / G = s (1 - exp(-r)) / r, whose limit is s; r below 1e-6 is the limit to the last bit.
  const vfloat gain = s * lost * reciprocal(at_least(rate, kTiny));
  return x * kept + I * (rate < 1e-6f ? s : gain);
}

template <>
LTC_INLINE StageGradient advance_backward<kExponential>(vfloat x, vfloat G, vfloat I, vfloat C, vfloat h, vfloat,
                                                        vfloat g) {
  const vfloat inverse = reciprocal(C), s = h * inverse;
  const vfloat rate = at_least(G, kTiny) * s;
  vfloat kept, lost;
  decay(rate, &kept, &lost);
  // phi(r) = (1 - exp(-r)) / r and its derivative, by series where the difference cancels.
  const vfloat per_rate = reciprocal(at_least(rate, kTiny));
  const vfloat phi = rate < 1e-6f ? splat(1.0f) : lost * per_rate;
  const vfloat series = ((((rate * (1.0f / 840.0f) - 1.0f / 144.0f) * rate + 1.0f / 30.0f) * rate - 0.125f) * rate +
                         1.0f / 3.0f) * rate - 0.5f;
  // s times the derivative; through G, for a rate of 1e25 has no square.
  const vfloat slope = rate < 0.25f ? s * series : (kept - phi) * reciprocal(at_least(G, kTiny));
  return {g * kept, g * s * (I * slope - x * kept), g * s * phi, g * kept * (I - G * x) * inverse};
}

// Slope k = (I - G y) / C of a stage of Runge-Kutta, and its gradients given `g`, the gradient of k; h is the caller's.
LTC_INLINE vfloat slope(vfloat y, vfloat G, vfloat I, vfloat C) { return (I - G * y) * reciprocal(C); }

LTC_INLINE StageGradient slope_backward(vfloat y, vfloat G, vfloat C, vfloat g) {
  const vfloat current = g * reciprocal(C);
  return {-current * G, -current * y, current, vfloat{}};
}

// Runge-Kutta: stage s starts from x + h kReach[s] k_{s-1}, and k_s has the weight kWeight[s] in the step.
constexpr float kReach[4] = {0.0f, 0.5f, 0.5f, 1.0f};
constexpr float kWeight[4] = {1.0f / 6.0f, 1.0f / 3.0f, 1.0f / 3.0f, 1.0f / 6.0f};

}  // namespace LTC_NAMESPACE
