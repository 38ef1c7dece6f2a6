// The full coupling: f = sigmoid(drive + W y), G = leak + f, I = f A. Sequences are shared out over threads; a thread
// takes all its sequences through a stage with one product by W, which stays packed in its cache. The gradient of W
// is one product per token, over all its stages and sequences.
#include "gemm.h"
#include "recurrence.h"
#include "tables.h"

namespace LTC_NAMESPACE {
namespace {

using ltc::FullBackward;
using ltc::FullForward;

struct FullMembrane {
  static constexpr int kTape = 1;  // f

  const Shape& s;
  const FullForward& a;
  const FullBackward* back;
  Rows block;
  int64_t P, stride, columns;  // columns: those of a row of the gradient of W, whole panels
  const float *by_source, *by_target;  // W packed for y W^T and for g W
  float* z;                            // (rows, stride)
  float *drive_sum, *pushed;           // gradient of the token's drive; of z, for every stage of the token
  float *weight_sum, *reversal_sum, *leak_sum;
  vfloat open;

  LTC_INLINE void prepare(const float* y) const {
    for (int64_t panel = 0; panel < panels_of(s.N); ++panel)
      tiles<false>(block.rows, y, stride, 1, by_source + panel * s.N * kPanel, kPanel, s.N, z + panel * kPanel, stride,
                   nullptr, 0);
  }
  LTC_INLINE Pair conductances(vfloat f, int64_t v) const {
    const Row row{s.N};
    return {row.read(a.leak, v, 1.0f) + open * f, f * row.read(a.reversal, v)};
  }
  LTC_INLINE Pair at(int r, int64_t token, int64_t v, float* saved) const {
    const vfloat f = sigmoid(load(z + r * stride + v) + Row{s.N}.read(a.drive + token * s.N, v));
    if (saved != nullptr) store(saved + v, f);
    return conductances(f, v);
  }
  LTC_INLINE Pair recall(int64_t, int64_t v, const float* saved) const { return conductances(load(saved + v), v); }
  LTC_INLINE void push(int r, int64_t stage, int64_t v, const float* saved, vfloat gG, vfloat gI) const {
    const vfloat f = load(saved + v);
    const vfloat gz = (open * gG + gI * Row{s.N}.read(a.reversal, v)) * (f - f * f);
    const int64_t i = r * stride + v;
    store(pushed + stage * block.rows * stride + i, gz);
    store(drive_sum + i, load(drive_sum + i) + gz);
    store(reversal_sum + v, load(reversal_sum + v) + gI * f);
    store(leak_sum + v, load(leak_sum + v) + gG);
  }
  LTC_INLINE void states_backward(int64_t stage, const float*, float* gy) const {
    const float* gz = pushed + stage * block.rows * stride;
    for (int64_t panel = 0; panel < panels_of(s.N); ++panel)
      tiles<false>(block.rows, gz, stride, 1, by_target + panel * s.N * kPanel, kPanel, s.N, gy + panel * kPanel, stride,
                   gy + panel * kPanel, stride);
  }
  void begin_token(int64_t) const { std::memset(drive_sum, 0, sizeof(float) * block.rows * stride); }
  void end_token(int64_t t, const float* starts) const {
    const int64_t depth = s.steps * stages_of(s.solver) * block.rows;
    for (int64_t panel = 0; panel < panels_of(s.N); ++panel)
      tiles<false>(s.N, pushed, 1, stride, starts + panel * kPanel, stride, depth, weight_sum + panel * kPanel, columns,
                   weight_sum + panel * kPanel, columns);
    for (int r = 0; r < block.rows; ++r)
      std::memcpy(back->drive_grad + ((block.first + r) * s.T + t) * s.N, drive_sum + r * stride, sizeof(float) * s.N);
  }
};

template <int solver>
Status forward(const Shape& s, const FullForward& a) {
  using Loop = Scan<solver, FullMembrane>;
  const Plan plan(s.B, s.N, s.threads);
  const int64_t scan = Loop::forward_workspace(s, plan.rows), each = scan + plan.area;
  Buffer packed(packed_size(s.N, s.N)), space(plan.parts * each, true);
  if (packed.data == nullptr || space.data == nullptr) return ltc::kNoMemory;
  pack(a.weight, 1, s.N, s.N, s.N, packed.data);
  const Common common = {a.x0, a.dt, a.capacitance, a.states, a.tape, nullptr, nullptr, nullptr, nullptr};
#pragma omp parallel for schedule(static, 1) num_threads(plan.parts) if (plan.parts > 1)
  for (int part = 0; part < plan.parts; ++part) {
    const int64_t end = share(s.B, part + 1, plan.parts);
    for (int64_t b = share(s.B, part, plan.parts); b < end; b += plan.rows) {
      const Rows block = {b, static_cast<int>(smaller<int64_t>(plan.rows, end - b))};
      float* mine = space.data + part * each;
      FullMembrane membrane = {s, a, nullptr, block, plan.P, plan.stride, panels_of(s.N) * kPanel, packed.data, nullptr,
                               mine + scan, nullptr, nullptr, nullptr, nullptr, nullptr,
                               splat(s.adaptive ? 1.0f : 0.0f)};
      Loop{s, common, membrane, block, plan.P, plan.stride, nullptr, mine}.forward();
    }
  }
  return ltc::kOk;
}

template <int solver>
Status backward(const Shape& s, const FullBackward& a) {
  using Loop = Scan<solver, FullMembrane>;
  const FullForward& f = a.forward;
  const Plan plan(s.B, s.N, s.threads);
  const int64_t columns = panels_of(s.N) * kPanel;  // of a thread's sum of gradients of W
  const int64_t scan = Loop::backward_workspace(s, plan.rows);
  const int64_t membrane_size = plan.area * (1 + s.steps * stages_of(solver));
  const int64_t each = scan + membrane_size + 3 * plan.P + s.N * columns;
  Buffer packed(packed_size(s.N, s.N)), space(plan.parts * each, true);
  if (packed.data == nullptr || space.data == nullptr) return ltc::kNoMemory;
  pack(f.weight, s.N, 1, s.N, s.N, packed.data);
  const Common common = {f.x0, f.dt, f.capacitance, f.states, f.tape, a.states_grad, a.last_grad, a.x0_grad, a.dt_grad};
#pragma omp parallel for schedule(static, 1) num_threads(plan.parts) if (plan.parts > 1)
  for (int part = 0; part < plan.parts; ++part) {
    const int64_t end = share(s.B, part + 1, plan.parts);
    for (int64_t b = share(s.B, part, plan.parts); b < end; b += plan.rows) {
      const Rows block = {b, static_cast<int>(smaller<int64_t>(plan.rows, end - b))};
      float *mine = space.data + part * each, *own = mine + scan, *sums = own + membrane_size;
      FullMembrane membrane = {s, f, &a, block, plan.P, plan.stride, columns, nullptr, packed.data,
                               nullptr, own, own + block.rows * plan.stride, sums + 3 * plan.P, sums, sums + plan.P,
                               splat(s.adaptive ? 1.0f : 0.0f)};
      Loop{s, common, membrane, block, plan.P, plan.stride, sums + 2 * plan.P, mine}.backward();
    }
  }
  const float* sums = space.data + scan + membrane_size;
  add_parts(sums, plan.parts, each, s.N, a.reversal_grad);
  add_parts(sums + plan.P, plan.parts, each, s.N, a.leak_grad);
  add_parts(sums + 2 * plan.P, plan.parts, each, s.N, a.capacitance_grad);
  for (int64_t n = 0; n < s.N; ++n) a.capacitance_grad[n] /= -f.capacitance[n];
  for (int64_t i = 0; i < s.N; ++i)
    add_parts(sums + 3 * plan.P + i * columns, plan.parts, each, s.N, a.weight_grad + i * s.N);
  return ltc::kOk;
}

}  // namespace

Status full_forward(const Shape& s, const FullForward& a) {
  return with_solver(s.solver, [&](auto solver) { return forward<solver()>(s, a); });
}

Status full_backward(const Shape& s, const FullBackward& a) {
  return with_solver(s.solver, [&](auto solver) { return backward<solver()>(s, a); });
}

}  // namespace LTC_NAMESPACE
