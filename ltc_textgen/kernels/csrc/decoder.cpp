// A whole network of liquid blocks, token after token, in one call. The mathematics is that of blocks.py.
//
// A thread owns some neurons of every block: it reads the weights that make their drives and gates, moves their state, and
// multiplies what leaves them by their columns of the block's last matrix. So threads meet once in a block, to add up
// these partial results. There are as many of them whatever the number of threads, added in one order: a row has the
// same bits on any team. For one or two rows each thread computes norms and convolutions for itself; for more they share
// the rows, and meet twice.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "tables.h"
#include "worker.h"

namespace LTC_NAMESPACE {
namespace {

constexpr int64_t kFewRows = 2;
constexpr int64_t kApart = 16;  // floats between rows, so that they do not fall into the same cache sets
constexpr int64_t kLeastCaution = 128, kMostCaution = 8192;  // tokens

template <class Kind>
int run(ltc::Decoder* base, DecoderCall& c) {
  const auto& n = *reinterpret_cast<const Network<Kind>*>(base);
  c.threads = static_cast<int>(smaller<int64_t>(c.threads, smaller<int64_t>(kShares, n.tiles)));  // nobody without neurons
  const bool alone = c.B <= kFewRows;
  const int64_t B = c.B, sets = alone ? c.threads : 1;
  Shared<Kind> shared;
  const auto lay_out = [&](Arena& arena, Rows<Kind>* rows, float** chances, int32_t** ids) {
    shared.states = arena.take<float>(n.m.L * B * n.Np);
    shared.gated = arena.take<float>(B * n.Ns);
    shared.partial = arena.take<float>(2 * kShares * B * n.Dp);
    shared.logits = arena.take<float>(B * n.Vp);
    shared.leaving = Kind::kDepth == 1 ? reinterpret_cast<typename Kind::Value*>(shared.gated)
                                       : arena.take<typename Kind::Value>(B * n.Ns);
    shared.leaving_scale = arena.take<float>(kShares * B);
    shared.next = arena.take<int64_t>(B);
    for (int64_t i = 0; i < sets; ++i) rows[i] = take_rows(n, B, arena);
    for (int i = 0; i < c.threads; ++i) {
      chances[i] = arena.take<float>(n.Vp);
      ids[i] = arena.take<int32_t>(n.Vp);
    }
  };
  Array<Rows<Kind>> rows(c.threads);
  Array<float*> chances(c.threads);
  Array<int32_t*> ids(c.threads);
  if (rows.data == nullptr || chances.data == nullptr || ids.data == nullptr) return ltc::kNoMemory;
  Arena measure{nullptr};
  lay_out(measure, rows.data, chances.data, ids.data);
  Array<char> memory(measure.used);
  if (memory.data == nullptr) return ltc::kNoMemory;
  Arena arena{memory.data};
  lay_out(arena, rows.data, chances.data, ids.data);
  const int64_t steps = c.given + (c.count > 0 ? c.count - 1 : 0);
  int64_t fed = 0;
  while (fed < steps && !shared.halt) {
    const bool lonely = c.threads == 1 || c.alone > 0;
    const int64_t begin = fed, end = c.threads > 1 && lonely ? smaller(steps, fed + c.alone) : steps;
    shared.barrier = Barrier();
#pragma omp parallel num_threads(lonely ? 1 : c.threads) if (!lonely)
    {
#if defined(_OPENMP)
      const int me = omp_get_thread_num(), team = omp_get_num_threads();
#else
      const int me = 0, team = 1;
#endif
      Worker<Kind> worker{n, c, shared, rows.data[alone ? me : 0], {c, n.m.V, n.Vp, chances.data[me], ids.data[me]}, me, team, alone};
      const int64_t last = with_solver(n.m.solver, [&](auto solver) { return worker.template work<solver()>(begin, end); });
      if (me == 0) fed = last;
    }
    if (lonely) {
      c.alone = c.threads == 1 ? 0 : c.alone - (fed - begin);
    } else if (fed < steps && !shared.halt) {
      c.caution = c.caution == 0 ? kLeastCaution : smaller(2 * c.caution, kMostCaution);
      c.alone = c.caution;
    } else {
      c.caution /= 2;
    }
  }
  c.done = c.count > 0 ? fed - c.given + 1 : 0;
  c.broken = -1;
  for (int64_t r = 0; r < B && c.count > 0 && c.broken < 0; ++r)
    if (shared.next[r] < 0) c.broken = r;
  if (c.broken >= 0) --c.done;
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
