// The synaptic coupling: G = leak + sensory G + sum_j w s_j(y_j), I = current + sensory I + sum_j w s_j(y_j) E. Sequences
// are divided among threads. Sigmoids are computed where they are needed, in the backward pass once more: nothing of the
// size of the synapses is kept per token.
#include "synapses.h"
#include "tables.h"

namespace LTC_NAMESPACE {
namespace {

using ltc::SumsBackward;
using ltc::SumsForward;
using ltc::SynapticBackward;
using ltc::SynapticForward;

struct SynapticMembrane {
  static constexpr int kTape = 2;  // G and I

  const Shape& s;
  const SynapticForward& a;
  const SynapticBackward* back;
  const Synapses& synapses;
  Rows block;
  int64_t P, stride;
  float *G, *I;                      // (rows, stride): sums, or their gradients
  float *conductance_sum, *current_drive_sum;  // gradient of the token's drive
  float *partial, *entry_sum, *leak_sum, *current_sum;
  vfloat open;

  LTC_INLINE void prepare(const float* y) const { synapses.sum(y, stride, block.rows, G, I, stride); }
  LTC_INLINE Pair at(int r, int64_t token, int64_t v, float* saved) const {
    const Row row{s.N};
    const float* drive = a.drive + token * 2 * s.N;
    const int64_t i = r * stride + v;
    const Pair m = {row.read(a.leak, v, 1.0f) + open * (row.read(drive, v) + load(G + i)),
                    row.read(a.current, v) + row.read(drive + s.N, v) + load(I + i)};
    if (saved != nullptr) {
      store(saved + v, m.G);
      store(saved + P + v, m.I);
    }
    return m;
  }
  LTC_INLINE Pair recall(int64_t, int64_t v, const float* saved) const { return {load(saved + v), load(saved + P + v)}; }
  LTC_INLINE void push(int r, int64_t, int64_t v, const float*, vfloat gG, vfloat gI) const {
    const int64_t i = r * stride + v;
    store(G + i, open * gG);
    store(I + i, gI);
    store(conductance_sum + i, load(conductance_sum + i) + open * gG);
    store(current_drive_sum + i, load(current_drive_sum + i) + gI);
    store(leak_sum + v, load(leak_sum + v) + gG);
    store(current_sum + v, load(current_sum + v) + gI);
  }
  LTC_INLINE void states_backward(int64_t, const float* y, float* gy) const {
    synapses.sum_backward(y, stride, block.rows, G, I, stride, gy, stride, entry_sum, partial);
  }
  void begin_token(int64_t) const {
    std::memset(conductance_sum, 0, sizeof(float) * block.rows * stride);
    std::memset(current_drive_sum, 0, sizeof(float) * block.rows * stride);
  }
  void end_token(int64_t t, const float*) const {
    for (int r = 0; r < block.rows; ++r) {
      float* drive = back->drive_grad + ((block.first + r) * s.T + t) * 2 * s.N;
      std::memcpy(drive, conductance_sum + r * stride, sizeof(float) * s.N);
      std::memcpy(drive + s.N, current_drive_sum + r * stride, sizeof(float) * s.N);
    }
  }
};

template <int solver>
Status forward(const Shape& s, const SynapticForward& a) {
  using Loop = Scan<solver, SynapticMembrane>;
  const Plan plan(s.B, s.N, s.threads);
  const Synapses synapses(a.synapses, s.N, s.N);
  const int64_t scan = Loop::forward_workspace(s, plan.rows), each = scan + 2 * plan.area;
  Buffer space(plan.parts * each, true);
  if (!synapses.ok() || space.data == nullptr) return ltc::kNoMemory;
  const Common common = {a.x0, a.dt, a.capacitance, a.states, a.tape, nullptr, nullptr, nullptr, nullptr};
#pragma omp parallel for schedule(static, 1) num_threads(plan.parts) if (plan.parts > 1)
  for (int part = 0; part < plan.parts; ++part) {
    const int64_t end = share(s.B, part + 1, plan.parts);
    for (int64_t b = share(s.B, part, plan.parts); b < end; b += plan.rows) {
      const Rows block = {b, static_cast<int>(smaller<int64_t>(plan.rows, end - b))};
      float *mine = space.data + part * each, *own = mine + scan;
      SynapticMembrane membrane = {s, a, nullptr, synapses, block, plan.P, plan.stride, own, own + plan.area, nullptr,
                                   nullptr, nullptr, nullptr, nullptr, nullptr, splat(s.adaptive ? 1.0f : 0.0f)};
      Loop{s, common, membrane, block, plan.P, plan.stride, nullptr, mine}.forward();
    }
  }
  return ltc::kOk;
}

template <int solver>
Status backward(const Shape& s, const SynapticBackward& a) {
  using Loop = Scan<solver, SynapticMembrane>;
  const SynapticForward& f = a.forward;
  const Plan plan(s.B, s.N, s.threads);
  const Synapses synapses(f.synapses, s.N, s.N);
  const int64_t scan = Loop::backward_workspace(s, plan.rows), entries = synapses.entries() * kEntry;
  const int64_t each = scan + 4 * plan.area + plan.rows * kWidth + 3 * plan.P + (entries + 15) / 16 * 16;
  Buffer space(plan.parts * each, true);
  if (!synapses.ok() || space.data == nullptr) return ltc::kNoMemory;
  const Common common = {f.x0, f.dt, f.capacitance, f.states, f.tape, a.states_grad, a.last_grad, a.x0_grad, a.dt_grad};
  const int64_t sums_at = scan + 4 * plan.area + plan.rows * kWidth;
#pragma omp parallel for schedule(static, 1) num_threads(plan.parts) if (plan.parts > 1)
  for (int part = 0; part < plan.parts; ++part) {
    const int64_t end = share(s.B, part + 1, plan.parts);
    for (int64_t b = share(s.B, part, plan.parts); b < end; b += plan.rows) {
      const Rows block = {b, static_cast<int>(smaller<int64_t>(plan.rows, end - b))};
      float *mine = space.data + part * each, *own = mine + scan, *sums = mine + sums_at;
      SynapticMembrane membrane = {s, f, &a, synapses, block, plan.P, plan.stride, own, own + plan.area,
                                   own + 2 * plan.area, own + 3 * plan.area, own + 4 * plan.area, sums + 3 * plan.P,
                                   sums, sums + plan.P, splat(s.adaptive ? 1.0f : 0.0f)};
      Loop{s, common, membrane, block, plan.P, plan.stride, sums + 2 * plan.P, mine}.backward();
    }
  }
  const float* sums = space.data + sums_at;
  add_parts(sums, plan.parts, each, s.N, a.leak_grad);
  add_parts(sums + plan.P, plan.parts, each, s.N, a.current_grad);
  add_parts(sums + 2 * plan.P, plan.parts, each, s.N, a.capacitance_grad);
  for (int64_t n = 0; n < s.N; ++n) a.capacitance_grad[n] /= -f.capacitance[n];
  synapses.unpack(f.synapses, sums + 3 * plan.P, plan.parts, each, a.synapses_grad);
  return ltc::kOk;
}

}  // namespace

Status synaptic_forward(const Shape& s, const SynapticForward& a) {
  return with_solver(s.solver, [&](auto solver) { return forward<solver()>(s, a); });
}

Status synaptic_backward(const Shape& s, const SynapticBackward& a) {
  return with_solver(s.solver, [&](auto solver) { return backward<solver()>(s, a); });
}

Status sums_forward(int64_t rows, int64_t sources, int64_t targets, int threads, const SumsForward& a) {
  const Plan plan(rows, targets, threads);
  const Synapses synapses(a.synapses, sources, targets);
  Buffer space(plan.parts * 2 * plan.area);
  if (!synapses.ok() || space.data == nullptr) return ltc::kNoMemory;
#pragma omp parallel for schedule(static, 1) num_threads(plan.parts) if (plan.parts > 1)
  for (int part = 0; part < plan.parts; ++part) {
    float *G = space.data + part * 2 * plan.area, *I = G + plan.area;
    const int64_t end = share(rows, part + 1, plan.parts);
    for (int64_t m = share(rows, part, plan.parts); m < end; m += plan.rows) {
      const int count = static_cast<int>(smaller<int64_t>(plan.rows, end - m));
      synapses.sum(a.values + m * sources, sources, count, G, I, plan.stride);
      for (int r = 0; r < count; ++r) {
        std::memcpy(a.sums + (m + r) * 2 * targets, G + r * plan.stride, sizeof(float) * targets);
        std::memcpy(a.sums + (m + r) * 2 * targets + targets, I + r * plan.stride, sizeof(float) * targets);
      }
    }
  }
  return ltc::kOk;
}

Status sums_backward(int64_t rows, int64_t sources, int64_t targets, int threads, const SumsBackward& a) {
  const Plan plan(rows, targets, threads);
  const Matrices& m = a.forward.synapses;
  const Synapses synapses(m, sources, targets);
  const int64_t each = 2 * plan.area + plan.rows * kWidth + (synapses.entries() * kEntry + 15) / 16 * 16;
  Buffer space(plan.parts * each, true);
  if (!synapses.ok() || space.data == nullptr) return ltc::kNoMemory;
  std::memset(a.values_grad, 0, sizeof(float) * rows * sources);
#pragma omp parallel for schedule(static, 1) num_threads(plan.parts) if (plan.parts > 1)
  for (int part = 0; part < plan.parts; ++part) {
    float *gG = space.data + part * each, *gI = gG + plan.area, *partial = gI + plan.area;
    const int64_t end = share(rows, part + 1, plan.parts);
    for (int64_t row = share(rows, part, plan.parts); row < end; row += plan.rows) {
      const int count = static_cast<int>(smaller<int64_t>(plan.rows, end - row));
      for (int r = 0; r < count; ++r) {
        std::memcpy(gG + r * plan.stride, a.sums_grad + (row + r) * 2 * targets, sizeof(float) * targets);
        std::memcpy(gI + r * plan.stride, a.sums_grad + (row + r) * 2 * targets + targets, sizeof(float) * targets);
      }
      synapses.sum_backward(a.forward.values + row * sources, sources, count, gG, gI, plan.stride,
                            a.values_grad + row * sources, sources, partial + plan.rows * kWidth, partial);
    }
  }
  synapses.unpack(m, space.data + 2 * plan.area + plan.rows * kWidth, plan.parts, each, a.synapses_grad);
  return ltc::kOk;
}

}  // namespace LTC_NAMESPACE
