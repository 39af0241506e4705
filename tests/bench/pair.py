"""The same benchmarks in this tree and at another commit, in turns on one machine.

    ci/pair COMMIT [--rounds N] [arguments of pytest, such as -k "model or kernels"]

The other commit is taken to ``build/pair`` and installed there as ``make test`` does. Each round
runs both, and who was first in one is second in the next. Prints, for each benchmark that both
have, how many times as long it takes here: by the shortest time of all rounds, which other programs
disturb least, and by the medians of the same round, of which it is the median.
"""

import argparse
import json
import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAIRS = ROOT / "build/pair"


class Times(NamedTuple):
    """Of one benchmark in one round, in seconds."""

    shortest: float
    median: float


Round = dict[str, Times]


class Ratio(NamedTuple):
    """How many times as long a benchmark takes here as there."""

    name: str
    shortest: float
    median: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="ci/pair", description="Compare with another commit.")
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=3)
    asked, arguments = parser.parse_known_args()
    trees = (ROOT, install(asked.commit))
    found: tuple[list[Round], list[Round]] = ([], [])
    for number in range(asked.rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            found[which].append(run(trees[which], arguments))
    print("\n".join(table(ratios(*found))))


def install(commit: str) -> Path:
    """A folder with that commit, installed."""
    named = ["git", "rev-parse", "--short=12", f"{commit}^{{commit}}"]
    name = subprocess.run(named, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tree = PAIRS / name.strip()
    if not tree.exists():
        tree.mkdir(parents=True)
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=-1).stdout
        subprocess.run(["tar", "-x", "-C", tree], input=packed, check=True)
    made = ["make", "-C", tree, "VENV=.venv", ".venv/installed-dev"]
    subprocess.run(made, check=True, stdout=sys.stderr)
    return tree


def run(tree: Path, arguments: list[str]) -> Round:
    """One round of one tree. Benchmarks that fail are not in it."""
    result = PAIRS / "bench.json"
    result.unlink(missing_ok=True)
    print(f"=== {tree}", file=sys.stderr)
    subprocess.run(
        [".venv/bin/pytest", "-q", "tests/bench", "-m", "", "--benchmark-enable",
         "--benchmark-only", f"--benchmark-json={result}", *arguments],
        cwd=tree, check=False, stdout=sys.stderr,
    )  # fmt: skip
    if not result.exists():
        sys.exit(f"no benchmark ran in {tree}")
    benches = json.loads(result.read_text())["benchmarks"]
    return {
        f"{kind_of(bench['group'])}: {bench['name']}": Times(
            bench["stats"]["min"], bench["stats"]["median"]
        )
        for bench in benches
    }


def kind_of(name: str) -> str:
    """What a group's name, and a benchmark's here, begins with."""
    return name.partition(":")[0]


def ratios(here: list[Round], there: list[Round]) -> list[Ratio]:
    """Of the benchmarks that all rounds have, by name."""
    common = set.intersection(*(set(times) for times in (*here, *there)))
    return [
        Ratio(
            name,
            min(times[name].shortest for times in here)
            / min(times[name].shortest for times in there),
            median(
                mine[name].median / other[name].median
                for mine, other in zip(here, there, strict=True)
            ),
        )
        for name in sorted(common)
    ]


def table(found: list[Ratio]) -> list[str]:
    """A row for each benchmark, and for each kind of them."""
    kinds: dict[str, list[Ratio]] = defaultdict(list)
    for ratio in found:
        kinds[kind_of(ratio.name)].append(ratio)
    means = [
        Ratio(
            f"all {len(of)} of {kind}",
            math.exp(sum(math.log(ratio.shortest) for ratio in of) / len(of)),
            math.exp(sum(math.log(ratio.median) for ratio in of) / len(of)),
        )
        for kind, of in sorted(kinds.items())
    ]
    return [
        "| benchmark | shortest | median |",
        "| --- | --- | --- |",
        *(f"| {name} | {shortest:.3f} | {middle:.3f} |" for name, shortest, middle in found),
        *(f"| {name} | {shortest:.3f} | {middle:.3f} |" for name, shortest, middle in means),
    ]


if __name__ == "__main__":
    main()
