// Where the threads of a decoder meet.
#pragma once

#include <sched.h>

#include "isa.h"

namespace LTC_NAMESPACE {

constexpr int kSpins = 2000;

// Meeting point of a team. Waits by spinning, for the others are a fraction of a microsecond away, and gives way when
// they are not because something else has their core.
struct Barrier {
  alignas(64) int arrived = 0;
  alignas(64) int round = 0;
  alignas(64) int late = 0;  // waits in which spinning was not enough
  void wait(int team) {
    if (team == 1) return;
    const int now = __atomic_load_n(&round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == team) {
      __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&round, now + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int spins = 0; __atomic_load_n(&round, __ATOMIC_ACQUIRE) == now; ++spins) {
      if (spins == kSpins) __atomic_add_fetch(&late, 1, __ATOMIC_RELAXED);
      if (spins >= kSpins) sched_yield();
#if defined(__x86_64__)
      else __builtin_ia32_pause();
#endif
    }
  }
};

}  // namespace LTC_NAMESPACE
