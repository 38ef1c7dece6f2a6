// The entry points of one instruction set, in its namespace.
#pragma once

#include "isa.h"
#include "kernels.h"

namespace LTC_NAMESPACE {

ltc::Status diagonal_forward(const ltc::Shape& shape, const ltc::DiagonalForward& arrays);
ltc::Status diagonal_backward(const ltc::Shape& shape, const ltc::DiagonalBackward& arrays);
ltc::Status full_forward(const ltc::Shape& shape, const ltc::FullForward& arrays);
ltc::Status full_backward(const ltc::Shape& shape, const ltc::FullBackward& arrays);

extern const ltc::Table table;

}  // namespace LTC_NAMESPACE
