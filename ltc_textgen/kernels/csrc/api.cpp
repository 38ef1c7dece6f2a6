// The C interface that Python calls through ctypes: checks the values that a kernel cannot survive, and hands over to
// the instruction set in use.
#include <cmath>
#include <cstring>

#include "kernels.h"

#define LTC_EXPORT extern "C" __attribute__((visibility("default")))

namespace ltc_baseline {
extern const ltc::Table table;
}
#if defined(__x86_64__) && !defined(LTC_BASELINE_ONLY)
#define LTC_X86_CLONES
namespace ltc_avx2 {
extern const ltc::Table table;
}
namespace ltc_avx512 {
extern const ltc::Table table;
}
namespace ltc_avx512vnni {
ltc::Decoder* decoder_new(const ltc::DecoderModel& model);
}
#endif

namespace {

constexpr int kCapacitance = 2, kLeak = 3, kElapsed = 4;  // beside ltc::Status; named in library.py

#if defined(LTC_X86_CLONES)
// Only the decoder has products of bytes: the rest is that of avx512.
ltc::Table with_dot_products() {
  ltc::Table table = ltc_avx512::table;
  table.name = "avx512vnni";
  table.decoder_new = ltc_avx512vnni::decoder_new;
  return table;
}
const ltc::Table avx512vnni = with_dot_products();
#endif

bool supported(const ltc::Table& table) {
#if defined(LTC_X86_CLONES)
  if (&table == &avx512vnni) return supported(ltc_avx512::table) && __builtin_cpu_supports("avx512vnni");
  if (&table == &ltc_avx512::table)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (&table == &ltc_avx2::table) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &table == &ltc_baseline::table;
}

const ltc::Table* const kTables[] = {
#if defined(LTC_X86_CLONES)
    &avx512vnni,
    &ltc_avx512::table,
    &ltc_avx2::table,
#endif
    &ltc_baseline::table,
};

const ltc::Table* best() {
  for (const ltc::Table* table : kTables)
    if (supported(*table)) return table;
  return &ltc_baseline::table;
}

const ltc::Table* in_use = best();

// The comparisons are written so that NaN fails for elapsed time and passes for parameters, where it is the mark of a
// training that diverged and must show in the loss.
int check(const ltc::Shape& s, const float* dt, const float* capacitance, const float* leak) {
  for (int64_t i = 0; i < s.N; ++i) {
    if (capacitance[i] <= 0.0f) return kCapacitance;
    if (leak[i] < 0.0f) return kLeak;
  }
  for (int64_t i = 0; i < s.B * s.T; ++i)
    if (!(dt[i] >= 0.0f && std::isfinite(dt[i]))) return kElapsed;
  return ltc::kOk;
}

}  // namespace

// Name of the instruction set in use.
LTC_EXPORT const char* ltc_instruction_set() { return in_use->name; }

// Use another set (tests compare them); 0 if this build or this CPU does not have it.
LTC_EXPORT int ltc_use_instruction_set(const char* name) {
  for (const ltc::Table* table : kTables) {
    if (std::strcmp(table->name, name) == 0 && supported(*table)) {
      in_use = table;
      return 1;
    }
  }
  return 0;
}

// 1 if the library was built with threads.
LTC_EXPORT int ltc_threaded() {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

LTC_EXPORT int ltc_diagonal_forward(const ltc::Shape* shape, const ltc::DiagonalForward* arrays) {
  const int status = check(*shape, arrays->dt, arrays->capacitance, arrays->leak);
  return status != ltc::kOk ? status : in_use->diagonal_forward(*shape, *arrays);
}

LTC_EXPORT int ltc_diagonal_backward(const ltc::Shape* shape, const ltc::DiagonalBackward* arrays) {
  return in_use->diagonal_backward(*shape, *arrays);
}

LTC_EXPORT int ltc_layer_forward(const ltc::Shape* shape, const ltc::LayerForward* arrays) {
  const int status = check(*shape, arrays->scan.dt, arrays->scan.capacitance, arrays->scan.leak);
  return status != ltc::kOk ? status : in_use->layer_forward(*shape, *arrays);
}

LTC_EXPORT int ltc_layer_backward(const ltc::Shape* shape, const ltc::LayerBackward* arrays) {
  return in_use->layer_backward(*shape, *arrays);
}

LTC_EXPORT int ltc_full_forward(const ltc::Shape* shape, const ltc::FullForward* arrays) {
  const int status = check(*shape, arrays->dt, arrays->capacitance, arrays->leak);
  return status != ltc::kOk ? status : in_use->full_forward(*shape, *arrays);
}

LTC_EXPORT int ltc_full_backward(const ltc::Shape* shape, const ltc::FullBackward* arrays) {
  return in_use->full_backward(*shape, *arrays);
}

LTC_EXPORT int ltc_synaptic_forward(const ltc::Shape* shape, const ltc::SynapticForward* arrays) {
  const int status = check(*shape, arrays->dt, arrays->capacitance, arrays->leak);
  return status != ltc::kOk ? status : in_use->synaptic_forward(*shape, *arrays);
}

LTC_EXPORT int ltc_synaptic_backward(const ltc::Shape* shape, const ltc::SynapticBackward* arrays) {
  return in_use->synaptic_backward(*shape, *arrays);
}

LTC_EXPORT int ltc_sums_forward(int64_t rows, int64_t sources, int64_t targets, int threads,
                                const ltc::SumsForward* arrays) {
  return in_use->sums_forward(rows, sources, targets, threads, *arrays);
}

LTC_EXPORT int ltc_sums_backward(int64_t rows, int64_t sources, int64_t targets, int threads,
                                 const ltc::SumsBackward* arrays) {
  return in_use->sums_backward(rows, sources, targets, threads, *arrays);
}

// 1 where `ltc_product` is faster than the BLAS of PyTorch: MKL leaves AVX-512 unused on processors that are not Intel's.
LTC_EXPORT int ltc_product_pays() {
#if defined(LTC_X86_CLONES)
  return __builtin_cpu_is("amd") && (in_use == &avx512vnni || in_use == &ltc_avx512::table);
#else
  return 0;
#endif
}

LTC_EXPORT int ltc_product(const ltc::Product* arrays) { return in_use->product(*arrays); }

LTC_EXPORT int ltc_mixing_forward(const ltc::MixingShape* shape, const ltc::MixingForward* arrays) {
  return in_use->mixing_forward(*shape, *arrays);
}

LTC_EXPORT int ltc_mixing_backward(const ltc::MixingShape* shape, const ltc::MixingBackward* arrays) {
  return in_use->mixing_backward(*shape, *arrays);
}

LTC_EXPORT int ltc_gate_forward(int64_t count, int threads, const ltc::Gate* arrays) {
  return in_use->gate_forward(count, threads, *arrays);
}

LTC_EXPORT int ltc_gate_backward(int64_t count, int threads, const ltc::Gate* arrays) {
  return in_use->gate_backward(count, threads, *arrays);
}

// A decoder of the instruction set in use, to be freed by `ltc_decoder_free`; null when there is no memory.
LTC_EXPORT ltc::Decoder* ltc_decoder_new(const ltc::DecoderModel* model) { return in_use->decoder_new(*model); }

LTC_EXPORT int ltc_decoder_run(ltc::Decoder* decoder, ltc::DecoderCall* call) { return decoder->run(decoder, *call); }

LTC_EXPORT void ltc_decoder_free(ltc::Decoder* decoder) { decoder->release(decoder); }
