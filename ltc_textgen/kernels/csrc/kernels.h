// What an instruction set offers to api.cpp: plain pointers and sizes. All arrays are float32, dense, row-major.
#pragma once

#include <cstdint>

namespace ltc {

enum Status { kOk = 0, kNoMemory = 1 };

struct Shape {
  int64_t B, T, N;
  int64_t steps;
  int solver;
  bool adaptive;
  int threads;
};

// States after each token of the diagonal cell; see cells/diagonal.py for the mathematics.
struct DiagonalForward {
  const float *drive;                                 // (B, T, 2N)
  const float *x0;                                    // (B, N)
  const float *dt;                                    // (B, T)
  const float *self_weight, *reversal;                // (2, N)
  const float *capacitance, *leak;                    // (N)
  float *states;                                      // (B, T, N)
};

struct DiagonalBackward {
  DiagonalForward forward;                            // with the states it gave
  const float *states_grad, *last_grad;               // (B, T, N), (B, N); either may be null
  float *drive_grad, *x0_grad;
  float *dt_grad;                                     // or null
  float *self_weight_grad, *reversal_grad, *capacitance_grad, *leak_grad;
};

// The full cell. `tape` holds f of every stage, (B, T, stages, N padded to 16), or is null when no gradient is wanted.
struct FullForward {
  const float *drive, *x0, *dt;                       // (B, T, N), (B, N), (B, T)
  const float *weight;                                // (N, N), [target][source]
  const float *reversal, *capacitance, *leak;         // (N)
  float *states, *tape;
};

struct FullBackward {
  FullForward forward;
  const float *states_grad, *last_grad;
  float *drive_grad, *x0_grad, *dt_grad, *weight_grad, *reversal_grad, *capacitance_grad, *leak_grad;
};

struct Table {
  const char *name;
  Status (*diagonal_forward)(const Shape &, const DiagonalForward &);
  Status (*diagonal_backward)(const Shape &, const DiagonalBackward &);
  Status (*full_forward)(const Shape &, const FullForward &);
  Status (*full_backward)(const Shape &, const FullBackward &);
};

}  // namespace ltc
