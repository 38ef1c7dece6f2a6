// From the logits of one row to a token, as generation/sampling.py does it: penalty, temperature, top-k, top-p, min-p,
// and a draw that inverts the cumulative distribution in the order of ids.
//
// What the filters keep is always a prefix of the tokens sorted by logit (ties by id), so a filter only says where the
// prefix ends. Tokens are sorted as far as that is, by a heap.
#pragma once

#include "decoder.h"
#include "math.h"

namespace LTC_NAMESPACE {

// The largest of `count` logits (whole vectors); NaN if any is, and not finite if no token can be drawn from them.
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

// Token ids as a heap whose first has the largest logit, and of equals the smallest id.
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
  // The tokens in sorted order, found one after the other; those found stand behind the heap, the first one last.
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

// What a row's choice needs besides its logits: one per thread. V is the vocabulary, P the same in whole vectors.
struct Chooser {
  const ltc::DecoderCall& c;
  int64_t V, P;
  float* chances;  // (P)
  int32_t* ids;    // (P)

  // The last token, in sorted order, that the filters keep. Logits are shaped, the largest 0; chances are their
  // exponentials and `total` the sum of them.
  int32_t last_kept(const float* logits, float total) const {
    Heap heap{logits, ids, V};
    heap.build();
    int64_t end = V;
    if (c.top_k > 0 && c.top_k < V) {  // the k likeliest, and what ties with the last of them
      total = 0.0f;
      for (end = 0; end < V; ++end) {
        const int32_t id = heap.sorted(end, V);
        if (end >= c.top_k && logits[id] < logits[heap.sorted(end - 1, V)]) break;
        total += chances[id];
      }
    }
    float likelier = chances[heap.sorted(0, V)] / total;  // probability of the tokens before the next
    int64_t next = 1;
    for (; next < end; ++next) {
      if (c.top_p < 1.0f && likelier >= c.top_p) break;
      const float chance = chances[heap.sorted(next, V)];
      if (chance < c.min_p) break;
      likelier += chance / total;
    }
    return heap.sorted(next - 1, V);
  }

  // A token, or -1 if the logits are no distribution. Changes the logits.
  int64_t choose(float* logits, int64_t row, int64_t column) const {
    float top = largest(logits, P);
    if (!finite(top)) return -1;
    if (c.forbidden >= 0) {
      logits[c.forbidden] = -__builtin_inff();
      top = largest(logits, P);
      if (!finite(top)) return -1;
    }
    if (c.seen != nullptr) {
      const uint8_t* seen = c.seen + row * V;
      for (int64_t i = 0; i < V; ++i)
        if (seen[i]) logits[i] = logits[i] < 0.0f ? logits[i] * c.penalty : logits[i] / c.penalty;
      top = largest(logits, P);
      if (!finite(top)) return -1;
    }
    if (c.temperature == 0.0f) return first_equal(logits, top);
    float total = 0.0f;
    for (int64_t i = 0; i < P; i += kWidth) {
      const vfloat v = (load(logits + i) - top) / c.temperature;
      const vfloat chance = v < -87.0f ? vfloat{} : exponential(at_least(v, -87.0f));
      store(logits + i, v);
      store(chances + i, chance);
      total += lane_sum(chance);
    }
    if ((c.top_k > 0 && c.top_k < V) || c.top_p < 1.0f) {
      const int32_t last = last_kept(logits, total);
      for (int64_t i = 0; i < V; ++i)
        if (logits[i] < logits[last] || (logits[i] == logits[last] && i > last)) chances[i] = 0.0f;
    } else if (c.min_p > 0.0f) {
      for (int64_t i = 0; i < V; ++i)
        if (chances[i] < c.min_p) chances[i] = 0.0f;
    }
    return draw(c.uniform[row * c.count + column]);
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
    return last;  // a uniform number so near 1 that rounding made the threshold all
  }
};

}  // namespace LTC_NAMESPACE
