// Operators recorded once, to be computed again by one call.
#pragma once
#include <variant>
#include <vector>

#include "api.h"
#include "threads.h"

namespace kvrt {

// What threads do while they wait for others: each asks the cache for the weights it will multiply with next. The start
// of a product, when nothing has arrived yet, is then no time without traffic.
class Ahead {
 public:
  explicit Ahead(int threads) : cursors_(threads) {}

  // The product that comes next; called by one thread. It must stay where it is.
  void aim(const LinearArgs* next) { next_.store(next, std::memory_order_relaxed); }

  // A little of it, for one of the threads; false if there is nothing left to ask for.
  bool operator()(const Kernels& kernels, int thread, int threads) {
    const LinearArgs* next = next_.load(std::memory_order_relaxed);
    Cursor& cursor = cursors_[thread];
    if (next != cursor.of) cursor = next ? start(*next, kernels, thread, threads) : Cursor{};
    for (int i = 0; i < kLines && cursor.done < cursor.bytes; i++, cursor.done += 64)
      for (const char* part : {cursor.first, cursor.second})
        if (part) __builtin_prefetch(part + cursor.done, 0, 2);
    return cursor.done < cursor.bytes;
  }

 private:
  static constexpr int kLines = 4;
  static constexpr int64_t kBytes = 128 << 10;  // of each part: no more than a second-level cache has room for

  struct alignas(64) Cursor {
    const LinearArgs* of = nullptr;
    const char *first = nullptr, *second = nullptr;  // of a gated product: gate's rows and up's
    int64_t bytes = 0, done = 0;
  };

  // The part that runs() gives the thread first.
  static Cursor start(const LinearArgs& next, const Kernels& kernels, int thread, int threads) {
    const int64_t columns = kernels.linear_shape(next).columns, units = (next.n + columns - 1) / columns;
    const int64_t begin = units * thread / threads * columns, end = units * (thread + 1) / threads * columns;
    const Row first = row_of(next, int(begin));
    const char* second = next.gate == Gate::none ? nullptr : row_of(next, int(next.n + begin)).at;
    return {&next, first.at, second, std::min(kBytes, (end - begin) * first.bytes), 0};
  }

  std::atomic<const LinearArgs*> next_{nullptr};
  std::vector<Cursor> cursors_;
};

class Program {
 public:
  template <class Args> void add(const Args& args) { steps_.push_back(args); }

  // Computes all that was added, in order, each with the batch of its number in place of the recorded one.
  void run(const Kernels& kernels, const std::vector<Batch>& batches, int threads) const {
    Ahead ahead(threads);
    const auto idle = [&](int thread) { return ahead(kernels, thread, threads); };
    Team::lead(threads, idle, [&] {
      for (size_t i = 0, product = 0; i < steps_.size(); i++) {
        while (product < steps_.size() && (product <= i || !std::get_if<LinearArgs>(&steps_[product]))) product++;
        ahead.aim(product < steps_.size() ? std::get_if<LinearArgs>(&steps_[product]) : nullptr);
        std::visit(
            [&](auto args) {
              if constexpr (std::is_same_v<decltype(args), AttentionArgs> || std::is_same_v<decltype(args), AppendArgs>)
                args.batch = batches[args.batch.number];
              compute(kernels, args, threads);
            },
            steps_[i]);
      }
    });
  }

 private:
  using Step = std::variant<AttentionArgs, AppendArgs, LinearArgs, NormArgs>;
  std::vector<Step> steps_;
};

}  // namespace kvrt
