// Work that threads share, and the memory they keep. Only for files that are compiled once.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

#include "team.h"

namespace kvrt {

// Memory that a thread keeps between calls, one buffer per use.
class Buffer {
 public:
  ~Buffer() { std::free(data_); }
  void* get(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(4096, size_);
      if (!data_) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// body(i) for i in [0, count), on at most `threads` threads, each taking the next i when it is free.
template <class Body> void each(int threads, int64_t count, const Body& body) {
  threads = int(std::min<int64_t>(threads, count));
  if (threads <= 1) {
    for (int64_t i = 0; i < count; i++) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  Team::get().run(threads, [&](int) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
  });
}

// body(begin, end) for runs that cover [0, count). Each thread works upwards through a range of its own, so that what
// one run asked the cache for serves the next; it takes a quarter of what is left at a time, and then helps the others.
template <class Body> void runs(int threads, int64_t count, const Body& body) {
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;

    int64_t take(int64_t& begin) {
      begin = next.load(std::memory_order_relaxed);
      int64_t size;
      do {
        if (begin >= end) return 0;
        size = std::max<int64_t>(1, (end - begin) / 4);
      } while (!next.compare_exchange_weak(begin, begin + size, std::memory_order_relaxed));
      return size;
    }
  };
  threads = int(std::min<int64_t>(std::min(threads, kMaxThreads), count));
  if (threads <= 1) {
    if (count > 0) body(int64_t(0), count);
    return;
  }
  Range ranges[kMaxThreads];
  for (int t = 0; t < threads; t++) {
    ranges[t].next.store(count * t / threads, std::memory_order_relaxed);
    ranges[t].end = count * (t + 1) / threads;
  }
  Team::get().run(threads, [&](int me) {
    for (int t = 0; t < threads; t++) {
      int64_t begin, size;
      while ((size = ranges[(me + t) % threads].take(begin)) > 0) body(begin, begin + size);
    }
  });
}

}  // namespace kvrt
