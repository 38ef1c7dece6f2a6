// Runs every kernel forward and backward over odd sizes, for a build with the address and undefined-behaviour sanitizers
// (see sanitize.py). Arrays are exactly as large as the kernels may touch.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels.h"

extern "C" {
int ltc_use_instruction_set(const char*);
int ltc_diagonal_forward(const ltc::Shape*, const ltc::DiagonalForward*);
int ltc_diagonal_backward(const ltc::Shape*, const ltc::DiagonalBackward*);
int ltc_layer_forward(const ltc::Shape*, const ltc::LayerForward*);
int ltc_layer_backward(const ltc::Shape*, const ltc::LayerBackward*);
int ltc_full_forward(const ltc::Shape*, const ltc::FullForward*);
int ltc_full_backward(const ltc::Shape*, const ltc::FullBackward*);
int ltc_synaptic_forward(const ltc::Shape*, const ltc::SynapticForward*);
int ltc_synaptic_backward(const ltc::Shape*, const ltc::SynapticBackward*);
int ltc_sums_forward(int64_t, int64_t, int64_t, int, const ltc::SumsForward*);
int ltc_sums_backward(int64_t, int64_t, int64_t, int, const ltc::SumsBackward*);
int ltc_product(const ltc::Product*);
int ltc_mixing_forward(const ltc::MixingShape*, const ltc::MixingForward*);
int ltc_mixing_backward(const ltc::MixingShape*, const ltc::MixingBackward*);
int ltc_gate_forward(int64_t, int, const ltc::Gate*);
int ltc_gate_backward(int64_t, int, const ltc::Gate*);
ltc::Decoder* ltc_decoder_new(const ltc::DecoderModel*);
int ltc_decoder_run(ltc::Decoder*, ltc::DecoderCall*);
void ltc_decoder_free(ltc::Decoder*);
}

namespace {

using Values = std::vector<float>;

Values draw(int64_t count, float low = 0.1f, float high = 1.0f) {
  Values values(count);
  for (float& value : values) value = low + (high - low) * static_cast<float>(std::rand()) / RAND_MAX;
  return values;
}

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

void require_finite(const Values& values, const char* what) {
  for (float value : values) require(std::isfinite(value), what);
}

// Everything that the scans share, and gradients that must all be written.
struct Scan {
  ltc::Shape s;
  int64_t B = s.B, T = s.T, N = s.N;
  Values x0 = draw(B * N, -1, 1), dt = draw(B * T, 0, 1), C = draw(N, 4, 5), leak = draw(N), reversal = draw(2 * N, -1, 1);
  Values states = Values(B * T * N), states_grad = draw(B * T * N, -1, 1), last_grad = draw(B * N, -1, 1);
  Values tape, drive_grad = Values(B * T * 2 * N, NAN), x0_grad = Values(B * N, NAN), dt_grad = Values(B * T, NAN);
  Values C_grad = Values(N, NAN), leak_grad = Values(N, NAN), reversal_grad = Values(2 * N, NAN);

  explicit Scan(const ltc::Shape& shape, int per_stage) : s(shape) {
    dt[0] = 0.0f;
    tape.resize(B * T * s.steps * (s.solver == 2 ? 4 : 1) * per_stage * ((N + 15) / 16 * 16));
  }
  void finish() const {
    for (const Values* v : {&states, &x0_grad, &dt_grad, &C_grad, &leak_grad}) require_finite(*v, "values are finite");
  }
};

void diagonal(const ltc::Shape& shape) {
  Scan c(shape, 0);
  const Values drive = draw(c.B * c.T * 2 * c.N, -2, 2), r = draw(2 * c.N, -1, 1);
  Values r_grad(2 * c.N, NAN);
  const ltc::DiagonalForward f = {drive.data(), c.x0.data(), c.dt.data(), r.data(), c.reversal.data(), c.C.data(),
                                  c.leak.data(), c.states.data()};
  require(ltc_diagonal_forward(&shape, &f) == 0, "diagonal forward");
  ltc::DiagonalBackward b = {f, c.states_grad.data(), c.last_grad.data(), c.drive_grad.data(), c.x0_grad.data(),
                             c.dt_grad.data(), r_grad.data(), c.reversal_grad.data(), c.C_grad.data(), c.leak_grad.data()};
  require(ltc_diagonal_backward(&shape, &b) == 0, "diagonal backward");
  c.finish();
  require_finite(r_grad, "gradient of r is finite");
  b.states_grad = nullptr;
  b.dt_grad = nullptr;
  require(ltc_diagonal_backward(&shape, &b) == 0, "diagonal backward of the last state");
}

// The diagonal cell with its projection; without a drive to keep, and with gradients left out.
void layer(const ltc::Shape& shape, int64_t D) {
  Scan c(shape, 0);
  const int64_t rows = c.B * c.T, width = 2 * c.N;
  const Values u = draw(rows * D, -1, 1), weight = draw(width * D, -1, 1), bias = draw(width, -1, 1);
  const Values r = draw(width, -1, 1);
  Values drive(rows * width, NAN), u_grad(rows * D, NAN), weight_grad(width * D, NAN), bias_grad(width, NAN);
  Values r_grad(width, NAN);
  const ltc::DiagonalForward scan = {nullptr, c.x0.data(), c.dt.data(), r.data(), c.reversal.data(), c.C.data(),
                                     c.leak.data(), c.states.data()};
  ltc::LayerForward f = {scan, D, u.data(), weight.data(), bias.data(), nullptr};
  require(ltc_layer_forward(&shape, &f) == 0, "layer forward, nothing kept");
  require_finite(c.states, "states are finite");
  f.drive = drive.data();
  require(ltc_layer_forward(&shape, &f) == 0, "layer forward");
  require_finite(drive, "drives are finite");
  ltc::DiagonalBackward back = {scan, c.states_grad.data(), c.last_grad.data(), nullptr, c.x0_grad.data(),
                                c.dt_grad.data(), r_grad.data(), c.reversal_grad.data(), c.C_grad.data(),
                                c.leak_grad.data()};
  ltc::LayerBackward b = {back, f, u_grad.data(), weight_grad.data(), bias_grad.data()};
  require(ltc_layer_backward(&shape, &b) == 0, "layer backward");
  c.finish();
  for (const Values* v : {&u_grad, &weight_grad, &bias_grad, &r_grad}) require_finite(*v, "gradients are finite");
  b.scan.states_grad = nullptr;
  b.scan.dt_grad = nullptr;
  b.u_grad = b.weight_grad = b.bias_grad = nullptr;
  require(ltc_layer_backward(&shape, &b) == 0, "layer backward of the last state");
}

void full(const ltc::Shape& shape) {
  Scan c(shape, 1);
  const Values drive = draw(c.B * c.T * c.N, -2, 2), W = draw(c.N * c.N, -1, 1);
  Values W_grad(c.N * c.N, NAN);
  const ltc::FullForward f = {drive.data(), c.x0.data(), c.dt.data(), W.data(), c.reversal.data(), c.C.data(),
                              c.leak.data(), c.states.data(), c.tape.data()};
  require(ltc_full_forward(&shape, &f) == 0, "full forward");
  const ltc::FullBackward b = {f, c.states_grad.data(), c.last_grad.data(), c.drive_grad.data(), c.x0_grad.data(),
                               c.dt_grad.data(), W_grad.data(), c.reversal_grad.data(), c.C_grad.data(),
                               c.leak_grad.data()};
  require(ltc_full_backward(&shape, &b) == 0, "full backward");
  c.finish();
  require_finite(W_grad, "gradient of W is finite");
}

struct Matrices {
  Values w, sigma, mu, reversal, gradients;
  std::vector<uint8_t> mask;
  int64_t size;
  explicit Matrices(int64_t count) : w(draw(count)), sigma(draw(count, 3, 8)), mu(draw(count)),
        reversal(draw(count, -1, 1)), gradients(4 * count, NAN), mask(count), size(count) {
    for (uint8_t& exists : mask) exists = std::rand() % 10 == 0;
  }
  ltc::SynapseArrays arrays() const { return {w.data(), sigma.data(), mu.data(), reversal.data(), mask.data()}; }
  ltc::SynapseGradients grads() {
    float* g = gradients.data();
    return {g, g + size, g + 2 * size, g + 3 * size};
  }
};

void synaptic(const ltc::Shape& shape) {
  Scan c(shape, 2);
  const Values drive = draw(c.B * c.T * 2 * c.N), current = draw(c.N);
  Values current_grad(c.N, NAN);
  Matrices m(c.N * c.N);
  const ltc::SynapticForward f = {drive.data(), c.x0.data(), c.dt.data(), m.arrays(), c.C.data(), c.leak.data(),
                                  current.data(), c.states.data(), c.tape.data()};
  require(ltc_synaptic_forward(&shape, &f) == 0, "synaptic forward");
  const ltc::SynapticBackward b = {f, c.states_grad.data(), c.last_grad.data(), c.drive_grad.data(), c.x0_grad.data(),
                                   c.dt_grad.data(), m.grads(), c.C_grad.data(), c.leak_grad.data(), current_grad.data()};
  require(ltc_synaptic_backward(&shape, &b) == 0, "synaptic backward");
  c.finish();
  require_finite(m.gradients, "gradients of the synapses are finite");
}

void sums(int64_t rows, int64_t sources, int64_t targets, int threads) {
  const Values values = draw(rows * sources, -1, 1), sums_grad = draw(rows * 2 * targets, -1, 1);
  Values result(rows * 2 * targets, NAN), values_grad(rows * sources, NAN);
  Matrices m(sources * targets);
  const ltc::SumsForward f = {values.data(), m.arrays(), result.data()};
  require(ltc_sums_forward(rows, sources, targets, threads, &f) == 0, "sums forward");
  const ltc::SumsBackward b = {f, sums_grad.data(), values_grad.data(), m.grads()};
  require(ltc_sums_backward(rows, sources, targets, threads, &b) == 0, "sums backward");
  require_finite(result, "sums are finite");
  require_finite(values_grad, "gradient of the values is finite");
}

void product(int64_t rows, int64_t depth, int64_t columns, int threads) {
  const Values a = draw(rows * depth, -1, 1), b = draw(depth * columns, -1, 1), bias = draw(columns);
  for (int turned = 0; turned < 4; ++turned) {
    Values c(rows * columns, NAN), sums(rows, NAN);
    const bool left = turned & 1, right = turned & 2;
    const ltc::Product p = {rows, depth, columns, threads, a.data(), left ? 1 : depth, left ? rows : 1, b.data(),
                            right ? 1 : columns, right ? depth : 1, right ? bias.data() : nullptr, c.data(), sums.data()};
    require(ltc_product(&p) == 0, "product");
    require_finite(c, "a product is finite");
    require_finite(sums, "sums of rows are finite");
  }
}

// Norm and convolution of a block; the gradients once with and once without what is optional.
void mixing(int64_t B, int64_t T, int64_t D, int64_t K, int threads) {
  const ltc::MixingShape shape = {B, T, D, K, 1e-6f, threads};
  const Values u = draw(B * T * D, -1, 1), columns = draw(B * (K - 1) * D, -1, 1), norm = draw(D), bias = draw(D);
  const Values taps = draw(D * K, -1, 1), grad = draw(B * T * D, -1, 1), after = draw(B * (K - 1) * D, -1, 1);
  Values extended(B * (T + K - 1) * D, NAN), scale(B * T, NAN), mixed(B * T * D, NAN);
  const ltc::MixingForward f = {u.data(), columns.data(), norm.data(), taps.data(), bias.data(), extended.data(),
                                scale.data(), mixed.data()};
  require(ltc_mixing_forward(&shape, &f) == 0, "mixing forward");
  for (const Values* v : {&extended, &scale, &mixed}) require_finite(*v, "what is mixed is finite");
  for (bool whole : {true, false}) {
    Values u_grad(B * T * D, NAN), columns_grad(B * (K - 1) * D, NAN), norm_grad(D, NAN), bias_grad(D, NAN);
    Values taps_grad(D * K, NAN);
    const ltc::MixingBackward b = {f, grad.data(), grad.data(), grad.data(), whole ? after.data() : nullptr,
                                   whole ? columns_grad.data() : nullptr, u_grad.data(), norm_grad.data(),
                                   taps_grad.data(), bias_grad.data()};
    require(ltc_mixing_backward(&shape, &b) == 0, "mixing backward");
    for (const Values* v : {&u_grad, &norm_grad, &taps_grad, &bias_grad}) require_finite(*v, "gradients are finite");
    if (whole) require_finite(columns_grad, "gradient of the columns is finite");
  }
}

void gate(int64_t count, int threads) {
  const Values y = draw(count, -1, 1), z = draw(count, -9, 9);
  Values gated(count, NAN), y_grad(count, NAN), z_grad(count, NAN);
  const ltc::Gate g = {y.data(), z.data(), gated.data(), y_grad.data(), z_grad.data()};
  require(ltc_gate_forward(count, threads, &g) == 0, "gate forward");
  require(ltc_gate_backward(count, threads, &g) == 0, "gate backward");
  for (const Values* v : {&gated, &y_grad, &z_grad}) require_finite(*v, "a gate is finite");
}

// A network of L blocks reads three tokens of each of B texts and draws four of most, with and without every option.
void decoder(int64_t B, int64_t D, int64_t N, int64_t K, int64_t L, int64_t V, int solver, int threads, bool bytes) {
  const Values norm = draw(D), taps = draw(D * K, -1, 1), taps_bias = draw(D, -1, 1), input = draw(2 * N * D, -1, 1);
  const Values input_bias = draw(2 * N, -1, 1), r = draw(2 * N, -1, 1), E = draw(2 * N, -1, 1), C = draw(N, 4, 5);
  const Values leak = draw(N), gate = draw(N * D, -1, 1), gate_bias = draw(N, -1, 1), out = draw(D * N, -1, 1);
  const Values embedding = draw(V * D, -1, 1), head = draw(V * D, -1, 1), head_bias = draw(V, -1, 1);
  const ltc::DecoderBlock block = {norm.data(), taps.data(), taps_bias.data(), input.data(), input_bias.data(), r.data(),
                                   E.data(), C.data(), leak.data(), gate.data(), gate_bias.data(), out.data(), 1e-6f};
  const std::vector<ltc::DecoderBlock> blocks(L, block);
  const ltc::DecoderModel model = {D, N, K, L, V, V, 2, solver, solver % 2 == 0, bytes, blocks.data(), embedding.data(),
                                   norm.data(), head.data(), head_bias.data(), 1e-6f};
  ltc::Decoder* made = ltc_decoder_new(&model);
  require(made != nullptr, "a decoder");
  const int64_t given = 3, count = 4, best = V < 3 ? V : 3, positions = given + count - 1;
  std::vector<int64_t> ids(B * given), tokens(B * count, -1);
  for (int64_t& id : ids) id = std::rand() % V;
  Values neurons(L * B * N), columns(L * B * (K - 1) * D), logits(B * given * V, NAN);
  Values chances(B * positions), likeliest(B * positions * best), watched(B * positions * 2);
  std::vector<int32_t> best_ids(B * positions * best), counts(B * V);
  std::vector<uint8_t> seen(B * V);
  const std::vector<double> uniform(B * count, 0.7);
  const int64_t stop = V, forbidden = 0;  // a stop that is never drawn
  const float never = V > 1 ? -INFINITY : 0.0f;
  const ltc::DecoderHold hold = {0, static_cast<int32_t>(N - 1), 0.5f, 2.0f};
  const int32_t last[2] = {static_cast<int32_t>(L - 1), static_cast<int32_t>(N - 1)};
  for (int filters = 0; filters < 2; ++filters)
    for (int64_t alone : {0, 2}) {
      std::vector<ltc::DecoderOptions> options(B);
      std::vector<ltc::DecoderWork> work(B);
      for (int64_t r = 0; r < B; ++r) {
        const bool all = filters != 0 && r % 2 == 0;
        options[r] = {0.5f, 0.8f, all ? 0.9f : 1.0f, all ? 0.01f : 0.0f, all ? 1.2f : 1.0f, 0.1f, all ? 0.1f : 0.0f,
                      all ? 3 : 0, 1, 1, all, all, &forbidden, &never, &stop, &hold, last, seen.data() + r * V,
                      counts.data() + r * V};
        const int64_t draws = r % 3 == 1 ? 0 : count;  // every third row reads only
        work[r] = {r, given, draws, ids.data() + r * given, ids.data() + r * given, uniform.data() + r * count,
                   tokens.data() + r * count, logits.data() + r * given * V, chances.data() + r * positions,
                   best_ids.data() + r * positions * best, likeliest.data() + r * positions * best,
                   watched.data() + r * positions * 2, 0, 0};
      }
      ltc::DecoderCall call = {B, B, best, threads, options.data(), work.data(), neurons.data(), columns.data(), alone, 0};
      require(ltc_decoder_run(made, &call) == 0, "a decoder runs");
      for (const ltc::DecoderWork& w : work) {
        require(w.done == w.count && w.end == ltc::kCountReached, "all tokens are drawn");
        for (int64_t i = 0; i < w.done; ++i) require(w.tokens[i] >= 0 && w.tokens[i] < V, "tokens are of the vocabulary");
      }
      require_finite(logits, "logits are finite");
      require_finite(neurons, "states are finite");
      require_finite(columns, "columns are finite");
    }
  ltc_decoder_free(made);
}

}  // namespace

int main() {
  const int64_t sizes[][4] = {{1, 1, 1, 1}, {2, 3, 5, 2}, {3, 2, 17, 6}, {35, 2, 31, 1}, {5, 4, 64, 3}, {1, 9, 130, 2}};
  int sets = 0;
  for (const std::string name : {"avx512vnni", "avx512", "avx2", "baseline"}) {
    if (!ltc_use_instruction_set(name.c_str())) continue;
    ++sets;
    for (const auto& size : sizes)
      for (int solver = 0; solver < 4; ++solver)
        for (int threads : {1, 3}) {
          const ltc::Shape shape = {size[0], size[1], size[2], size[3], solver, solver % 2 == 0, threads};
          diagonal(shape);
          layer(shape, size[0] + 2);
          layer({size[0], size[1] * 40, size[2], size[3], solver, solver % 2 == 0, threads}, 40 * size[1]);
          full(shape);
          synaptic(shape);
          sums(size[0] * size[1], size[1] + 2, size[2], threads);
          product(size[0] * 5, size[2] * 3, size[1] * 7, threads);
          mixing(size[0], size[1], size[2], size[3], threads);
          gate(size[0] * size[1] * size[2], threads);
          for (bool bytes : {false, true})
            decoder(size[0], size[2] + 3, size[2], size[1], size[3], size[2] + 1, solver, threads, bytes);
        }
    std::printf("%s: clean\n", name.c_str());
  }
  require(sets > 0, "an instruction set");
}
