// The n-gram memory: counts of token sequences, the distribution they give, and its mixture with a network's.
//
// Counts are kept with update exclusion: a token is counted in the longest context, and in shorter ones only while it
// is new in all longer ones. The counts of all but the longest contexts are then the continuation counts of Kneser-Ney
// (Kneser and Ney 1995; Chen and Goodman 1999, Eq. 17 for the three discounts), and a text that is counted token by
// token gives the same memory as a text that is counted at once. See memory/ngrams.py.
//
// Compiled once, for no instruction set of its own: a look-up waits for memory, not for arithmetic.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define LTC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kLongest = 15;                // largest order
constexpr int kTallied = 4;                 // counts 1 to 4 are tallied: the discounts are made of them
constexpr uint32_t kNone = 0;               // entry 0 is not used
constexpr int64_t kFirstSlots = 1 << 12;
constexpr int kTotals = 4, kShapes = 3, kConfidences = 4;
enum Status { kOk = 0, kNoMemory = 1, kInvalid = 2 };
enum Adapt { kCounts = 1, kWeights = 2 };

// One token that followed a context. The entries of a context are a list; `next` is always smaller than the entry.
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
  int64_t count, room, rejected;
  int64_t tallies[kLongest + 1][kTallied + 1];
  uint32_t history[kLongest];               // the last tokens, the newest first
  int length;
};

uint64_t hash(uint64_t h, uint64_t token) {
  h ^= (token + 1) * 0x9E3779B97F4A7C15ull;
  h ^= h >> 32;
  h *= 0xD6E8FEB86659FD93ull;
  return h ^ (h >> 29);
}

// Keys of the contexts of order 0 to the returned one, as far back as the document goes.
int context_keys(const Memory& m, uint64_t* keys) {
  uint64_t h = 0x51ED270B153A4D2Full;
  keys[0] = h | 1;
  for (int j = 1; j <= m.length; ++j) {
    h = hash(h, m.history[j - 1]);
    keys[j] = hash(h, static_cast<uint64_t>(j)) | 1;
  }
  return m.length;
}

int64_t slot_of(const uint64_t* keys, int64_t slots, uint64_t key) {
  int64_t at = static_cast<int64_t>(key) & (slots - 1);
  while (keys[at] != 0 && keys[at] != key) at = (at + 1) & (slots - 1);
  return at;
}

bool set_slots(Memory& m, int64_t slots) {
  uint64_t* keys = static_cast<uint64_t*>(std::calloc(slots, sizeof(uint64_t)));
  uint32_t* heads = static_cast<uint32_t*>(std::calloc(slots, sizeof(uint32_t)));
  if (keys == nullptr || heads == nullptr) {
    std::free(keys);
    std::free(heads);
    return false;
  }
  for (int64_t i = 0; i < m.slots; ++i) {
    if (m.keys[i] == 0) continue;
    const int64_t at = slot_of(keys, slots, m.keys[i]);
    keys[at] = m.keys[i];
    heads[at] = m.heads[i];
  }
  std::free(m.keys);
  std::free(m.heads);
  m.keys = keys;
  m.heads = heads;
  m.slots = slots;
  return true;
}

bool set_room(Memory& m, int64_t room) {
  Entry* entries = static_cast<Entry*>(std::realloc(m.entries, room * sizeof(Entry)));
  if (entries == nullptr) return false;
  m.entries = entries;
  m.room = room;
  return true;
}

// Advance the context by a token. A document's end is context for the next document; what stood before it is not.
void advance(Memory& m, uint32_t token) {
  if (static_cast<int64_t>(token) == m.eos) m.length = 0;
  if (m.order == 0) return;
  if (m.length < m.order) ++m.length;
  std::memmove(m.history + 1, m.history, (m.length - 1) * sizeof(uint32_t));
  m.history[0] = token;
}

void tally(Memory& m, int order, uint32_t before) {
  if (before >= 1 && before <= kTallied) --m.tallies[order][before];
  if (before < kTallied) ++m.tallies[order][before + 1];
}

// Add one to an entry; frequent tokens move towards the front of their list, one place at a time.
void increment(Memory& m, int order, uint32_t entry, uint32_t above) {
  Entry& e = m.entries[entry];
  if (e.count == UINT32_MAX) return;
  tally(m, order, e.count++);
  if (above == kNone || m.entries[above].count >= e.count) return;
  Entry& a = m.entries[above];
  const uint32_t token = a.token, count = a.count;
  a.token = e.token;
  a.count = e.count;
  e.token = token;
  e.count = count;
}

Status count_token(Memory& m, uint32_t token) {
  uint64_t keys[kLongest + 1];
  for (int j = context_keys(m, keys); j >= 0; --j) {
    if (m.contexts * 10 >= m.slots * 7 && !set_slots(m, m.slots * 2)) return kNoMemory;
    const int64_t at = slot_of(m.keys, m.slots, keys[j]);
    uint32_t i = m.keys[at] != 0 ? m.heads[at] : kNone, above = kNone;
    while (i != kNone && m.entries[i].token != token) {
      above = i;
      i = m.entries[i].next;
    }
    if (i != kNone) {
      increment(m, j, i, above);
      return kOk;
    }
    if (m.count > m.max_entries && j > 0) {  // full: single tokens are counted all the same
      ++m.rejected;
      continue;
    }
    if (m.count == m.room && !set_room(m, m.room * 2)) return kNoMemory;
    if (m.keys[at] == 0) {
      m.keys[at] = keys[j];
      m.heads[at] = kNone;
      ++m.contexts;
    }
    m.entries[m.count] = {token, 1, m.heads[at]};
    m.heads[at] = static_cast<uint32_t>(m.count++);
    tally(m, j, 0);
  }
  return kOk;
}

double between(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

// What is taken off counts of 1, 2 and more in contexts of one order, from how often such counts occur.
void discounts(const int64_t* tallies, double* d) {
  const double n1 = tallies[1], n2 = tallies[2], n3 = tallies[3], n4 = tallies[4];
  const double y = n1 + n2 > 0 ? n1 / (n1 + 2 * n2) : 0.5;
  d[0] = 0;
  d[1] = between(n1 > 0 ? 1 - 2 * y * n2 / n1 : 0.5, 0.05, 0.98);
  d[2] = between(n2 > 0 ? 2 - 3 * y * n3 / n2 : 1.0, 0.05, 1.95);
  d[3] = between(n3 > 0 ? 3 - 4 * y * n4 / n3 : 1.5, 0.05, 2.9);
}

// What the counts say of the longest context that was seen before.
struct Match {
  int order, distinct;
  double total, top;
};

// Probabilities of the next token: each order interpolated with the shorter ones, the shortest with a uniform one.
Match predict(const Memory& m, double* p) {
  uint64_t keys[kLongest + 1];
  Match match = {0, 0, 0, 0};
  double left = 1;
  std::memset(p, 0, m.vocab * sizeof(double));
  for (int j = context_keys(m, keys); j >= 0; --j) {
    const int64_t at = slot_of(m.keys, m.slots, keys[j]);
    if (m.keys[at] == 0) continue;
    double total = 0, top = 0, kept = 0, d[4];
    int distinct = 0;
    for (uint32_t i = m.heads[at]; i != kNone; i = m.entries[i].next, ++distinct) {
      total += m.entries[i].count;
      if (m.entries[i].count > top) top = m.entries[i].count;
    }
    if (match.distinct == 0) match = {j, distinct, total, top};
    discounts(m.tallies[j], d);
    for (uint32_t i = m.heads[at]; i != kNone; i = m.entries[i].next) {
      const uint32_t count = m.entries[i].count;
      const double share = (count - d[count < 3 ? count : 3]) / total;
      p[m.entries[i].token] += left * share;
      kept += share;
    }
    left *= 1 - kept;
  }
  for (int64_t v = 0; v < m.vocab; ++v) p[v] += left / m.vocab;
  return match;
}

// Which weights of the mixture to use; nothing here depends on the token to come.
int bucket_of(const Match& match, float best) {
  const int total = match.total <= 1 ? 0 : match.total <= 3 ? 1 : match.total <= 16 ? 2 : 3;
  const int shape = match.distinct <= 1 ? 0 : match.top * 2 > match.total ? 1 : 2;
  const int confidence = best > -0.1f ? 0 : best > -0.5f ? 1 : best > -1.2f ? 2 : 3;
  return ((match.order * kTotals + total) * kShapes + shape) * kConfidences + confidence;
}

// log p = w[0] log p_network + w[1] log p_memory - log Z. `both` holds V + V numbers: log p_memory, then log p.
// Returns the bucket of the weights.
int mix(const Memory& m, const Match& match, const double* p, const float* network, const float* weights, float* both) {
  float best = -INFINITY, top = -INFINITY, *memory = both, *mixed = both + m.vocab;
  for (int64_t v = 0; v < m.vocab; ++v) best = network[v] > best ? network[v] : best;
  const int bucket = bucket_of(match, best);
  const float* w = weights + 2 * bucket;
  for (int64_t v = 0; v < m.vocab; ++v) {
    memory[v] = std::log(static_cast<float>(p[v]));
    mixed[v] = w[0] * network[v] + w[1] * memory[v];
    top = mixed[v] > top ? mixed[v] : top;
  }
  double sum = 0;
  for (int64_t v = 0; v < m.vocab; ++v) sum += std::exp(mixed[v] - top);
  const float norm = top + static_cast<float>(std::log(sum));
  for (int64_t v = 0; v < m.vocab; ++v) mixed[v] -= norm;
  return bucket;
}

// One step up the gradient of log p(token) in the weights: how far each input exceeds its mean under the mixture.
void adapt_weights(int64_t vocab, const float* network, const float* both, uint32_t token, float rate, float* w,
                   float* steps) {
  const float *memory = both, *mixed = both + vocab;
  double network_mean = 0, memory_mean = 0;
  for (int64_t v = 0; v < vocab; ++v) {
    const double chance = std::exp(mixed[v]);
    network_mean += chance * network[v];
    memory_mean += chance * memory[v];
  }
  const float step = rate / std::sqrt(1 + 0.05f * *steps);
  *steps += 1;
  w[0] += step * static_cast<float>(network[token] - network_mean);
  w[1] += step * static_cast<float>(memory[token] - memory_mean);
}

// Whether every number of tables that come from a file can be used: no entry or token out of range, no endless list.
bool consistent(const Memory& m) {
  for (int64_t i = 1; i < m.count; ++i) {
    const Entry& e = m.entries[i];
    if (e.token >= m.vocab || e.count == 0 || e.next >= i) return false;
  }
  return true;
}

}  // namespace

LTC_EXPORT void ltc_memory_free(Memory* m) {
  if (m == nullptr) return;
  std::free(m->keys);
  std::free(m->heads);
  std::free(m->entries);
  std::free(m);
}

// An empty memory; null when there is no room for it.
LTC_EXPORT Memory* ltc_memory_new(int order, int64_t vocab, int64_t eos, int64_t max_entries) {
  Memory* m = static_cast<Memory*>(std::calloc(1, sizeof(Memory)));
  if (m == nullptr) return nullptr;
  m->order = order;
  m->vocab = vocab;
  m->eos = eos;
  m->max_entries = max_entries;
  m->count = 1;
  if (set_slots(*m, kFirstSlots) && set_room(*m, kFirstSlots)) return m;
  ltc_memory_free(m);
  return nullptr;
}

// Read tokens; count them, or only move on.
LTC_EXPORT int ltc_memory_read(Memory* m, const uint32_t* tokens, int64_t count, int learn) {
  for (int64_t t = 0; t < count; ++t) {
    if (learn != 0 && count_token(*m, tokens[t]) != kOk) return kNoMemory;
    advance(*m, tokens[t]);
  }
  return kOk;
}

// Begin a new text.
LTC_EXPORT void ltc_memory_reset(Memory* m) { m->length = 0; }

LTC_EXPORT void ltc_memory_predict(const Memory* m, double* p) { predict(*m, p); }

LTC_EXPORT int ltc_memory_buckets() { return (kLongest + 1) * kTotals * kShapes * kConfidences; }

// log p of the mixture at the present place, (V). `scratch`: 2 V floats.
LTC_EXPORT void ltc_memory_mix(const Memory* m, const float* network, const float* weights, double* p, float* scratch,
                               float* mixed) {
  const Match match = predict(*m, p);
  mix(*m, match, p, network, weights, scratch);
  std::memcpy(mixed, scratch + m->vocab, m->vocab * sizeof(float));
}

// -log p of tokens by the memory and by the mixture with a network's log p (count, V), or by the memory alone if that is
// null. Every token is scored before anything learns from it.
LTC_EXPORT int ltc_memory_score(Memory* m, const uint32_t* tokens, int64_t count, const float* network, float* weights,
                                float* steps, float rate, int adapt, float* memory_nll, float* mixed_nll) {
  double* p = static_cast<double*>(std::malloc(m->vocab * (sizeof(double) + 2 * sizeof(float))));
  if (p == nullptr) return kNoMemory;
  float* both = reinterpret_cast<float*>(p + m->vocab);
  Status status = kOk;
  for (int64_t t = 0; t < count && status == kOk; ++t) {
    const Match match = predict(*m, p);
    memory_nll[t] = static_cast<float>(-std::log(p[tokens[t]]));
    if (network != nullptr) {
      const float* now = network + t * m->vocab;
      const int bucket = mix(*m, match, p, now, weights, both);
      mixed_nll[t] = -both[m->vocab + tokens[t]];
      if ((adapt & kWeights) != 0)
        adapt_weights(m->vocab, now, both, tokens[t], rate, weights + 2 * bucket, steps + bucket);
    }
    if ((adapt & kCounts) != 0) status = count_token(*m, tokens[t]);
    advance(*m, tokens[t]);
  }
  std::free(p);
  return status;
}

// Entries, contexts and entries that found no room.
LTC_EXPORT void ltc_memory_sizes(const Memory* m, int64_t* sizes) {
  sizes[0] = m->count - 1;
  sizes[1] = m->contexts;
  sizes[2] = m->rejected;
}

// The tables as a file keeps them: (contexts) keys and heads, (entries, 3) token, count and next, (16, 5) tallies.
LTC_EXPORT void ltc_memory_save(const Memory* m, uint64_t* keys, uint32_t* heads, uint32_t* entries, int64_t* tallies) {
  int64_t n = 0;
  for (int64_t i = 0; i < m->slots; ++i) {
    if (m->keys[i] == 0) continue;
    keys[n] = m->keys[i];
    heads[n++] = m->heads[i];
  }
  std::memcpy(entries, m->entries + 1, (m->count - 1) * sizeof(Entry));
  std::memcpy(tallies, m->tallies, sizeof(m->tallies));
}

// Fill an empty memory from such tables; kInvalid if they cannot be those of a memory.
LTC_EXPORT int ltc_memory_load(Memory* m, int64_t contexts, const uint64_t* keys, const uint32_t* heads, int64_t entries,
                               const uint32_t* table, const int64_t* tallies) {
  int64_t slots = kFirstSlots;
  while (contexts * 10 >= slots * 7) slots *= 2;
  if (!set_slots(*m, slots) || !set_room(*m, entries + 2)) return kNoMemory;
  m->count = entries + 1;
  std::memcpy(m->entries + 1, table, entries * sizeof(Entry));
  std::memcpy(m->tallies, tallies, sizeof(m->tallies));
  if (!consistent(*m)) return kInvalid;
  int64_t listed = 0;
  for (int64_t i = 0; i < contexts; ++i) {
    if (keys[i] == 0 || heads[i] == kNone || heads[i] > entries) return kInvalid;
    for (uint32_t e = heads[i]; e != kNone; e = m->entries[e].next)
      if (++listed > entries) return kInvalid;  // lists that share entries
    const int64_t at = slot_of(m->keys, m->slots, keys[i]);
    if (m->keys[at] != 0) return kInvalid;  // one context twice
    m->keys[at] = keys[i];
    m->heads[at] = heads[i];
  }
  m->contexts = contexts;
  return kOk;
}
