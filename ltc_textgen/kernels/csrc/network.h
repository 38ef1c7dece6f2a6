// The parameters of a whole network, packed for decoder.cpp into one piece of memory.
#pragma once

#include "decoder.h"
#include "panels.h"

namespace LTC_NAMESPACE {

using ltc::DecoderBlock;
using ltc::DecoderModel;

constexpr int kDrives = 3;  // vectors of a panel of drives: excitatory, inhibitory, gate
constexpr int kPlain = 2;   // vectors of any other panel
constexpr int kNeuron = 6;  // parameters of a neuron: r_e, r_i (in units of -1 / log2(e)), E_e, E_i, C, leak

template <class Kind>
struct Block {
  Panels<Kind> drives, out;
  const float *norm, *taps, *taps_bias;  // (Dp), (K, Dp), (Dp)
  const float* neurons;                  // (tiles, kNeuron, kWidth)
  float epsilon;
};

template <class Kind>
struct Network {
  ltc::Decoder base;
  DecoderModel m;      // its pointers are only good while the network is made
  int64_t Dp, Np, Vp;  // D, N and V in whole vectors or panels
  int64_t Ds, Ns;      // from row to row of Dp and Np
  int64_t tiles;       // vectors of neurons
  Panels<Kind> head;
  const float *embedding, *norm;
  Block<Kind>* blocks;
  char* memory;
};

// Hands out pieces of one allocation; a first pass, without memory, adds up how much is needed.
struct Arena {
  char* memory;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* piece = memory == nullptr ? nullptr : reinterpret_cast<T*>(memory + used);
    used += rounded_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
};

template <class Kind>
Panels<Kind> room(Arena& arena, int64_t outputs, int V, int64_t depth) {
  Panels<Kind> m = {rounded_up(depth, Kind::kDepth), (outputs + V * kWidth - 1) / (V * kWidth), nullptr, nullptr, nullptr};
  m.weights = arena.take<typename Kind::Weight>(m.panels * V * kWidth * m.depth);
  m.scale = arena.take<float>(m.panels * V * kWidth);
  m.bias = arena.take<float>(m.panels * V * kWidth);
  return m;
}

inline const float* padded_copy(Arena& arena, const float* from, int64_t count, int64_t padded) {
  float* to = arena.take<float>(padded);
  for (int64_t i = 0; to != nullptr && i < padded; ++i) to[i] = i < count ? from[i] : 0.0f;
  return to;
}

template <class Kind>
void pack_block(Network<Kind>& n, const DecoderBlock& b, Block<Kind>& to, Arena& arena) {
  const int64_t D = n.m.D, N = n.m.N, K = n.m.K;
  to.epsilon = b.epsilon;
  to.norm = padded_copy(arena, b.norm, D, n.Dp);
  to.taps_bias = padded_copy(arena, b.taps_bias, D, n.Dp);
  float* taps = arena.take<float>(K * n.Dp);
  float* neurons = arena.take<float>(n.tiles * kNeuron * kWidth);
  to.taps = taps;
  to.neurons = neurons;
  to.drives = room<Kind>(arena, n.tiles * kDrives * kWidth, kDrives, D);
  to.out = room<Kind>(arena, D, kPlain, n.Np);
  if (arena.memory == nullptr) return;
  for (int64_t d = 0; d < n.Dp; ++d)
    for (int64_t k = 0; k < K; ++k) taps[k * n.Dp + d] = d < D ? b.taps[d * K + k] : 0.0f;
  for (int64_t i = 0; i < n.Np; ++i) {
    const bool here = i < N;
    const float of[kNeuron] = {here ? b.feedback[i] : 0, here ? b.feedback[N + i] : 0, here ? b.reversal[i] : 0,
                               here ? b.reversal[N + i] : 0, here ? b.capacitance[i] : 1, here ? b.leak[i] : 1};
    for (int p = 0; p < kNeuron; ++p)
      neurons[(i / kWidth * kNeuron + p) * kWidth + i % kWidth] = p < 2 ? -kLog2E * of[p] : of[p];
  }
  const auto neuron = [&](int64_t row) { return row / (kDrives * kWidth) * kWidth + row % kWidth; };
  const auto kind = [&](int64_t row) { return row / kWidth % kDrives; };
  pack_panels(to.drives, kDrives, D, [&](int64_t row) -> const float* {
    const int64_t i = neuron(row), k = kind(row);
    return i >= N ? nullptr : k == 2 ? b.gate + i * D : b.input + (k * N + i) * D;
  });
  for (int64_t row = 0; row < n.tiles * kDrives * kWidth; ++row) {
    const int64_t i = neuron(row), k = kind(row);
    to.drives.bias[row] = i >= N ? 0.0f : k == 2 ? b.gate_bias[i] : b.input_bias[k * N + i];
  }
  pack_panels(to.out, kPlain, N, [&](int64_t row) { return row < D ? b.out + row * N : nullptr; });
  for (int64_t row = 0; row < n.Dp; ++row) to.out.bias[row] = 0.0f;
}

template <class Kind>
void pack(Network<Kind>& n, const DecoderModel& m, Arena& arena) {
  n.blocks = arena.take<Block<Kind>>(m.L);
  for (int64_t l = 0; l < m.L; ++l) {
    Block<Kind> unused;
    pack_block(n, m.blocks[l], arena.memory == nullptr ? unused : n.blocks[l], arena);
  }
  float* embedding = arena.take<float>(m.words * n.Dp);
  for (int64_t i = 0; embedding != nullptr && i < m.words * n.Dp; ++i)
    embedding[i] = i % n.Dp < m.D ? m.embedding[i / n.Dp * m.D + i % n.Dp] : 0.0f;
  n.embedding = embedding;
  n.norm = padded_copy(arena, m.norm, m.D, n.Dp);
  n.head = room<Kind>(arena, m.V, kPlain, m.D);
  if (arena.memory == nullptr) return;
  pack_panels(n.head, kPlain, m.D, [&](int64_t row) { return row < m.V ? m.head + row * m.D : nullptr; });
  // What pads the vocabulary is never drawn.
  for (int64_t row = 0; row < n.Vp; ++row) n.head.bias[row] = row < m.V ? m.head_bias[row] : -__builtin_inff();
}

}  // namespace LTC_NAMESPACE
