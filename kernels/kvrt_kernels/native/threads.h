// Threads that work together, and the memory they keep. Only for files that are compiled once.
#pragma once
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

// Threads that stay awake between the parallel parts of a longer piece of work. Between two of OpenMP's own regions of
// a few microseconds, half of the time would go into starting and ending them.
class Team {
 public:
  // Calls lead() on this thread; what it runs in parallel(), the others of `threads` help with. Whoever waits for the
  // others calls idle(thread) again and again: it does a little of something useful, or returns false.
  template <class Idle, class Lead> static void lead(int threads, const Idle& idle, const Lead& lead) {
    if (threads <= 1) return lead();
    Team team;
    team.idle_ = [](const void* i, int thread) { return (*static_cast<const Idle*>(i))(thread); };
    team.idler_ = &idle;
#pragma omp parallel num_threads(threads)
    {
      if (omp_get_thread_num() != 0) {
        team.follow(omp_get_thread_num());
      } else {
        team.followers_ = omp_get_num_threads() - 1;
        mine = &team;
        lead();
        mine = nullptr;
        team.call(nullptr, nullptr);
      }
    }
  }

  // body(thread) on this thread and the others of its team.
  template <class Body> void run(const Body& body) {
    left_.store(followers_, std::memory_order_relaxed);
    call([](const void* b, int thread) { (*static_cast<const Body*>(b))(thread); }, &body);
    body(0);
    wait(0, [&] { return left_.load(std::memory_order_acquire) == 0; });
  }

  static thread_local Team* mine;  // the one this thread leads, if it does

 private:
  using Job = void (*)(const void* body, int thread);

  void call(Job job, const void* body) {
    job_ = job;
    body_ = body;
    calls_.fetch_add(1, std::memory_order_release);
  }

  void follow(int thread) {
    for (unsigned seen = 0;; seen++) {
      wait(thread, [&] { return calls_.load(std::memory_order_acquire) != seen; });
      if (!job_) return;
      job_(body_, thread);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Lets others run when it has become long, as there may be fewer processors than threads.
  template <class Ready> void wait(int thread, const Ready& ready) {
    for (int turn = 1; !ready(); turn++) {
      if (idle_(idler_, thread)) continue;
      if (turn % 512 == 0) std::this_thread::yield();
#if defined(__x86_64__)
      _mm_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
  }

  int followers_ = 0;
  Job job_ = nullptr;
  bool (*idle_)(const void* idler, int thread) = nullptr;
  const void *body_ = nullptr, *idler_ = nullptr;
  alignas(64) std::atomic<unsigned> calls_{0};
  alignas(64) std::atomic<int> left_{0};
};

inline thread_local Team* Team::mine = nullptr;

// body(thread) on `threads` threads.
template <class Body> void parallel(int threads, const Body& body) {
  if (Team::mine) return Team::mine->run(body);
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num());
}

// body(i) for i in [0, count), on at most `threads` threads, each taking the next i when it is free.
template <class Body> void each(int threads, int64_t count, const Body& body) {
  threads = int(std::min<int64_t>(threads, count));
  if (threads <= 1) {
    for (int64_t i = 0; i < count; i++) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  parallel(threads, [&](int) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
  });
}

// body(begin, end) for runs that cover [0, count). Each thread works upwards through a range of its own, so that what
// one run asked the cache for serves the next; it takes a quarter of what is left at a time, and then helps the others.
template <class Body> void runs(int threads, int64_t count, const Body& body) {
  constexpr int kMaxThreads = 256;
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
  parallel(threads, [&](int me) {
    for (int t = 0; t < threads; t++) {
      int64_t begin, size;
      while ((size = ranges[(me + t) % threads].take(begin)) > 0) body(begin, begin + size);
    }
  });
}

}  // namespace kvrt
