// The n-gram memory: counting, prediction, and the tables in the format of the file. See memory.h.
#include "memory.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace ltc {
namespace {

constexpr int64_t kFirstSlots = 1 << 12;
constexpr uint64_t kForever = 1ull << 40;  // more than any count

uint64_t hash(uint64_t h, uint64_t token) {
  h ^= (token + 1) * 0x9E3779B97F4A7C15ull;
  h ^= h >> 32;
  h *= 0xD6E8FEB86659FD93ull;
  return h ^ (h >> 29);
}

// Hashes of the contexts of order 0 to the returned order: that of the memory, or less at the beginning of a document.
int context_keys(const Memory& m, const Context& context, uint64_t* keys) {
  const int length = static_cast<int>(context.length) < m.order ? static_cast<int>(context.length) : m.order;
  uint64_t h = 0x51ED270B153A4D2Full;
  keys[0] = h | 1;
  for (int j = 1; j <= length; ++j) {
    h = hash(h, context.tokens[j - 1]);
    keys[j] = hash(h, static_cast<uint64_t>(j)) | 1;
  }
  return length;
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

void release(Memory& m) {
  std::free(m.keys);
  std::free(m.heads);
  std::free(m.entries);
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

// Remove the contexts that were seen less than `least` times, except the empty one.
Status prune(Memory& m, uint64_t least) {
  Memory kept = {};
  kept.order = m.order;
  if (!set_slots(kept, m.slots) || !set_room(kept, m.room)) {
    release(kept);
    return kNoMemory;
  }
  kept.count = 1;
  uint64_t empty[kLongest + 1];
  context_keys(m, Context{}, empty);
  for (int64_t i = 0; i < m.slots; ++i) {
    if (m.keys[i] == 0) continue;
    uint64_t total = 0;
    int64_t length = 0;
    for (uint32_t e = m.heads[i]; e != kNone; e = m.entries[e].next, ++length) total += m.entries[e].count;
    if (total < least && m.keys[i] != empty[0]) continue;
    int64_t to = kept.count += length;      // lists are written from their end, where the smallest index is
    for (uint32_t e = m.heads[i]; e != kNone; e = m.entries[e].next) {
      --to;
      kept.entries[to] = m.entries[e];
      kept.entries[to].next = to > kept.count - length ? static_cast<uint32_t>(to - 1) : kNone;
    }
    const int64_t at = slot_of(kept.keys, kept.slots, m.keys[i]);
    kept.keys[at] = m.keys[i];
    kept.heads[at] = static_cast<uint32_t>(kept.count - 1);
    ++kept.contexts;
  }
  release(m);
  m.keys = kept.keys;
  m.heads = kept.heads;
  m.entries = kept.entries;
  m.contexts = kept.contexts;
  m.count = kept.count;
  return kOk;
}

Status prune_to(Memory& m, int64_t most) {
  Status status = kOk;
  for (uint64_t least = 2; m.count - 1 > most && least < kForever && status == kOk; least *= 2)
    status = prune(m, least);
  return status;
}

double between(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

// Discounts d[1..3] of counts of 1, 2, and 3 or more in contexts of one order, from the counts of counts.
void discounts(const int64_t* tallies, double* d) {
  const double n1 = tallies[1], n2 = tallies[2], n3 = tallies[3], n4 = tallies[4];
  const double y = n1 + n2 > 0 ? n1 / (n1 + 2 * n2) : 0.5;
  d[0] = 0;
  d[1] = between(n1 > 0 ? 1 - 2 * y * n2 / n1 : 0.5, 0.05, 0.98);
  d[2] = between(n2 > 0 ? 2 - 3 * y * n3 / n2 : 1.0, 0.05, 1.95);
  d[3] = between(n3 > 0 ? 3 - 4 * y * n4 / n3 : 1.5, 0.05, 2.9);
}

// Whether entries read from a file are valid: tokens in range, counts positive, lists without cycles.
bool consistent(const Memory& m) {
  for (int64_t i = 1; i < m.count; ++i) {
    const Entry& e = m.entries[i];
    if (e.token >= m.vocab || e.count == 0 || e.next >= i) return false;
  }
  return true;
}

}  // namespace

Status count_token(Memory& m, const Context& context, uint32_t token) {
  uint64_t keys[kLongest + 1];
  // Lossy counting: rare contexts are removed when the table is full, so its size is bounded and the whole text is counted.
  if (m.count > m.limit) {
    if (prune_to(m, m.max_entries - m.max_entries / 4) != kOk) return kNoMemory;
    m.limit = m.count * 2 > m.max_entries ? m.count * 2 : m.max_entries;  // unigrams alone may need more
  }
  for (int j = context_keys(m, context, keys); j >= 0; --j) {
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

Match predict(const Memory& m, const Context& context, double* p) {
  uint64_t keys[kLongest + 1];
  Match match = {0, 0, 0, 0};
  double left = 1;
  std::memset(p, 0, m.vocab * sizeof(double));
  for (int j = context_keys(m, context, keys); j >= 0; --j) {
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

}  // namespace ltc

using namespace ltc;

LTC_EXPORT void ltc_memory_free(Memory* m) {
  if (m == nullptr) return;
  release(*m);
  std::free(m);
}

// An empty memory; null if it cannot be allocated.
LTC_EXPORT Memory* ltc_memory_new(int order, int64_t vocab, int64_t eos, int64_t max_entries) {
  Memory* m = static_cast<Memory*>(std::calloc(1, sizeof(Memory)));
  if (m == nullptr) return nullptr;
  m->order = order;
  m->vocab = vocab;
  m->eos = eos;
  m->max_entries = m->limit = max_entries;
  m->count = 1;
  if (set_slots(*m, kFirstSlots) && set_room(*m, kFirstSlots)) return m;
  ltc_memory_free(m);
  return nullptr;
}

// Read tokens: advance the context and, with `learn`, count them.
LTC_EXPORT int ltc_memory_read(Memory* m, const uint32_t* tokens, int64_t count, int learn) {
  for (int64_t t = 0; t < count; ++t) {
    if (learn != 0 && count_token(*m, m->here, tokens[t]) != kOk) return kNoMemory;
    m->here.advance(tokens[t], m->eos);
  }
  return kOk;
}

// Reset the context, for a new text.
LTC_EXPORT void ltc_memory_reset(Memory* m) { m->here.length = 0; }

LTC_EXPORT void ltc_memory_predict(const Memory* m, double* p) { predict(*m, m->here, p); }

// Remove rare contexts until there are at most `most` entries, or only unigrams are left.
LTC_EXPORT int ltc_memory_prune(Memory* m, int64_t most) { return prune_to(*m, most); }

// Numbers of entries and contexts, into `sizes` (2).
LTC_EXPORT void ltc_memory_sizes(const Memory* m, int64_t* sizes) {
  sizes[0] = m->count - 1;
  sizes[1] = m->contexts;
}

// The tables in the format of the file: (contexts) keys and heads, (entries, 3) token, count and next, (16, 5) tallies.
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

// Fill an empty memory from such tables; kInvalid if they are inconsistent.
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
      if (++listed > entries) return kInvalid;  // an entry in two lists
    const int64_t at = slot_of(m->keys, m->slots, keys[i]);
    if (m->keys[at] != 0) return kInvalid;  // one context twice
    m->keys[at] = keys[i];
    m->heads[at] = heads[i];
  }
  m->contexts = contexts;
  return kOk;
}
