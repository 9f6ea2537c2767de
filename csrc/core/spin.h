// How a thread waits for another one that will be ready within microseconds.
#pragma once
#include <chrono>
#include <thread>

namespace bnb {

using SpinClock = std::chrono::steady_clock;

// What an idle thread looks for work before it sleeps: about what waking it would cost.
constexpr auto kSpin = std::chrono::microseconds(50);

// Gives the core's other thread `n` pauses' time.
inline void pause(int n) {
#if defined(__x86_64__)
  for (int i = 0; i < n; i++) __builtin_ia32_pause();
#else
  (void)n;
  std::this_thread::yield();
#endif
}

}  // namespace bnb
