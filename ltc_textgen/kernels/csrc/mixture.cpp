// The geometric mixture of a network's distribution with those of n-gram memories; see memory/mixture.py.
//
//   log p(w) = sum_e a_e log p_e(w) - log Z,      a = sum over the tables of the row that the situation selects
//
// Inputs e are the network, the memory of the training text, and a memory of the text read since.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "memory.h"

namespace ltc {

// Filled by memory/mixture.py. The caller owns `weights` (rows, 3) and `steps` (rows).
struct Mixture {
  Memory *counts, *recent;                  // recent: null if nothing is learned while reading
  float *weights, *steps;
  float rate, share;                        // share: 0 to 1, from the network alone to the mixture as fitted
};

namespace {

constexpr int kInputs = 3;                  // network, memory, recent memory
constexpr int kTotals = 4, kShapes = 3;
constexpr int kMatches = (kLongest + 1) * kTotals * kShapes;
constexpr int kSure = 6, kTopSure = 4;      // classes of the likeliest token's probability: network, memory
constexpr int kAgreements = kSure * 2 * kTopSure;
constexpr int kPrevious = 1024;
constexpr int kTables = 4;
constexpr int kFirstRow[kTables + 1] = {0, kMatches, kMatches + kAgreements, kMatches + kAgreements + kPrevious,
                                        2 * kMatches + kAgreements + kPrevious};
enum Adapt { kCounts = 1, kWeights = 2 };

// Buffers for one distribution of each input and of the mixture.
struct Scratch {
  std::unique_ptr<double[]> p;
  std::unique_ptr<float[]> logs;            // (kInputs + 1, V)
  int64_t vocab = 0;

  bool fits(int64_t V) {
    if (vocab >= V) return true;
    p.reset(new (std::nothrow) double[V]);
    logs.reset(new (std::nothrow) float[(kInputs + 1) * V]);
    vocab = p && logs ? V : 0;
    return vocab != 0;
  }
};

// The rows selected before the next token, and the sum of their weights.
struct Situation {
  int rows[kTables];
  float weights[kInputs];
};

int match_class(const Match& match) {
  const int total = match.total <= 1 ? 0 : match.total <= 3 ? 1 : match.total <= 16 ? 2 : 3;
  const int shape = match.distinct <= 1 ? 0 : match.top * 2 > match.total ? 1 : 2;
  return (match.order * kTotals + total) * kShapes + shape;
}

int64_t likeliest(const float* logs, int64_t V) {
  int64_t best = 0;
  for (int64_t v = 1; v < V; ++v) best = logs[v] > logs[best] ? v : best;
  return best;
}

int agreement_class(const float* network, const float* memory, int64_t V) {
  const int64_t n = likeliest(network, V), m = likeliest(memory, V);
  const float a = network[n], b = memory[m];
  const int sure = a > -0.05f ? 0 : a > -0.2f ? 1 : a > -0.5f ? 2 : a > -1.0f ? 3 : a > -1.6f ? 4 : 5;
  const int top = b > -0.1f ? 0 : b > -0.5f ? 1 : b > -1.2f ? 2 : 3;
  return (sure * 2 + (n == m)) * kTopSure + top;
}

Match log_predict(const Memory& m, const Context& context, Scratch& scratch, float* logs) {
  const Match match = predict(m, context, scratch.p.get());
  for (int64_t v = 0; v < m.vocab; ++v) logs[v] = std::log(static_cast<float>(scratch.p[v]));
  return match;
}

// The mixture after `context`: fills the log-probabilities of the memories and the mixture, given those of the network.
Situation mix(const Mixture& x, const Context& context, Scratch& scratch) {
  const int64_t V = x.counts->vocab;
  float *network = scratch.logs.get(), *memory = network + V, *recent = memory + V, *mixed = recent + V;
  Situation s = {};
  const Match match = log_predict(*x.counts, context, scratch, memory);
  s.rows[0] = match_class(match);
  s.rows[1] = kFirstRow[1] + agreement_class(network, memory, V);
  s.rows[2] = kFirstRow[2] + static_cast<int>(context.length ? context.tokens[0] % kPrevious : 0);
  s.rows[3] = -1;
  if (x.recent != nullptr) s.rows[3] = kFirstRow[3] + match_class(log_predict(*x.recent, context, scratch, recent));
  for (int row : s.rows)
    for (int e = 0; e < kInputs && row >= 0; ++e) s.weights[e] += x.weights[kInputs * row + e];
  const float a = 1 + x.share * (s.weights[0] - 1), b = x.share * s.weights[1], c = x.share * s.weights[2];
  float top = -INFINITY;
  if (x.recent != nullptr)
    for (int64_t v = 0; v < V; ++v) mixed[v] = a * network[v] + b * memory[v] + c * recent[v];
  else
    for (int64_t v = 0; v < V; ++v) mixed[v] = a * network[v] + b * memory[v];
  for (int64_t v = 0; v < V; ++v) top = mixed[v] > top ? mixed[v] : top;
  double sum = 0;
  for (int64_t v = 0; v < V; ++v) sum += std::exp(mixed[v] - top);
  const float norm = top + static_cast<float>(std::log(sum));
  for (int64_t v = 0; v < V; ++v) mixed[v] -= norm;
  return s;
}

// One step of gradient ascent on log p(token) in every selected row: d log p / d a_e = log p_e(token) - E_p[log p_e].
void adapt_weights(const Mixture& x, const Situation& s, const Scratch& scratch, uint32_t token) {
  const int64_t V = x.counts->vocab;
  const int inputs = x.recent != nullptr ? kInputs : kInputs - 1;
  const float* mixed = scratch.logs.get() + kInputs * V;
  double excess[kInputs];
  for (int e = 0; e < inputs; ++e) excess[e] = scratch.logs[e * V + token];
  for (int64_t v = 0; v < V; ++v) {
    const float chance = std::exp(mixed[v]);
    for (int e = 0; e < inputs; ++e) excess[e] -= chance * scratch.logs[e * V + v];
  }
  for (int row : s.rows) {
    if (row < 0) continue;
    const float step = x.rate / std::sqrt(1 + 0.05f * x.steps[row]);
    x.steps[row] += 1;
    for (int e = 0; e < inputs; ++e) x.weights[kInputs * row + e] += step * static_cast<float>(excess[e]);
  }
}

// Log-softmax of `logits`; false if the log normalizer is NaN or infinite.
bool normalise(const float* logits, int64_t V, float* logs) {
  float top = -INFINITY;
  for (int64_t v = 0; v < V; ++v) top = logits[v] > top ? logits[v] : top;
  double sum = 0;
  for (int64_t v = 0; v < V; ++v) sum += std::exp(logits[v] - top);
  const float norm = top + static_cast<float>(std::log(sum));
  for (int64_t v = 0; v < V; ++v) logs[v] = logits[v] - norm;
  return std::isfinite(norm);
}

}  // namespace
}  // namespace ltc

using namespace ltc;

// Number of rows of the weights, and how many of the first are selected by the memory's match.
LTC_EXPORT void ltc_mixture_rows(int64_t* rows) {
  rows[0] = kFirstRow[kTables];
  rows[1] = kMatches;
}

// -log p of tokens under the memory and under the mixture with a network's log p (count, V); under the memory alone if
// that is null. Every token is scored before counts and weights are updated with it.
LTC_EXPORT int ltc_mixture_score(Mixture* x, const uint32_t* tokens, int64_t count, const float* network, int adapt,
                                 float* memory_nll, float* mixed_nll) {
  Memory& m = *x->counts;
  const int64_t V = m.vocab;
  Scratch scratch;
  if (!scratch.fits(V)) return kNoMemory;
  for (int64_t t = 0; t < count; ++t) {
    const uint32_t token = tokens[t];
    if (network == nullptr) {
      predict(m, m.here, scratch.p.get());
      memory_nll[t] = static_cast<float>(-std::log(scratch.p[token]));
    } else {
      std::memcpy(scratch.logs.get(), network + t * V, V * sizeof(float));
      const Situation s = mix(*x, m.here, scratch);
      memory_nll[t] = -scratch.logs[V + token];
      mixed_nll[t] = -scratch.logs[kInputs * V + token];
      if ((adapt & kWeights) != 0) adapt_weights(*x, s, scratch, token);
    }
    if ((adapt & kCounts) != 0) {
      if (count_token(m, m.here, token) != kOk) return kNoMemory;
      if (x->recent != nullptr && count_token(*x->recent, m.here, token) != kOk) return kNoMemory;
    }
    m.here.advance(token, m.eos);
  }
  return kOk;
}

// Replaces logits (rows, V) by the log-probabilities of the mixture, each row after its own context. Rows whose
// log normalizer is NaN or infinite are left unchanged; the caller reports them.
LTC_EXPORT int ltc_mixture_apply(const Mixture* x, int64_t rows, const Context* contexts, float* logits) {
  thread_local Scratch scratch;             // each thread of the decoder mixes its own rows
  const int64_t V = x->counts->vocab;
  if (!scratch.fits(V)) return kNoMemory;
  for (int64_t b = 0; b < rows; ++b) {
    if (!normalise(logits + b * V, V, scratch.logs.get())) continue;
    mix(*x, contexts[b], scratch);
    std::memcpy(logits + b * V, scratch.logs.get() + kInputs * V, V * sizeof(float));
  }
  return kOk;
}

// Appends one token to the context of each row.
LTC_EXPORT void ltc_mixture_advance(const Mixture* x, int64_t rows, Context* contexts, const int64_t* tokens) {
  for (int64_t b = 0; b < rows; ++b) contexts[b].advance(static_cast<uint32_t>(tokens[b]), x->counts->eos);
}
