// What an instruction set offers to api.cpp: plain pointers and sizes. All arrays are float32, dense, row-major.
#pragma once

#include <cstdint>

#include "decoder.h"

namespace ltc {


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
  const float *feedback, *reversal;                // (2, N)
  const float *capacitance, *leak;                    // (N)
  float *states;                                      // (B, T, N)
};

struct DiagonalBackward {
  DiagonalForward forward;                            // with the states it gave
  const float *states_grad, *last_grad;               // (B, T, N), (B, N); either may be null
  float *drive_grad, *x0_grad;
  float *dt_grad;                                     // or null
  float *feedback_grad, *reversal_grad, *capacitance_grad, *leak_grad;
};

// The diagonal cell with its input projection: drive = W u + b. The arrays `drive` and `drive_grad` of the scan are not
// looked at.
struct LayerForward {
  DiagonalForward scan;
  int64_t D;
  const float *u;                                     // (B, T, D)
  const float *weight, *bias;                         // (2N, D), (2N)
  float *drive;                                       // (B, T, 2N), or null if no gradient is wanted
};

struct LayerBackward {
  DiagonalBackward scan;
  LayerForward forward;                               // with the drive it gave; `scan` is not looked at
  float *u_grad;                                      // or null
  float *weight_grad, *bias_grad;                     // both or none
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

// Synapses from P sources onto N targets, (P, N); `mask` says which exist.
struct SynapseArrays {
  const float *w, *sigma, *mu, *reversal;
  const uint8_t *mask;
};
struct SynapseGradients {
  float *w, *sigma, *mu, *reversal;
};

// The synaptic cell. `tape` holds G and I of every stage, (B, T, stages, 2, N padded to 16), or is null.
struct SynapticForward {
  const float *drive, *x0, *dt;                       // (B, T, 2N): conductance and current, (B, N), (B, T)
  SynapseArrays synapses;                             // (N, N)
  const float *capacitance, *leak, *current;          // (N); current: leak times resting potential
  float *states, *tape;
};

struct SynapticBackward {
  SynapticForward forward;
  const float *states_grad, *last_grad;
  float *drive_grad, *x0_grad, *dt_grad;
  SynapseGradients synapses_grad;
  float *capacitance_grad, *leak_grad, *current_grad;
};

// Sums over synapses for M rows of values of P sources.
struct SumsForward {
  const float *values;                                // (M, P)
  SynapseArrays synapses;
  float *sums;                                        // (M, 2N): conductance and current
};

struct SumsBackward {
  SumsForward forward;
  const float *sums_grad;
  float *values_grad;
  SynapseGradients synapses_grad;
};

// C (rows, columns) = A B (+ bias), with A (rows, depth) and B (depth, columns) in any order of dimensions.
struct Product {
  int64_t rows, depth, columns;
  int threads;
  const float *a;
  int64_t a_row, a_column;                            // floats from row to row, and from column to column
  const float *b;
  int64_t b_row, b_column;
  const float *bias;                                  // (columns) or null
  float *c;                                           // dense
  float *row_sums;                                    // (rows), sums of A over its columns, or null
};

// A block's RMSNorm and causal depthwise convolution over K tokens; see blocks.py for the mathematics.
struct MixingShape {
  int64_t B, T, D, K;
  float epsilon;
  int threads;
};

struct MixingForward {
  const float *u;                                     // (B, T, D)
  const float *columns;                               // (B, K - 1, D): normed tokens before the first
  const float *norm_weight;                           // (D)
  const float *weight, *bias;                         // (D, K), (D)
  float *extended;                                    // (B, K - 1 + T, D): columns, then the normed tokens
  float *scale;                                       // (B, T): 1 / root mean square
  float *mixed;                                       // (B, T, D)
};

struct MixingBackward {
  MixingForward forward;                              // with what it gave, `mixed` left out
  const float *grad, *other_grad;                     // (B, T, D): two gradients of mixed, which add up
  const float *residual_grad;                         // (B, T, D): gradient of u that bypasses the block
  const float *after_grad;                            // (B, K - 1, D): of the last rows of `extended`; or null
  float *columns_grad;                                // or null
  float *u_grad, *norm_grad, *weight_grad, *bias_grad;
};

// gated = y silu(z), elementwise. In the backward pass `gated` holds its gradient.
struct Gate {
  const float *y, *z;
  float *gated, *y_grad, *z_grad;
};

struct Table {
  const char *name;
  Status (*diagonal_forward)(const Shape &, const DiagonalForward &);
  Status (*diagonal_backward)(const Shape &, const DiagonalBackward &);
  Status (*layer_forward)(const Shape &, const LayerForward &);
  Status (*layer_backward)(const Shape &, const LayerBackward &);
  Status (*full_forward)(const Shape &, const FullForward &);
  Status (*full_backward)(const Shape &, const FullBackward &);
  Status (*synaptic_forward)(const Shape &, const SynapticForward &);
  Status (*synaptic_backward)(const Shape &, const SynapticBackward &);
  Status (*sums_forward)(int64_t rows, int64_t sources, int64_t targets, int threads, const SumsForward &);
  Status (*sums_backward)(int64_t rows, int64_t sources, int64_t targets, int threads, const SumsBackward &);
  Status (*product)(const Product &);
  Status (*mixing_forward)(const MixingShape &, const MixingForward &);
  Status (*mixing_backward)(const MixingShape &, const MixingBackward &);
  Status (*gate_forward)(int64_t count, int threads, const Gate &);
  Status (*gate_backward)(int64_t count, int threads, const Gate &);
  Decoder *(*decoder_new)(const DecoderModel &);
};

}  // namespace ltc
