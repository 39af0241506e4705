// Several callers that share a team, with sleeps between calls so that its threads fall asleep and are woken: each unit
// of work is done once, one call at a time, by no more threads than were asked for, and what a body throws arrives.
// Built with ThreadSanitizer by tests/kernels/test_team.py.
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "threads.h"

using namespace kvrt;

namespace {

std::atomic<int> wrong{0};

void check(bool right, const char* what) {
  if (right) return;
  if (wrong.fetch_add(1) == 0) std::printf("%s\n", what);
}

int calling = 0;  // by design only the caller whose turn it is writes it: no atomic, so that the sanitizer looks

void call(int caller, int round) {
  const int threads = 2 + (caller + round) % 4;
  const int64_t count = 1 + (17 * caller + 31 * round) % 200;
  std::vector<int> done(count, 0);
  const auto units = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) done[i]++;
  };
  runs(threads, count, units);
  for (int n : done) check(n == 1, "a unit of runs() was done more or less than once");
  each(threads, count, [&](int64_t i) { units(i, i + 1); });
  for (int n : done) check(n == 2, "a unit of each() was done more or less than once");

  Team::get().run(threads, [&](int thread) {
    check(thread < threads, "a thread took part that was not asked to");
    if (thread == 0) check(++calling == 1, "two callers had their turn at once"), --calling;
  });
  try {
    each(threads, count, [&](int64_t i) {
      if (i == count / 2) throw std::runtime_error("for the caller");
    });
    check(false, "what a body threw did not arrive");
  } catch (const std::runtime_error&) {
  }
}

// A longer turn with calls in it, as a recorded step is one.
void step(int caller, int round, const std::vector<char>& weights) {
  Team& team = Team::get();
  Team::Turn turn(team);
  for (int i = 0; i < 3; i++) {
    team.aim(3, [&](int thread) {
      return Team::Part{weights.data() + 64 * thread, round % 2 ? weights.data() : nullptr, int64_t(weights.size()) / 2};
    });
    call(caller, round + i);
    turn.offer();
  }
  team.aim(3, [](int) { return Team::Part{}; });
}

}  // namespace

int main() {
  constexpr int kCallers = 3, kRounds = 60;
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; c++)
    callers.emplace_back([c] {
      const std::vector<char> weights(1 << 14);
      for (int round = 0; round < kRounds; round++) {
        round % 3 ? call(c, round) : step(c, round, weights);
        if (round % 20 == c) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
  for (std::thread& caller : callers) caller.join();
  if (wrong == 0) std::printf("right\n");
  return wrong != 0;
}
