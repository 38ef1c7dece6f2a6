// A whole network of liquid blocks, token after token, in one call. The mathematics is that of model/blocks.py.
//
// A thread owns some neurons of every block: it computes their drives and gates, integrates their states, and multiplies
// their outputs by their columns of the block's output projection. So there is one barrier per block, after which these
// partial sums are added. Their number does not depend on the number of threads, and they are added in a fixed order: a
// row has the same bits with any team. For one or two rows every thread computes all norms and convolutions; for more
// rows the threads divide them, which takes a second barrier.
//
// A step processes one token of every row, and several of a row that reads a prompt: the matrix products of a block do
// not depend on the states of its neurons, so several tokens of one row use the weights at once, as several rows do. More
// rows than kMostRows run in groups, each from its first token to its last, so that the buffers of a step stay in cache.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "tables.h"
#include "worker.h"

namespace LTC_NAMESPACE {
namespace {

constexpr int64_t kFewRows = 2;
constexpr int64_t kApart = 16;  // floats of padding between rows, so that they do not map to the same cache sets
constexpr int64_t kLeastCaution = 128, kMostCaution = 8192;  // steps

// The buffers of a group of rows, in one allocation.
template <class Kind>
struct Workspace {
  Shared<Kind> shared;
  Array<Stream<Kind>> streams;
  Array<Own> owns;

  explicit Workspace(int64_t threads) : streams(threads), owns(threads) {}
  bool there() const { return streams.data != nullptr && owns.data != nullptr; }
  void lay_out(const Network<Kind>& n, int64_t rows, int64_t threads, Arena& arena) {
    const int64_t items = kMostRows;
    shared.rows = rows;
    shared.items = items;
    shared.progress = arena.take<Progress>(rows);
    shared.states = arena.take<float>(n.m.L * rows * n.Np);
    shared.gated = arena.take<float>(items * n.Ns);
    shared.partial = arena.take<float>(2 * kShares * items * n.Dp);
    shared.logits = arena.take<float>(items * n.Vp);
    shared.leaving = Kind::kDepth == 1 ? reinterpret_cast<typename Kind::Value*>(shared.gated)
                                       : arena.take<typename Kind::Value>(items * n.Ns);
    shared.leaving_scale = arena.take<float>(kShares * items);
    for (int64_t i = 0; i < threads; ++i) {
      if (i == 0 || rows <= kFewRows) streams.data[i] = take_stream(n, rows, items, arena);
      owns.data[i] = take_own(n, rows, items, arena);
    }
  }
};

// Runs the rows of a group until all have ended: with the team or, while other programs occupy the cores, one thread.
template <class Kind>
void run_group(const Network<Kind>& n, DecoderCall& c, Workspace<Kind>& space) {
  Shared<Kind>& shared = space.shared;
  const bool alone = shared.rows <= kFewRows;
  for (int64_t row = 0; row < shared.rows; ++row) {
    shared.progress[row] = {0, 0, -1, false};
    shared.work[row].end = ltc::kCountReached;
  }
  for (bool going = true; going;) {
    const bool lonely = c.threads == 1 || c.alone > 0;
    const int64_t most = c.threads > 1 && lonely ? c.alone : INT64_MAX;
    int64_t steps = 0;
    shared.barrier = Barrier();
#pragma omp parallel num_threads(lonely ? 1 : static_cast<int>(c.threads)) if (!lonely)
    {
#if defined(_OPENMP)
      const int me = omp_get_thread_num(), team = omp_get_num_threads();
#else
      const int me = 0, team = 1;
#endif
      Worker<Kind> worker{n, shared, space.streams.data[alone ? me : 0], space.owns.data[me], me, team, alone};
      const int64_t done = with_solver(n.m.solver, [&](auto solver) { return worker.template work<solver()>(most); });
      if (me == 0) steps = done;
    }
    going = false;
    for (int64_t row = 0; row < shared.rows; ++row) going |= !shared.ended(row, shared.progress[row].fed);
    if (lonely) {
      c.alone = c.threads == 1 ? 0 : c.alone - steps;
    } else if (going) {
      c.caution = c.caution == 0 ? kLeastCaution : smaller(2 * c.caution, kMostCaution);
      c.alone = c.caution;
    } else {
      c.caution /= 2;
    }
  }
  for (int64_t row = 0; row < shared.rows; ++row) {
    DecoderWork& w = shared.work[row];
    const ltc::DecoderOptions& o = shared.options(row);
    w.done = shared.progress[row].drawn;
    if (o.mixture != nullptr && shared.progress[row].fed > 0)
      *o.context = Worker<Kind>::text_until(o, w, shared.progress[row].fed - 1);
  }
}

template <class Kind>
int run(ltc::Decoder* base, DecoderCall& c) {
  const auto& n = *reinterpret_cast<const Network<Kind>*>(base);
  c.threads = smaller<int64_t>(c.threads, smaller<int64_t>(kShares, n.tiles));  // every thread owns neurons
  const int64_t groups = (c.rows + kMostRows - 1) / kMostRows, most = (c.rows + groups - 1) / groups;
  Workspace<Kind> space(c.threads);
  if (!space.there()) return ltc::kNoMemory;
  Arena measure{nullptr};
  space.lay_out(n, most, c.threads, measure);
  Array<char> memory(measure.used);
  if (memory.data == nullptr) return ltc::kNoMemory;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t begin = share(c.rows, group, groups);
    Arena arena{memory.data};
    space.lay_out(n, share(c.rows, group + 1, groups) - begin, c.threads, arena);
    space.shared.call = &c;
    space.shared.work = c.work + begin;
    run_group(n, c, space);
  }
  return ltc::kOk;
}

template <class Kind>
void release(ltc::Decoder* base) {
  std::free(reinterpret_cast<Network<Kind>*>(base)->memory);
  std::free(base);
}

template <class Kind>
ltc::Decoder* make(const DecoderModel& m) {
  auto* n = static_cast<Network<Kind>*>(std::malloc(sizeof(Network<Kind>)));
  if (n == nullptr) return nullptr;
  const int64_t plain = kPlain * kWidth;
  n->base = {run<Kind>, release<Kind>};
  n->m = m;
  n->Dp = rounded_up(m.D, plain);
  n->Np = rounded_up(m.N, kWidth);
  n->Vp = rounded_up(m.V, plain);
  n->Ds = n->Dp + kApart;
  n->Ns = n->Np + kApart;
  n->tiles = n->Np / kWidth;
  Arena measure{nullptr};
  pack(*n, m, measure);
  n->memory = static_cast<char*>(std::aligned_alloc(64, measure.used + 64));
  if (n->memory == nullptr) {
    std::free(n);
    return nullptr;
  }
  Arena arena{n->memory};
  pack(*n, m, arena);
  return &n->base;
}

}  // namespace

ltc::Decoder* decoder_new(const DecoderModel& m) { return m.bytes ? make<Bytes>(m) : make<Floats>(m); }

}  // namespace LTC_NAMESPACE
