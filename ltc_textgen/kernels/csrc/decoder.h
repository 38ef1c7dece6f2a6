// A whole network of liquid blocks that reads and writes tokens: what decoder.cpp offers to api.cpp. Arrays are dense and
// row-major.
#pragma once

#include <cstdint>

namespace ltc {

// The parameters of a block as PyTorch holds them; see blocks.py and cells/diagonal.py for the mathematics.
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

// Feeds `given` tokens, then draws `count` and feeds each but the last. Every token drawn must be one of `words`.
struct DecoderCall {
  int64_t B, given, count;
  int threads;
  float h;                                            // length of a sub-step
  const int64_t* ids;                                 // (B, given), checked by the caller
  float *neurons, *columns;                           // (L, B, N), (L, B, K - 1, D): before, and on return after
  float* logits;                                      // (B, given, V): of the given tokens; or null
  const double* uniform;                              // (B, count), in [0, 1)
  uint8_t* seen;                                      // (B, V): tokens to penalize; or null
  float temperature, top_p, min_p, penalty;           // temperature 0: the likeliest token
  int64_t top_k;                                      // 0: all
  int64_t forbidden;                                  // a token that is never drawn, or -1
  const int64_t* stops;                               // (stop_count): tokens after which the call returns
  int64_t stop_count;
  int64_t* tokens;                                    // (B, count)
  int64_t done;                                       // on return: tokens drawn for each row
  int64_t broken;                                     // on return: the first row whose logits are no distribution, or -1
  // Where other programs want the cores, threads wait for each other longer than they work. Then one goes on alone for
  // `alone` tokens, twice as many (`caution`) each time that it happens again. Kept from call to call; 0 at first.
  int64_t alone, caution;
};

// A decoder of one instruction set. Made by `decoder_new`, used by its functions, freed by `release`.
struct Decoder {
  int (*run)(Decoder*, DecoderCall&);
  void (*release)(Decoder*);
};

}  // namespace ltc
