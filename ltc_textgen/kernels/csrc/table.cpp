#include "tables.h"

#define LTC_STRING2(name) #name
#define LTC_STRING(name) LTC_STRING2(name)

namespace LTC_NAMESPACE {

const ltc::Table table = {LTC_STRING(LTC_ISA), diagonal_forward, diagonal_backward, layer_forward, layer_backward,
                          full_forward, full_backward, synaptic_forward, synaptic_backward, sums_forward,
                          sums_backward, product, mixing_forward, mixing_backward, gate_forward, gate_backward,
                          decoder_new};

}  // namespace LTC_NAMESPACE
