// The tables of the n-gram memory and the distribution that its counts predict; see memory/ngrams.py.
//
// Counts are kept with update exclusion: a token is counted in the longest context, and in shorter ones only while it
// is new in all longer ones. The counts of all but the longest contexts are then the continuation counts of Kneser-Ney
// (Kneser and Ney 1995; Chen and Goodman 1999, Eq. 17 for the three discounts), and counting a text token by token gives
// the same memory as counting it in one call.
//
// These sources are compiled once, not for every instruction set: look-ups are bound by memory latency, not arithmetic.
#pragma once

#include <cstdint>

#define LTC_EXPORT extern "C" __attribute__((visibility("default")))

namespace ltc {

constexpr int kLongest = 15;                // largest order
constexpr int kTallied = 4;                 // counts of counts are kept for 1 to 4; the discounts follow from them
constexpr uint32_t kNone = 0;               // entry 0 is not used
enum Status { kOk = 0, kNoMemory = 1, kInvalid = 2 };

// The last tokens of a document, the newest first. Integers only, so that the contexts of a batch are a uint32 array
// (B, 16).
struct Context {
  uint32_t length, tokens[kLongest];

  // The EOS token is context for the next document; the tokens before it are not.
  void advance(uint32_t token, int64_t eos) {
    if (static_cast<int64_t>(token) == eos) length = 0;
    if (length < kLongest) ++length;
    for (uint32_t j = length - 1; j > 0; --j) tokens[j] = tokens[j - 1];
    tokens[0] = token;
  }
};

// A token that followed a context. The entries of a context are a linked list; `next` is smaller than the entry's index.
struct Entry {
  uint32_t token, count, next;
};

struct Memory {
  int order;
  int64_t vocab, eos, max_entries;
  uint64_t* keys;                           // open addressing: hash of a context, 0 where a slot is free
  uint32_t* heads;                          // its first entry
  int64_t slots, contexts;
  Entry* entries;
  int64_t count, room, limit;               // limit: entries at which rare contexts are removed
  int64_t tallies[kLongest + 1][kTallied + 1];
  Context here;                             // of the text that is being read
};

// Counts of the longest context that was seen before: its order, distinct next tokens, their total and largest count.
struct Match {
  int order, distinct;
  double total, top;
};

Status count_token(Memory& m, const Context& context, uint32_t token);

// Probabilities (V) of the next token: each order interpolated with the shorter ones, the shortest with a uniform one.
Match predict(const Memory& m, const Context& context, double* p);

struct Mixture;                             // see mixture.cpp

}  // namespace ltc

// Replaces logits (rows, V) by the log-probabilities of a mixture, each row after its own context.
LTC_EXPORT int ltc_mixture_apply(const ltc::Mixture* x, int64_t rows, const ltc::Context* contexts, float* logits);
// Appends one token to the context of each row.
LTC_EXPORT void ltc_mixture_advance(const ltc::Mixture* x, int64_t rows, ltc::Context* contexts, const int64_t* tokens);
