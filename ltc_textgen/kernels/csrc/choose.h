// Sampling a token from the logits of one row, as in generation/sampling.py: bias, penalties, temperature, top-k, top-p,
// min-p, and a draw that inverts the cumulative distribution in the order of ids.
//
// Every filter keeps a prefix of the tokens sorted by logit (ties by id), so it only determines where the prefix ends. A
// heap sorts the tokens up to there.
#pragma once

#include "decoder.h"
#include "math.h"

namespace LTC_NAMESPACE {

using ltc::DecoderOptions;

// The largest of `count` logits (whole vectors); NaN if any is NaN, infinite if no token can be drawn.
LTC_INLINE float largest(const float* logits, int64_t count) {
  vfloat most = splat(-__builtin_inff());
  vint broken = {};
  for (int64_t i = 0; i < count; i += kWidth) {
    const vfloat v = load(logits + i);
    most = v > most ? v : most;
    broken |= v != v;
  }
  float top = most[0];
  for (int i = 0; i < kWidth; ++i) {
    top = most[i] > top ? most[i] : top;
    if (broken[i]) return __builtin_nanf("");
  }
  return top;
}

LTC_INLINE bool finite(float value) { return value - value == 0.0f; }

// log of the sum of the exponentials of `count` logits (whole vectors), the largest of which is `top`.
inline float log_sum(const float* logits, int64_t count, float top) {
  double total = 0.0;
  for (int64_t i = 0; i < count; i += kWidth) {
    const vfloat v = load(logits + i) - top;
    total += lane_sum(v < -87.0f ? vfloat{} : exponential(at_least(v, -87.0f)));
  }
  return top + static_cast<float>(__builtin_log(total));
}

// The `best` likeliest of V tokens in order (ties by id), and their logits minus `norm`.
inline void likeliest(const float* logits, int64_t V, int64_t best, float norm, int32_t* ids, float* values) {
  int64_t found = 0;
  for (int64_t i = 0; i < V; ++i) {
    if (found == best && !(logits[i] > values[best - 1])) continue;
    int64_t at = found < best ? found++ : best - 1;
    for (; at > 0 && logits[i] > values[at - 1]; --at) {
      values[at] = values[at - 1];
      ids[at] = ids[at - 1];
    }
    values[at] = logits[i];
    ids[at] = static_cast<int32_t>(i);
  }
  for (int64_t i = 0; i < found; ++i) values[i] -= norm;
}

// A max-heap of token ids by logit, ties by the smallest id.
struct Heap {
  const float* logits;
  int32_t* ids;
  int64_t count;

  LTC_INLINE bool before(int32_t a, int32_t b) const { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); }

  void sink(int64_t at) {
    const int32_t id = ids[at];
    for (int64_t child = 2 * at + 1; child < count; at = child, child = 2 * at + 1) {
      if (child + 1 < count && before(ids[child + 1], ids[child])) ++child;
      if (!before(ids[child], id)) break;
      ids[at] = ids[child];
      ids[child] = id;
    }
  }
  void build() {
    for (int64_t i = 0; i < count; ++i) ids[i] = static_cast<int32_t>(i);
    for (int64_t at = count / 2; at-- > 0;) sink(at);
  }
  // Token number `index` in sorted order. Tokens are popped as far as needed and stored behind the heap, in reverse.
  int32_t sorted(int64_t index, int64_t all) {
    while (all - count <= index) {
      const int32_t first = ids[0];
      ids[0] = ids[--count];
      sink(0);
      ids[count] = first;
    }
    return ids[all - 1 - index];
  }
};

// Buffers for sampling a row, one per thread. V is the size of the vocabulary, P is V in whole vectors.
struct Chooser {
  int64_t V, P;
  float* chances;  // (P)
  int32_t* ids;    // (P)

  // The last token, in sorted order, that the filters keep. The largest of `logits`, divided by the temperature, is 0;
  // `chances` are their exponentials and `total` the sum of these.
  int32_t last_kept(const DecoderOptions& o, const float* logits, float total) const {
    Heap heap{logits, ids, V};
    heap.build();
    int64_t end = V;
    if (o.top_k > 0 && o.top_k < V) {  // the k likeliest, and ties with the last of them
      total = 0.0f;
      for (end = 0; end < V; ++end) {
        const int32_t id = heap.sorted(end, V);
        if (end >= o.top_k && logits[id] < logits[heap.sorted(end - 1, V)]) break;
        total += chances[id];
      }
    }
    float likelier = chances[heap.sorted(0, V)] / total;  // probability of the tokens before the next
    int64_t next = 1;
    for (; next < end; ++next) {
      if (o.top_p < 1.0f && likelier >= o.top_p) break;
      const float chance = chances[heap.sorted(next, V)];
      if (chance < o.min_p) break;
      likelier += chance / total;
    }
    return heap.sorted(next - 1, V);
  }

  // Bias, then penalties, the repetition penalty first. A token with bias -infinity keeps that logit.
  void penalize(const DecoderOptions& o, float* logits) const {
    for (int64_t i = 0; i < o.bias_count; ++i) logits[o.bias_ids[i]] += o.bias[i];
    if (o.repetition != 1.0f)
      for (int64_t i = 0; i < V; ++i)
        if (o.seen[i]) logits[i] = logits[i] < 0.0f ? logits[i] * o.repetition : logits[i] / o.repetition;
    if (o.frequency != 0.0f || o.presence != 0.0f)
      for (int64_t i = 0; i < V; ++i)
        if (o.counts[i] > 0) logits[i] -= o.frequency * static_cast<float>(o.counts[i]) + o.presence;
  }

  // Draws a token; -1 if the largest logit is NaN or infinite. Changes the logits, the largest of which is `top`.
  int64_t choose(const DecoderOptions& o, float* logits, float top, const double* uniform) const {
    if (!finite(top)) return -1;
    penalize(o, logits);
    top = largest(logits, P);
    if (!finite(top)) return -1;
    if (o.temperature == 0.0f) return first_equal(logits, top);
    float total = 0.0f;
    for (int64_t i = 0; i < P; i += kWidth) {
      const vfloat v = (load(logits + i) - top) / o.temperature;
      const vfloat chance = v < -87.0f ? vfloat{} : exponential(at_least(v, -87.0f));
      store(logits + i, v);
      store(chances + i, chance);
      total += lane_sum(chance);
    }
    if ((o.top_k > 0 && o.top_k < V) || o.top_p < 1.0f) {
      const int32_t last = last_kept(o, logits, total);
      for (int64_t i = 0; i < V; ++i)
        if (logits[i] < logits[last] || (logits[i] == logits[last] && i > last)) chances[i] = 0.0f;
    } else if (o.min_p > 0.0f) {
      for (int64_t i = 0; i < V; ++i)
        if (chances[i] < o.min_p) chances[i] = 0.0f;
    }
    return draw(*uniform);
  }

  int64_t first_equal(const float* logits, float top) const {
    int64_t i = 0;
    while (i < V - 1 && logits[i] != top) ++i;
    return i;
  }

  // The first token up to which the chances sum to more than `uniform` times all of them.
  int64_t draw(double uniform) const {
    double total = 0.0;
    for (int64_t i = 0; i < V; ++i) total += chances[i];
    const double threshold = uniform * total;
    double sum = 0.0;
    int64_t last = 0;
    for (int64_t i = 0; i < V; ++i) {
      if (chances[i] > 0.0f) last = i;
      sum += chances[i];
      if (sum > threshold) return i;
    }
    return last;  // `uniform` so near 1 that the threshold was rounded to the total
  }
};

}  // namespace LTC_NAMESPACE
