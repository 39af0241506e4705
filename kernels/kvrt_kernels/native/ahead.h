// What threads do while they wait for others: each asks the cache for the weights it will multiply with next. The start
// of a product, when nothing has arrived yet, is then no time without traffic.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

namespace kvrt {

// The part of one thread. Somebody else may aim while it asks: it may then ask for some of both, which is useless and
// harmless, since no address can be wrong. So weights may go without waiting for anybody.
class alignas(64) Ahead {
 public:
  // So many bytes at `first`, and as many at `second`, unless it is nullptr.
  void aim(const char* first, const char* second, int64_t bytes) {
    first_.store(first, std::memory_order_relaxed);
    second_.store(second, std::memory_order_relaxed);
    bytes_.store(std::min(kBytes, bytes), std::memory_order_relaxed);
    number_.fetch_add(1, std::memory_order_release);
  }

  // Asks for a little of them; false if there is nothing left to ask for.
  bool ask() {
    const uint32_t number = number_.load(std::memory_order_acquire);
    if (number != asked_) asked_ = number, done_ = 0;
    const int64_t bytes = bytes_.load(std::memory_order_relaxed);
    const char* parts[] = {first_.load(std::memory_order_relaxed), second_.load(std::memory_order_relaxed)};
    for (int i = 0; i < kLines && done_ < bytes; i++, done_ += 64)
      for (const char* part : parts)
        if (part) __builtin_prefetch(part + done_, 0, 2);
    return done_ < bytes;
  }

 private:
  static constexpr int kLines = 4;
  static constexpr int64_t kBytes = 128 << 10;  // of each part: no more than a second-level cache has room for

  std::atomic<const char*> first_{nullptr}, second_{nullptr};
  std::atomic<int64_t> bytes_{0};
  std::atomic<uint32_t> number_{0};
  uint32_t asked_ = 0;  // these two are the asking thread's
  int64_t done_ = 0;
};

}  // namespace kvrt
