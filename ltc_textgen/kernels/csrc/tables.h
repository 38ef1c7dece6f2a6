// The entry points of one instruction set, in its namespace.
#pragma once

#include "isa.h"
#include "kernels.h"

namespace LTC_NAMESPACE {

ltc::Status diagonal_forward(const ltc::Shape& shape, const ltc::DiagonalForward& arrays);
ltc::Status diagonal_backward(const ltc::Shape& shape, const ltc::DiagonalBackward& arrays);
ltc::Status layer_forward(const ltc::Shape& shape, const ltc::LayerForward& arrays);
ltc::Status layer_backward(const ltc::Shape& shape, const ltc::LayerBackward& arrays);
ltc::Status full_forward(const ltc::Shape& shape, const ltc::FullForward& arrays);
ltc::Status full_backward(const ltc::Shape& shape, const ltc::FullBackward& arrays);
ltc::Status synaptic_forward(const ltc::Shape& shape, const ltc::SynapticForward& arrays);
ltc::Status synaptic_backward(const ltc::Shape& shape, const ltc::SynapticBackward& arrays);
ltc::Status sums_forward(int64_t rows, int64_t sources, int64_t targets, int threads, const ltc::SumsForward& arrays);
ltc::Status sums_backward(int64_t rows, int64_t sources, int64_t targets, int threads, const ltc::SumsBackward& arrays);
ltc::Status product(const ltc::Product& arrays);
ltc::Status mixing_forward(const ltc::MixingShape& shape, const ltc::MixingForward& arrays);
ltc::Status mixing_backward(const ltc::MixingShape& shape, const ltc::MixingBackward& arrays);
ltc::Status gate_forward(int64_t count, int threads, const ltc::Gate& arrays);
ltc::Status gate_backward(int64_t count, int threads, const ltc::Gate& arrays);
ltc::Decoder* decoder_new(const ltc::DecoderModel& model);

extern const ltc::Table table;

}  // namespace LTC_NAMESPACE
