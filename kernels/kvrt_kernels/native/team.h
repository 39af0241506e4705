// The threads that compute: one team for the process, which whoever has work for it takes in turns.
#pragma once
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "ahead.h"

namespace kvrt {

constexpr int kMaxThreads = 256;

// Where threads wait: awake for a moment, as the next piece of work mostly follows at once, then asleep. What they wait
// for is stored, sequentially consistent, before wake() is called: so either they see it, or are seen to be asleep.
class Waiting {
 public:
  // Returns when ready() does. Whoever is awake calls idle() again and again: it does a little of something useful, or
  // returns false.
  template <class Ready, class Idle> void wait(const Ready& ready, const Idle& idle) {
    while (!soon(ready, idle)) {
      std::unique_lock<std::mutex> lock(mutex_);
      asleep_.fetch_add(1);
      if (!ready()) woken_.wait(lock);
      asleep_.fetch_sub(1);
    }
  }

  void wake() {
    if (asleep_.load() == 0) return;
    { const std::lock_guard<std::mutex> lock(mutex_); }  // whoever has just counted itself sleeps, or looks again
    woken_.notify_all();
  }

 private:
  using Clock = std::chrono::steady_clock;
  // Longer than the pauses within a step, short enough to leave the processor to somebody else.
  static constexpr auto kAwake = std::chrono::microseconds(100);

  // Whether ready() became true while this thread was awake.
  template <class Ready, class Idle> static bool soon(const Ready& ready, const Idle& idle) {
    if (ready()) return true;
    const auto until = Clock::now() + kAwake;
    for (int turn = 1; turn % 64 || Clock::now() < until; turn++) {
      if (ready()) return true;
      if (idle()) continue;
      if (turn % 512 == 0) std::this_thread::yield();  // there may be fewer processors than threads
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
    return false;
  }

  alignas(64) std::atomic<int> asleep_{0};
  std::mutex mutex_;
  std::condition_variable woken_;
};

class Team {
 public:
  // The process's own; a forked child has one of its own, as threads stay with the parent.
  static Team& get() {
    static const int once = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
    (void)once;
    Team* team = current.load();
    if (!team) {
      Team* made = new Team;  // never deleted: its threads are there until the process ends
      if (current.compare_exchange_strong(team, made))
        team = made;
      else
        delete made;  // it has no threads yet
    }
    return *team;
  }

  // The right to have the team work, for as long as it lives; a thread that has it can take it again. They come in the
  // order in which they were asked for, so that no engine of a process waits long for another.
  class Turn {
   public:
    explicit Turn(Team& team) : team_(team), first_(!mine) {
      if (first_) begin();
    }
    ~Turn() {
      if (first_) end();
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

    // Between two pieces of work: lets others go first, if there are any and this has taken its share.
    void offer() {
      if (!first_ || team_.tickets_.load() == team_.serving_.load() + 1) return;
      if (std::chrono::steady_clock::now() - since_ < kShare) return;
      end();
      begin();
    }

   private:
    static constexpr auto kShare = std::chrono::milliseconds(5);

    void begin() {
      const uint32_t ticket = team_.tickets_.fetch_add(1);
      team_.turn_.wait([&] { return team_.serving_.load() == ticket; }, [] { return false; });
      mine = true;
      since_ = std::chrono::steady_clock::now();
    }
    void end() {
      mine = false;
      team_.serving_.fetch_add(1);
      team_.turn_.wake();
    }

    Team& team_;
    const bool first_;
    std::chrono::steady_clock::time_point since_;
    static inline thread_local bool mine = false;
  };

  // body(thread) on this thread, and on those of `threads - 1` others that come before it is done here: body must not
  // count on them. Who is late, asleep or kept from a processor by another program, is not waited for.
  //
  // Throws what a body has thrown, the first if several have, when all have ended.
  template <class Body> void run(int threads, const Body& body) {
    const Turn turn(*this);
    threads = std::min(threads, kMaxThreads);
    hire(threads - 1);
    job_ = [](const void* of, int thread) { (*static_cast<const Body*>(of))(thread); };
    body_ = &body;
    finished_.store(0);
    const uint64_t call = ((state_.load() >> 32) + 1) << 32;
    state_.store(call | uint64_t(threads - 1) << 16);
    work_.wake();
    attempt(0);
    const int joined = int(state_.exchange(call) & 0xffff);  // from now on nobody can join
    done_.wait([&] { return finished_.load() == joined; }, [&] { return ahead_[0].ask(); });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  // What a thread asks the cache for while it waits.
  struct Part {
    const char *first = nullptr, *second = nullptr;
    int64_t bytes = 0;  // of each
  };
  template <class PartOf> void aim(int threads, const PartOf& part_of) {
    for (int t = 0; t < std::min(threads, kMaxThreads); t++) {
      const Part part = part_of(t);
      ahead_[t].aim(part.first, part.second, part.bytes);
    }
  }

 private:
  Team() = default;

  // Has so many others, or throws std::system_error.
  void hire(int others) {
    if (others <= hired_) return;
    sigset_t all, before;  // signals are the main thread's, which may be asleep in a system call
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; hired_ < others; hired_++) {
        std::thread thread([this, me = hired_ + 1] { work(me); });
        pthread_setname_np(thread.native_handle(), "kvrt-team");
        thread.detach();
      }
    } catch (...) {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // Whether a call is open to a member who has seen calls up to `seen`.
  static bool open(uint64_t call, int me, uint32_t seen) {
    return me <= int(call >> 16 & 0xffff) && uint32_t(call >> 32) != seen;
  }

  void work(int me) {
    for (uint32_t seen = 0;;) {
      uint64_t call = 0;
      work_.wait([&] { return open(call = state_.load(), me, seen); }, [&] { return ahead_[me].ask(); });
      while (open(call, me, seen)) {
        if (!state_.compare_exchange_weak(call, call + 1)) continue;
        seen = uint32_t(call >> 32);
        attempt(me);
        finished_.fetch_add(1);
        done_.wake();
      }
    }
  }

  void attempt(int thread) {
    try {
      job_(body_, thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(erring_);
      if (!error_) error_ = std::current_exception();
    }
  }

  static inline std::atomic<Team*> current{nullptr};

  // A call's number, how many others it is open to, and how many of them have joined: 32, 16 and 16 bits. Who has
  // joined may look at job_ and body_, which stay until all who have are finished.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int> finished_{0};
  void (*job_)(const void* body, int thread) = nullptr;
  const void* body_ = nullptr;
  std::mutex erring_;
  std::exception_ptr error_;
  int hired_ = 0;

  alignas(64) std::atomic<uint32_t> tickets_{0};
  std::atomic<uint32_t> serving_{0};
  Waiting work_, done_, turn_;
  Ahead ahead_[kMaxThreads];
};

}  // namespace kvrt
