// Operators recorded once, to be computed again by one call.
#pragma once
#include <optional>
#include <variant>
#include <vector>

#include "api.h"
#include "experts.h"
#include "low_rank.h"
#include "threads.h"

namespace kvrt {

class Program {
 public:
  template <class Args> void add(const Args& args) { steps_.push_back(args); }

  // Computes all that was added, in order, each with the batch of its number in place of the recorded one.
  void run(const Kernels& kernels, const std::vector<Batch>& batches, int threads) const {
    Team& team = Team::get();
    std::optional<Team::Turn> turn;
    if (threads > 1) turn.emplace(team);
    for (size_t i = 0, product = 0; i < steps_.size(); i++) {
      while (product < steps_.size() && (product <= i || !product_of(steps_[product]))) product++;
      if (turn) aim(team, kernels, product < steps_.size() ? product_of(steps_[product]) : nullptr, threads);
      std::visit(
          [&](auto args) {
            if constexpr (std::is_same_v<decltype(args), AttentionArgs> || std::is_same_v<decltype(args), AppendArgs>)
              args.batch = batches[args.batch.number];
            compute(kernels, args, threads);
          },
          steps_[i]);
      if (turn) turn->offer();
    }
  }

 private:
  using Step = std::variant<AttentionArgs, AppendArgs, LinearArgs, NormArgs, MapArgs, RouteArgs, ExpertArgs,
                            RotateArgs, HeadsArgs, AdaptedArgs>;

  static const LinearArgs* product_of(const Step& step) {
    const AdaptedArgs* adapted = std::get_if<AdaptedArgs>(&step);
    return adapted ? &adapted->product : std::get_if<LinearArgs>(&step);
  }

  // Whoever waits asks for the part of the next product that runs() gives it first.
  static void aim(Team& team, const Kernels& kernels, const LinearArgs* next, int threads) {
    if (!next) return team.aim(threads, [](int) { return Team::Part{}; });
    const int64_t columns = kernels.linear_shape(*next).columns, units = (next->n + columns - 1) / columns;
    team.aim(threads, [&](int thread) {
      const int64_t begin = units * thread / threads * columns, end = units * (thread + 1) / threads * columns;
      const Row first = row_of(*next, int(begin));
      const char* second = next->gate == Gate::none ? nullptr : row_of(*next, int(next->n + begin)).at;
      return Team::Part{first.at, second, (end - begin) * first.bytes};
    });
  }

  std::vector<Step> steps_;
};

}  // namespace kvrt
