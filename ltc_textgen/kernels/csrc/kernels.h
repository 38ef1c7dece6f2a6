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
  const float *states_grad;                           // (B, T, N)
  const float *last_grad;                             // (B, N) or null
  float *drive_grad, *x0_grad;
  float *dt_grad;                                     // or null
  float *self_weight_grad, *reversal_grad, *capacitance_grad, *leak_grad;
};

struct Table {
  const char *name;
  Status (*diagonal_forward)(const Shape &, const DiagonalForward &);
  Status (*diagonal_backward)(const Shape &, const DiagonalBackward &);
};

}  // namespace ltc
