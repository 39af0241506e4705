"""Whether `kvrt tune` finds as good a setting as a full grid, in a tenth of its runs.

    python -m tests.bench.tuning [--rounds N] [-p N] [-n N] [-b N] [MODEL]

Measures every setting of a grid so many times, in rounds, so that a machine that is slow for a
while is slow for all of them; lets the search have a tenth of these runs; and then measures what
each of both found in pairs, in turns. Prints the median of their ratios, and exits with 1 if it is
less than 0.95. Takes about ten minutes with the bundled model.
"""

import argparse
import itertools
import statistics
import sys
from typing import Any

from kvrt_cli.tuning.requests import load_of
from kvrt_cli.tuning.trials import Trials

from kvrt.config import RuntimeConfig
from kvrt.profiling.search import Knob, Search, Setting

KNOBS = (
    Knob("threads", (None, 1)),
    Knob("max_batch_tokens", (512, 32, 64, 128, 256)),
    Knob("page_size", (16, 4, 8, 32, 64)),
)
PAIRS = 11
LEAST = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tuning")
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-p", dest="prompt_tokens", type=int, default=96)
    parser.add_argument("-n", dest="new_tokens", type=int, default=16)
    parser.add_argument("-b", dest="batch", type=int, default=4)
    asked = parser.parse_args()
    config = RuntimeConfig(model=asked.model, memory_limit="1GiB", prefix_cache=False)

    def load(runtime: Any) -> Any:
        return load_of(runtime, None, vars(asked))

    with Trials(config, [knob.name for knob in KNOBS], load, exact=True) as trials:

        def measure(setting: Setting) -> float:
            return trials.measure(setting).score("throughput", ())

        measure(tuple(knob.values[0] for knob in KNOBS))  # the default comes first
        by_grid, runs = grid(measure, asked.rounds)
        search = Search(KNOBS, measure, runs // 10)
        search.run()
        ratios = []
        for number in range(PAIRS):
            pair = [search.best, by_grid]
            rates = [measure(setting) for setting in (pair if number % 2 else pair[::-1])]
            ratios.append(rates[0] / rates[1] if number % 2 else rates[1] / rates[0])
    ratio = statistics.median(ratios)
    print(f"grid: {by_grid} of {search.grid} settings, in {runs} runs")
    print(f"search: {search.best}, in {search.done} runs; noise {search.noise:.1%}")
    print(f"the search's is {ratio:.3f} times as fast: {', '.join(f'{r:.2f}' for r in ratios)}")
    sys.exit(ratio < LEAST)


def grid(measure: Any, rounds: int) -> tuple[Setting, int]:
    """The best of all settings by its median, and how many runs that took."""
    settings: list[Setting] = [*itertools.product(*(knob.values for knob in KNOBS))]
    rates: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for number in range(rounds):
        for setting in settings if number % 2 else settings[::-1]:
            rates[setting].append(measure(setting))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return max(settings, key=lambda each: statistics.median(rates[each])), rounds * len(settings)


if __name__ == "__main__":
    main()
