// A whole network of liquid blocks that reads and draws tokens: the interface of decoder.cpp to api.cpp. Arrays are dense
// and row-major. kernels/decoder.py and kernels/decoder_rows.py declare the same structures.
#pragma once

#include <cstdint>

#include "memory.h"

namespace ltc {

// The parameters of a block as PyTorch holds them; see model/blocks.py and layers/diagonal.py for the mathematics.
struct DecoderBlock {
  const float *norm;                                  // (D)
  const float *taps, *taps_bias;                      // (D, K), (D)
  const float *input, *input_bias;                    // (2N, D), (2N): drives of both synapses
  const float *feedback, *reversal;                   // (2, N)
  const float *capacitance, *leak;                    // (N)
  const float *gate, *gate_bias;                      // (N, D), (N)
  const float *out;                                   // (D, N)
  float epsilon;                                      // of the norm
};

struct DecoderModel {
  int64_t D, N, K, L, words, V;                       // words: rows of the embedding; V: of the output layer
  int64_t steps;
  int solver;
  bool adaptive, bytes;                               // bytes: weights as 8-bit integers
  const DecoderBlock* blocks;                         // (L)
  const float* embedding;                             // (words, D)
  const float* norm;                                  // (D)
  const float *head, *head_bias;                      // (V, D), (V)
  float epsilon;
};

// An intervention on one neuron.
struct DecoderHold {
  int32_t layer, neuron;
  float value;                                        // its state after every token; NaN: not clamped
  float factor;                                       // multiplies its time constant
};

// Settings of the row in a slot, kept between calls: integration, sampling, interventions.
struct DecoderOptions {
  float h;                                            // length of a sub-step
  float temperature, top_p, min_p;                    // temperature 0: the likeliest token
  float repetition, presence, frequency;              // penalties: repetition by `seen`, the others by `counts`
  int32_t top_k;                                      // 0: all
  int64_t bias_count, stop_count, hold_count, watch_count;
  const int64_t* bias_ids;
  const float* bias;                                  // added to the logits of `bias_ids`; -infinity: never drawn
  const int64_t* stops;                               // tokens after which the row ends
  const DecoderHold* holds;
  const int32_t* watched;                             // (watch_count, 2): layer and neuron
  uint8_t* seen;                                      // (V): tokens read or drawn; or null
  int32_t* counts;                                    // (V): how often each was drawn; or null
  const Mixture* mixture;                             // n-gram memory mixed with the network's distribution; or null
  Context* context;                                   // of the memory: before the call; on return, after what was read
};

enum DecoderEnd { kCountReached = 0, kStopped = 1, kBroken = 2 };  // broken: the largest logit is NaN or infinite

// The work of one row in a call: it reads `given` tokens (at least one), then draws `count` and reads each but the last.
// Every token drawn must be below `words`. Positions are the tokens that are read: at most given + count - 1, or given
// if count is 0. The first token is drawn from the prediction at position given - 1.
struct DecoderWork {
  int64_t slot, given, count;
  const int64_t *ids, *targets;                       // (given), checked by the caller. Targets: the token after each,
                                                      // -1 where none is known, for `chances`; or null
  const double* uniform;                              // (count), in [0, 1); or null at temperature 0
  int64_t* tokens;                                    // (count): what was drawn
  float* logits;                                      // (given, V), of the given tokens; or null
  float* chances;                                     // (positions): log-probability of the token that follows; or null
  int32_t* best_ids;                                  // (positions, best): the likeliest tokens, in order; or null
  float* best;                                        // the same: their log-probabilities
  float* watched;                                     // (positions, watch_count, 2): time constant and state; or null
  int64_t done;                                       // on return: tokens drawn
  int64_t end;                                        // on return: a DecoderEnd
};

struct DecoderCall {
  int64_t rows, slots, best;                          // rows of `work`; slots of the state; length of `best_ids`
  int64_t threads;
  const DecoderOptions* options;                      // (slots)
  DecoderWork* work;                                  // (rows), no slot twice
  float *neurons, *columns;                           // (L, slots, N), (L, slots, K - 1, D): before, and on return after
  // Where other programs occupy the cores, threads wait at barriers for longer than they work. One thread then takes the
  // next `alone` steps; `caution`, the number of such steps, doubles each time. Kept between calls; 0 at first.
  int64_t alone, caution;
};

// A decoder of one instruction set. Made by `decoder_new`, used by its functions, freed by `release`.
struct Decoder {
  int (*run)(Decoder*, DecoderCall&);
  void (*release)(Decoder*);
};

}  // namespace ltc
