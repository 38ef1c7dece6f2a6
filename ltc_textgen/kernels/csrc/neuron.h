// One token of one vector of neurons in the decoder, and what may be asked of single neurons: to be held, to be watched.
#pragma once

#include "network.h"
#include "solver.h"

namespace LTC_NAMESPACE {

using ltc::DecoderHold;
using ltc::DecoderOptions;

// A vector of neurons; see kNeuron in network.h.
struct Neurons {
  vfloat r_e, r_i, E_e, E_i, C, leak;
  bool adaptive;

  LTC_INLINE Neurons(const float* p, bool adaptive)
      : r_e(load(p)), r_i(load(p + kWidth)), E_e(load(p + 2 * kWidth)), E_i(load(p + 3 * kWidth)),
        C(load(p + 4 * kWidth)), leak(load(p + 5 * kWidth)), adaptive(adaptive) {}

  // Conductance and current at state y; d are the drives in units of -1 / log2(e).
  LTC_INLINE void membrane(const vfloat* d, vfloat y, vfloat* G, vfloat* I) const {
    const vfloat f_e = sigmoid_of_power(d[0] + r_e * y), f_i = sigmoid_of_power(d[1] + r_i * y);
    *G = adaptive ? leak + f_e + f_i : leak;
    *I = f_e * E_e - f_i * E_i;
  }
};

// The state after a token with the drives z, before which it was x.
template <int solver>
LTC_INLINE vfloat through_token(const Neurons& n, const vfloat* z, vfloat x, float step, int64_t steps) {
  if (step == 0.0f) return x;  // no time: the state stays as it is, to the bit
  const vfloat d[2] = {-kLog2E * z[0], -kLog2E * z[1]}, h = splat(step);
  vfloat G, I;
  for (int64_t k = 0; k < steps; ++k) {
    if constexpr (solver == kRungeKutta) {
      vfloat y = x, sum = {};
      for (int stage = 0; stage < 4; ++stage) {
        n.membrane(d, y, &G, &I);
        const vfloat here = slope(y, G, I, n.C);
        sum += kWeight[stage] * here;
        if (stage < 3) y = x + h * kReach[stage + 1] * here;
      }
      x += h * sum;
    } else {
      n.membrane(d, x, &G, &I);
      x = advance<solver>(x, G, I, n.C, h);
    }
  }
  return x;
}

// The neurons of a tile with the time constants that `o` gives them: a factor of C is one of C / G.
inline void stretch(Neurons& n, const DecoderOptions& o, int64_t layer, int64_t tile) {
  for (int64_t i = 0; i < o.hold_count; ++i) {
    const DecoderHold& hold = o.holds[i];
    if (hold.layer == layer && hold.neuron / kWidth == tile) n.C[hold.neuron % kWidth] *= hold.factor;
  }
}

// The state x of a tile with what `o` holds in place.
inline vfloat held(vfloat x, const DecoderOptions& o, int64_t layer, int64_t tile) {
  for (int64_t i = 0; i < o.hold_count; ++i) {
    const DecoderHold& hold = o.holds[i];
    if (hold.layer == layer && hold.neuron / kWidth == tile && hold.value == hold.value)
      x[hold.neuron % kWidth] = hold.value;
  }
  return x;
}

// Writes time constant and state of those neurons of a tile that `o` watches, after a token with the drives z.
inline void watch(const Neurons& n, const DecoderOptions& o, int64_t layer, int64_t tile, const vfloat* z, vfloat x,
                  float* watched) {
  const vfloat d[2] = {-kLog2E * z[0], -kLog2E * z[1]};
  for (int64_t i = 0; i < o.watch_count; ++i) {
    const int32_t neuron = o.watched[2 * i + 1], lane = neuron % kWidth;
    if (o.watched[2 * i] != layer || neuron / kWidth != tile) continue;
    vfloat G, I;
    n.membrane(d, x, &G, &I);
    watched[2 * i] = n.C[lane] / G[lane];
    watched[2 * i + 1] = x[lane];
  }
}

}  // namespace LTC_NAMESPACE
