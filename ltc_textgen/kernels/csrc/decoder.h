// A whole network of liquid blocks that reads and writes tokens: what decoder.cpp offers to api.cpp. Arrays are dense and
// row-major. kernels/decoder.py and kernels/decoder_rows.py have the same structures.
#pragma once

#include <cstdint>

#include "memory.h"

namespace ltc {

// The parameters of a block as PyTorch holds them; see model/blocks.py and layers/diagonal.py for the mathematics.
struct DecoderBlock {
  const float *norm;                                  // (D)
  const float *taps, *taps_bias;                      // (D, K), (D)
  const float *input, *input_bias;                    // (2N, D), (2N): drives of both synapses
  const float *feedback, *reversal;                // (2, N)
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

// A neuron that is not left to itself.
struct DecoderHold {
  int32_t layer, neuron;
  float value;                                        // its state after every token; NaN: as it comes
  float factor;                                       // of its time constant
};

// How the row of a slot integrates and draws, from call to call.
struct DecoderOptions {
  float h;                                            // length of a sub-step
  float temperature, top_p, min_p;                    // temperature 0: the likeliest token
  float repetition, presence, frequency;              // penalties: of what is `seen`, and by `counts`
  int32_t top_k;                                      // 0: all
  int64_t bias_count, stop_count, hold_count, watch_count;
  const int64_t* bias_ids;
  const float* bias;                                  // added to the logits of `bias_ids`; -infinity: never drawn
  const int64_t* stops;                               // tokens after which the row ends
  const DecoderHold* holds;
  const int32_t* watched;                             // (watch_count, 2): layer and neuron
  uint8_t* seen;                                      // (V): tokens read or drawn; or null
  int32_t* counts;                                    // (V): how often each was drawn; or null
  const Mixture* mixture;                             // n-gram memory that joins the network's distribution; or null
  Context* context;                                   // its text: before, and on return after what was read
};

enum DecoderEnd { kCountReached = 0, kStopped = 1, kBroken = 2 };  // broken: the logits are no distribution

// What one row does in a call: it reads `given` tokens (at least one), then draws `count` and reads each but the last.
// Every token drawn must be one of `words`. A position is a token that is read: given + count - 1 of them at most, or
// given. The first prediction drawn from is that of position given - 1.
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
  int64_t rows, slots, best;                          // rows of `work`; slots there are; length of lists of likeliest
  int64_t threads;
  const DecoderOptions* options;                      // (slots)
  DecoderWork* work;                                  // (rows), no slot twice
  float *neurons, *columns;                           // (L, slots, N), (L, slots, K - 1, D): before, and on return after
  // Where other programs want the cores, threads wait for each other longer than they work. Then one goes on alone for
  // `alone` steps, twice as many (`caution`) each time that it happens again. Kept from call to call; 0 at first.
  int64_t alone, caution;
};

// A decoder of one instruction set. Made by `decoder_new`, used by its functions, freed by `release`.
struct Decoder {
  int (*run)(Decoder*, DecoderCall&);
  void (*release)(Decoder*);
};

}  // namespace ltc
