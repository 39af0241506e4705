"""A process with little memory, in which a runtime answers requests that want more.

    python -m tests.runtime.squeezed GROUP MODEL watched|unwatched [DRAW]

It enters a control group, loads what it needs, and then limits the group to what it takes by then,
what the backend keeps in reserve, and `ROOM` more. Its requests want more than that for pages.
Meanwhile another process in the group takes up to `TAKEN`, and gives it back; requests go on until
it has had time to take all of that twice. A line of JSON says what became of them. The runtime is
greedy, or has the settings of a draw.
"""

import json
import logging
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self
from unittest import mock

import kvrt
from kvrt.engine.events import StepDone

from .groups import Group

ROOM = 160 << 20
RESERVE = 128 << 20
TAKEN = 240 << 20
AT_ONCE = 16 << 20
REQUESTS = 30
"""At once."""

NEW = 12
TURNS = 2 * TAKEN // AT_ONCE
GREEDY: dict[str, Any] = {"memory_limit": "900GiB", "keep_warm": 1 << 50, "max_batch_tokens": 4096}
DRAWN: dict[str, tuple[Any, ...]] = {
    "memory_limit": ("900GiB", None, "256MiB", "90%"),
    "keep_warm": (0, 8 << 20, 1 << 50),
    "max_batch_tokens": (16, 128, 512, 4096, 16384),
    "max_running": (1, 4, 256),
    "page_size": (4, 16, 64),
    "kv_cache_dtype": ("auto", "bfloat16", "int8", "fit"),
    "policy": ("fcfs", "priority"),
    "prefix_cache": (True, True, False),
    "prefix_cache_policy": ("lru", "lfu", "cost"),
    "offload": (None, None, "host:1GiB"),
    "preemption": ("auto", "recompute", "move"),
    "speculate": (None, None, "ngram:4"),
}
"""What a draw chooses from, of each setting that has to do with memory."""

TAKER = f"""
import mmap, sys
taken = []
for line in sys.stdin:
    if line == "take\\n":
        taken.append(mmap.mmap(-1, {AT_ONCE}))
        for at in range(0, {AT_ONCE}, mmap.PAGESIZE):
            taken[-1][at] = 1
    else:
        taken.pop().close()
    print(flush=True)
"""


class Neighbour:
    """Another process of the group, which takes `AT_ONCE` in a step or a tenth of a second,
    whichever is longer: between two steps alone can a runtime give anything back. While there are
    no steps, it gives back what it has."""

    def __init__(self, seed: int) -> None:
        self._draws = random.Random(seed)
        self._over, self._stepped = threading.Event(), threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", TAKER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._taken = 0
        self.turns = 0
        self._thread = threading.Thread(target=self._live, daemon=True)

    def observe(self, event: object) -> None:
        if isinstance(event, StepDone):
            self._stepped.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._process.communicate()

    def _live(self) -> None:
        while not self._over.wait(0.1):
            self.turns += 1
            stepped = self._stepped.is_set()
            self._stepped.clear()
            if stepped and self._draws.random() < 0.85 and self._taken < TAKEN:
                self._ask("take", AT_ONCE)
            elif self._taken:
                self._ask("give", -AT_ONCE)

    def _ask(self, what: str, more: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        self._process.stdout.readline()
        self._taken += more


def requests(draws: random.Random, room: int) -> tuple[list[list[int]], list[Any]]:
    """Prompts, and how each is answered: in so many tokens at most, both together."""
    prompts, params = [], []
    for _ in range(REQUESTS):
        length = max(1, min(draws.choice((1, 30, 150, 170)), room - NEW))
        prompts.append([draws.randrange(199) for _ in range(length)])
        wishes: list[dict[str, Any]] = [{}, {}, {}, {"n": 2}, {"beam_width": 2}]
        params.append(
            kvrt.SamplingParams(max_tokens=NEW, ignore_eos=True, seed=1, **draws.choice(wishes))
        )
    return prompts, params


def drawn(draw: int) -> dict[str, Any]:
    """Settings that are possible together."""
    draws = random.Random(draw)
    found = {name: draws.choice(values) for name, values in DRAWN.items()}
    if not found["prefix_cache"]:
        found["offload"] = None
    return found


def outcome(model: Path, settings: dict[str, Any]) -> dict[str, Any]:
    asked, answered, errors, draws = 0, 0, list[str](), random.Random(0)
    runtime = kvrt.Runtime(model, backend="cpu", load_format="dummy", seed=1, **settings)
    lowest = at_first = runtime.stats().cache.asked_bytes
    room = runtime.cache.capacity_tokens // 2  # for two answers, or beams
    with runtime, Neighbour(0) as neighbour:

        def observe(event: object) -> None:
            nonlocal lowest
            lowest = min(lowest, runtime.stats().cache.limit_bytes)

        runtime.add_observer(neighbour.observe)
        runtime.add_observer(observe)
        while neighbour.turns < TURNS:
            prompts, params = requests(draws, room)
            asked += len(prompts)
            for result in runtime.generate(prompts, params):
                if result.error is None:
                    answered += 1
                else:
                    errors.append(f"{type(result.error).__name__}: {result.error}")
        (last,) = runtime.generate([[1, 2, 3]], kvrt.SamplingParams(max_tokens=2))
        runtime.cache.check_integrity()
        return {
            "asked": asked,
            "answered": answered,
            "errors": errors,
            "still_answers": last.error is None,
            "lowered": lowest < at_first,
        }


def main() -> None:
    group, model, what = Group(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
    logging.disable(logging.CRITICAL)
    if what == "unwatched":
        for part in "assembly.make_pressure", "sizing.headroom":
            mock.patch(f"kvrt.engine.{part}", return_value=None).start()
    group.enter()
    with kvrt.Runtime(model, backend="cpu", load_format="dummy", seed=1) as runtime:
        runtime.generate([[1, 2, 3]], kvrt.SamplingParams(max_tokens=2, beam_width=2))
    group.limit(group.used() + RESERVE + ROOM)
    settings = drawn(int(sys.argv[4])) if len(sys.argv) > 4 else GREEDY
    try:
        said = outcome(model, settings)
    except kvrt.CapacityError as error:
        said = {"refused": str(error)}
    print(json.dumps({**said, "settings": settings}), flush=True)


if __name__ == "__main__":
    main()
