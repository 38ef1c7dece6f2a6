// The work of one thread for the rows of a call: its neurons of every block, its rows, its part of the output layer.
#pragma once

#include "choose.h"
#include "neuron.h"
#include "team.h"

namespace LTC_NAMESPACE {

using ltc::DecoderCall;
using ltc::DecoderWork;

constexpr int kShares = 4;  // parts of a block's neurons; each part's sum for the residual stream is rounded by itself
constexpr int64_t kMostRows = 64;           // rows of a group, and items of a step
constexpr int64_t kLate = 8, kRarely = 64;  // long waits that are tolerated: eight, and one for each 64 blocks

// One token in a step: the row of the group and the position in that row.
struct Item {
  int64_t row, time;
};

// Progress of a row: tokens read and drawn. `next`: the token drawn last; `ended`: no more are drawn.
struct Progress {
  int64_t fed, drawn, next;
  bool ended;
};

// Data of a group of rows that all threads access. `items`: the largest number in a step.
template <class Kind>
struct Shared {
  Barrier barrier;
  const DecoderCall* call;
  DecoderWork* work;                         // (rows)
  int64_t rows, items;
  Progress* progress;                        // (rows)
  float *states, *gated, *partial, *logits;  // (L, tiles, rows, kWidth), (items, Ns), (2, kShares, items, Dp), (items, Vp)
  typename Kind::Value* leaving;             // (items, Ns): `gated` as the output projection multiplies it
  float* leaving_scale;                      // (kShares, items)
  bool crowded[2] = {false, false};  // for even and odd steps, so that all threads read the same value

  bool ended(int64_t row, int64_t fed) const {
    return progress[row].ended || (work[row].count == 0 && fed == work[row].given);
  }
  const DecoderOptions& options(int64_t row) const { return call->options[work[row].slot]; }
};

// The residual stream of a step's items and what is computed from it. With few rows every thread has one of its own.
template <class Kind>
struct Stream {
  float *u, *mixed, *columns;    // (items, Dp), (items, Ds), (L, rows, K, Dp): a ring buffer, time t at t mod K
  typename Kind::Value* values;  // (items, Ds): `mixed` as the products multiply it
  float* scale;                  // (items)
};

template <class Kind>
Stream<Kind> take_stream(const Network<Kind>& n, int64_t rows, int64_t items, Arena& arena) {
  Stream<Kind> s = {arena.take<float>(items * n.Dp), arena.take<float>(items * n.Ds),
                    arena.take<float>(n.m.L * n.m.K * rows * n.Dp), nullptr, arena.take<float>(items)};
  s.values = Kind::kDepth == 1 ? reinterpret_cast<typename Kind::Value*>(s.mixed)
                               : arena.take<typename Kind::Value>(items * n.Ds);
  return s;
}

// Buffers of one thread.
struct Own {
  Item* items;         // (items): of this step; those of a row are adjacent and in order of position
  int64_t* predicted;  // (items): indices of the items that need logits
  int64_t* fed;        // (rows)
  float *drives, *raw;  // (items, 2 * kDrives * kWidth), (Vp): logits before penalties and temperature
  Chooser chooser;
};

template <class Kind>
Own take_own(const Network<Kind>& n, int64_t rows, int64_t items, Arena& arena) {
  Own own = {arena.take<Item>(items), arena.take<int64_t>(items), arena.take<int64_t>(rows),
             arena.take<float>(items * 2 * kDrives * kWidth), arena.take<float>(n.Vp), {n.m.V, n.Vp, nullptr, nullptr}};
  own.chooser.chances = arena.take<float>(n.Vp);
  own.chooser.ids = arena.take<int32_t>(n.Vp);
  return own;
}

LTC_INLINE void as_values(const float*, int64_t, int64_t, float*, float*) {}  // floats are their own values
LTC_INLINE void as_values(const float* a, int64_t count, int64_t depth, int16_t* values, float* scale) {
  quantise(a, count, depth, values, scale);
}

template <class Kind>
struct Worker {
  const Network<Kind>& n;
  Shared<Kind>& shared;
  Stream<Kind> stream;
  Own own;
  int me, team;
  bool alone;  // few rows: this thread has a stream of its own, with all rows
  int64_t first_share = share(kShares, me, team), end_share = share(kShares, me + 1, team);
  int64_t first_tile = share(n.tiles, first_share, kShares), end_tile = share(n.tiles, end_share, kShares);
  int64_t items = 0, predicted = 0, first_item = 0, end_item = 0;  // of this step; this thread's range of items
  int64_t sums = 0;  // blocks computed so far: partial sums alternate between two buffers

  LTC_INLINE float* ring(int64_t l, int64_t row, int64_t time) const {
    const int64_t K = n.m.K;
    return stream.columns + ((l * shared.rows + row) * K + (time + K) % K) * n.Dp;
  }
  LTC_INLINE float* state(int64_t l, int64_t row, int64_t tile) const {
    return shared.states + ((l * n.tiles + tile) * shared.rows + row) * kWidth;
  }
  float* partial(int64_t part) const { return shared.partial + ((sums % 2) * kShares + part) * shared.items * n.Dp; }

  // A row's state in the arrays of the call.
  float* neurons_of(int64_t l, int64_t row) const {
    return shared.call->neurons + (l * shared.call->slots + shared.work[row].slot) * n.m.N;
  }
  float* column_of(int64_t l, int64_t row, int64_t k) const {
    return shared.call->columns + ((l * shared.call->slots + shared.work[row].slot) * (n.m.K - 1) + k) * n.m.D;
  }
  bool keeps_columns(int64_t row) const {
    return alone || (row >= share(shared.rows, me, team) && row < share(shared.rows, me + 1, team));
  }

  void load_state() {
    const int64_t from = first_tile * kWidth, to = end_tile * kWidth;
    for (int64_t row = 0; row < shared.rows; ++row) {
      own.fed[row] = shared.progress[row].fed;
      for (int64_t l = 0; l < n.m.L; ++l) {
        const float* neurons = neurons_of(l, row);
        for (int64_t i = from; i < to; ++i) state(l, row, i / kWidth)[i % kWidth] = i < n.m.N ? neurons[i] : 0.0f;
        for (int64_t k = 0; k + 1 < n.m.K && keeps_columns(row); ++k) {
          float* column = ring(l, row, (own.fed[row] - (n.m.K - 1) + k) % n.m.K);
          std::memcpy(column, column_of(l, row, k), sizeof(float) * n.m.D);
          for (int64_t d = n.m.D; d < n.Dp; ++d) column[d] = 0.0f;
        }
      }
    }
  }

  void store_state() const {
    const int64_t from = first_tile * kWidth, to = smaller(n.m.N, end_tile * kWidth);
    for (int64_t row = 0; row < shared.rows; ++row) {
      if (me == 0) shared.progress[row].fed = own.fed[row];
      for (int64_t l = 0; l < n.m.L; ++l) {
        float* neurons = neurons_of(l, row);
        for (int64_t i = from; i < to; ++i) neurons[i] = state(l, row, i / kWidth)[i % kWidth];
        if (!keeps_columns(row) || (alone && me > 0)) continue;
        for (int64_t k = 0; k + 1 < n.m.K; ++k)
          std::memcpy(column_of(l, row, k), ring(l, row, (own.fed[row] - (n.m.K - 1) + k) % n.m.K), sizeof(float) * n.m.D);
      }
    }
  }

  bool draws(const Item& item) const {
    const DecoderWork& w = shared.work[item.row];
    return w.count > 0 && item.time >= w.given - 1;
  }
  bool has_target(const Item& item) const {
    const DecoderWork& w = shared.work[item.row];
    return w.targets != nullptr && item.time < w.given && w.targets[item.time] >= 0;
  }

  // Chooses the items of the next step: one of every row that has not ended, and more of rows that read. All threads
  // compute the same plan. False if there are none.
  bool plan() {
    int64_t more = shared.items;
    for (int64_t row = 0; row < shared.rows; ++row) more -= !shared.ended(row, own.fed[row]);
    items = predicted = 0;
    for (int64_t row = 0; row < shared.rows; ++row) {
      if (shared.ended(row, own.fed[row])) continue;
      const DecoderWork& w = shared.work[row];
      const int64_t left = w.given - own.fed[row], extra = left > 1 ? smaller(left - 1, more) : 0;
      more -= extra;
      for (int64_t i = 0; i <= extra; ++i) {
        const Item item = {row, own.fed[row]++};
        const bool wanted = draws(item) || has_target(item) || (w.logits != nullptr && item.time < w.given);
        if (wanted) own.predicted[predicted++] = items;
        own.items[items++] = item;
      }
    }
    first_item = alone ? 0 : begin_of(share(items, me, team));
    end_item = alone ? items : begin_of(share(items, me + 1, team));
    return items > 0;
  }
  // The first item from i on that begins a row: a row's items are mixed in their order, by one thread.
  int64_t begin_of(int64_t i) const {
    while (i > 0 && i < items && own.items[i].row == own.items[i - 1].row) ++i;
    return i;
  }

  // RMS norm of u of an item into `to`. With `add`, the partial sums of the block before are first added to u.
  void normalise(int64_t i, bool add, float epsilon, const float* weight, float* to) const {
    float* u = stream.u + i * n.Dp;
    vfloat squares = {};
    for (int64_t d = 0; d < n.Dp; d += kWidth) {
      vfloat v = load(u + d);
      for (int part = 0; add && part < kShares; ++part) v += load(partial(part) + i * n.Dp + d);
      store(u + d, v);
      squares += v * v;
    }
    const float scale = 1.0f / __builtin_sqrtf(lane_sum(squares) / static_cast<float>(n.m.D) + epsilon);
    for (int64_t d = 0; d < n.Dp; d += kWidth) store(to + d, load(u + d) * scale * load(weight + d));
  }

  void embed() const {
    for (int64_t i = first_item; i < end_item; ++i) {
      const Item& item = own.items[i];
      const DecoderWork& w = shared.work[item.row];
      const int64_t token = item.time < w.given ? w.ids[item.time] : shared.progress[item.row].next;
      std::memcpy(stream.u + i * n.Dp, n.embedding + token * n.Dp, sizeof(float) * n.Dp);
    }
  }

  // Norm and convolution of this thread's items, before block l.
  void mix(int64_t l) const {
    const Block<Kind>& b = n.blocks[l];
    const int64_t K = n.m.K;
    for (int64_t i = first_item; i < end_item; ++i) {
      const Item& item = own.items[i];
      normalise(i, l > 0, b.epsilon, b.norm, ring(l, item.row, item.time % K));
      float* mixed = stream.mixed + i * n.Ds;
      for (int64_t d = 0; d < n.Dp; d += kWidth) {
        vfloat sum = load(b.taps_bias + d);
        for (int64_t k = 0; k < K; ++k)
          sum += load(ring(l, item.row, (item.time + 1 + k) % K) + d) * load(b.taps + k * n.Dp + d);
        store(mixed + d, sum);
      }
      as_values(mixed, n.Dp, n.m.D, stream.values + i * n.Ds, stream.scale + i);
    }
    if (!alone) shared.barrier.wait(team);
  }

  // Integrates the neurons of a tile through each item; rows of z hold the items' drives and gates. Not inlined, so that
  // an item's arithmetic is the same machine code whatever the number of items.
  template <int solver>
  __attribute__((noinline)) void integrate(int64_t l, int64_t tile, const float* z) const {
    const Neurons neurons(n.blocks[l].neurons + tile * kNeuron * kWidth, n.m.adaptive);
    for (int64_t i = 0; i < items; ++i, z += 2 * kDrives * kWidth) {
      const Item& item = own.items[i];
      const DecoderOptions& o = shared.options(item.row);
      const vfloat drives[2] = {load(z), load(z + kWidth)}, gate = load(z + 2 * kWidth);
      float* x = state(l, item.row, tile);
      const bool observed = o.hold_count > 0 || o.watch_count > 0;
      const vfloat after = observed ? through_observed<solver>(l, tile, item, drives, load(x))
                                    : through_token<solver>(neurons, drives, load(x), o.h, n.m.steps);
      store(x, after);
      store(shared.gated + i * n.Ns + tile * kWidth, after * gate * sigmoid(gate));
    }
  }
  template <int solver>
  __attribute__((noinline)) vfloat through_observed(int64_t l, int64_t tile, const Item& item, const vfloat* drives,
                                                    vfloat x) const {
    const DecoderOptions& o = shared.options(item.row);
    const DecoderWork& w = shared.work[item.row];
    Neurons neurons(n.blocks[l].neurons + tile * kNeuron * kWidth, n.m.adaptive);
    stretch(neurons, o, l, tile);
    x = held(through_token<solver>(neurons, drives, x, o.h, n.m.steps), o, l, tile);
    if (w.watched != nullptr) watch(neurons, o, l, tile, drives, x, w.watched + item.time * o.watch_count * 2);
    return x;
  }

  // Partial sum for the residual stream of one part of the neurons.
  void leave(const Block<Kind>& b, int64_t part) const {
    const int64_t begin = share(n.tiles, part, kShares) * kWidth, count = share(n.tiles, part + 1, kShares) * kWidth - begin;
    float* scale = shared.leaving_scale + part * shared.items;
    for (int64_t i = 0; i < items; ++i)
      as_values(shared.gated + i * n.Ns + begin, count, count, shared.leaving + i * n.Ns + begin, scale + i);
    project(b.out, 0, b.out.panels, {shared.leaving + begin, n.Ns, scale, items}, begin, count, {partial(part), n.Dp});
  }

  // Panels begin .. end - 1 of a product.
  static void project(const Panels<Kind>& m, int64_t begin, int64_t end, const Inputs<Kind>& a, int64_t from,
                      int64_t depth, Outputs to) {
    for (int64_t p = begin; p < end; p += 2)
      multiply<Kind, kPlain>(m, p, smaller<int64_t>(2, end - p), a, from, depth, {to.data + p * kPlain * kWidth, to.row});
  }

  template <int solver>
  void block(int64_t l) {
    mix(l);
    ++sums;
    const Block<Kind>& b = n.blocks[l];
    const Inputs<Kind> mixed = {stream.values, n.Ds, stream.scale, items};
    for (int64_t tile = first_tile; tile < end_tile; tile += 2) {
      const int64_t count = smaller<int64_t>(2, end_tile - tile);
      multiply<Kind, kDrives>(b.drives, tile, count, mixed, 0, b.drives.depth, {own.drives, 2 * kDrives * kWidth});
      for (int64_t i = 0; i < count; ++i) integrate<solver>(l, tile + i, own.drives + i * kDrives * kWidth);
    }
    for (int64_t part = first_share; part < end_share; ++part) leave(b, part);
    shared.barrier.wait(team);
  }

  // Logits of the items that need them, after the last block.
  void predict() const {
    for (int64_t j = alone ? 0 : share(predicted, me, team); j < (alone ? predicted : share(predicted, me + 1, team)); ++j) {
      normalise(own.predicted[j], true, n.m.epsilon, n.norm, stream.mixed + j * n.Ds);
      as_values(stream.mixed + j * n.Ds, n.Dp, n.m.D, stream.values + j * n.Ds, stream.scale + j);
    }
    if (!alone) shared.barrier.wait(team);
    project(n.head, share(n.head.panels, me, team), share(n.head.panels, me + 1, team),
            {stream.values, n.Ds, stream.scale, predicted}, 0, n.head.depth, {shared.logits, n.Vp});
    shared.barrier.wait(team);
  }

  // Draws the next token and writes logits and log-probabilities for this thread's range of the predicted items.
  void choose() const {
    for (int64_t j = share(predicted, me, team); j < share(predicted, me + 1, team); ++j) {
      const Item& item = own.items[own.predicted[j]];
      const DecoderWork& w = shared.work[item.row];
      float* logits = shared.logits + j * n.Vp;
      if (w.logits != nullptr && item.time < w.given)
        std::memcpy(w.logits + item.time * n.m.V, logits, sizeof(float) * n.m.V);
      const bool drawn = draws(item);
      if (!drawn && !has_target(item)) continue;
      const DecoderOptions& o = shared.options(item.row);
      if (o.mixture != nullptr) {
        const ltc::Context context = text_until(o, w, item.time);
        ltc_mixture_apply(o.mixture, 1, &context, logits);
      }
      const float top = largest(logits, n.Vp);
      const float norm = w.chances != nullptr || w.best != nullptr ? report(item, logits, top) : 0.0f;
      const int64_t token = drawn ? draw(item, logits, top) : w.targets[item.time];
      if (w.chances != nullptr) w.chances[item.time] = token < 0 ? __builtin_nanf("") : own.raw[token] - norm;
    }
    shared.barrier.wait(team);
  }

  // The n-gram context of a row after the token at position `time`: only its last kLongest tokens are read.
  static ltc::Context text_until(const DecoderOptions& o, const DecoderWork& w, int64_t time) {
    const int64_t begin = time + 1 > ltc::kLongest ? time + 1 - ltc::kLongest : 0;
    ltc::Context context = begin == 0 ? *o.context : ltc::Context{};
    for (int64_t t = begin; t <= time; ++t)
      ltc_mixture_advance(o.mixture, 1, &context, t < w.given ? w.ids + t : w.tokens + (t - w.given));
    return context;
  }

  // Copies the logits, which a draw changes, and writes the likeliest tokens. Returns the log normalizer of the logits.
  float report(const Item& item, const float* logits, float top) const {
    const DecoderWork& w = shared.work[item.row];
    const int64_t best = shared.call->best;
    const float norm = finite(top) ? log_sum(logits, n.Vp, top) : __builtin_nanf("");
    std::memcpy(own.raw, logits, sizeof(float) * n.Vp);
    if (w.best != nullptr) likeliest(logits, n.m.V, best, norm, w.best_ids + item.time * best, w.best + item.time * best);
    return norm;
  }

  // Draws a row's next token; -1 if the largest logit is NaN or infinite.
  int64_t draw(const Item& item, float* logits, float top) const {
    const DecoderOptions& o = shared.options(item.row);
    DecoderWork& w = shared.work[item.row];
    Progress& p = shared.progress[item.row];
    const int64_t token = own.chooser.choose(o, logits, top, w.uniform == nullptr ? nullptr : w.uniform + p.drawn);
    if (token < 0) {
      w.end = ltc::kBroken;
      p.ended = true;
      return token;
    }
    w.tokens[p.drawn++] = p.next = token;
    if (o.seen != nullptr) o.seen[token] = 1;
    if (o.counts != nullptr) ++o.counts[token];
    for (int64_t i = 0; i < o.stop_count; ++i)
      if (token == o.stops[i]) w.end = ltc::kStopped;
    p.ended = p.drawn == w.count || w.end == ltc::kStopped;
    return token;
  }

  // Takes at most `most` steps, until all rows have ended or threads wait too long for each other. Returns how many.
  template <int solver>
  int64_t work(int64_t most) {
    load_state();
    shared.barrier.wait(team);
    int64_t step = 0;
    for (; step < most && plan(); ++step) {
      if (me == 0)
        shared.crowded[step % 2] = __atomic_load_n(&shared.barrier.late, __ATOMIC_RELAXED) > kLate + step * n.m.L / kRarely;
      embed();
      for (int64_t l = 0; l < n.m.L; ++l) block<solver>(l);
      if (predicted > 0) {
        predict();
        choose();
      }
      if (shared.crowded[step % 2]) {
        ++step;
        break;
      }
    }
    store_state();
    return step;
  }
};

}  // namespace LTC_NAMESPACE
