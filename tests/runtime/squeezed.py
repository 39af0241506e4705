"""A process with little memory, in which runtimes of any settings answer requests.

    python -m tests.runtime.squeezed GROUP MODEL SEED COUNT

It enters a control group, loads what it needs, and then limits the group to what it takes by then,
what the backend keeps in reserve, and `ROOM` more. Its requests want more than that for pages, and
as much to compute in, if all are in one step. Meanwhile somebody else in the group takes up to
`TAKEN`, and gives it back. A line of JSON says what became of each draw.
"""

import json
import logging
import mmap
import random
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import kvrt
from kvrt.engine.events import StepDone
from kvrt.errors import KvrtError

from .groups import Group

ROOM = 96 << 20
RESERVE = 128 << 20
TAKEN = 160 << 20
AT_ONCE = 16 << 20
OPTIONS: dict[str, tuple[Any, ...]] = {
    "max_batch_tokens": (64, 512, 20_000, 1_000_000),
    "max_running": (8, 256, 100_000),
    "max_model_len": (None, 1024, 200),
    "page_size": (1, 16, 128),
    "kv_cache_dtype": ("auto", "auto", "int8", "int4", "fit", "fit:8:int4"),
    "memory_limit": (None, "4MiB", "40MiB", "50%", "100%", "900GiB"),
    "keep_warm": (0, 8 << 20, 1 << 50),
    "prefix_cache": (True, True, False),
    "offload": (None, None, "host:64MiB", "host:900GiB", "disk"),
    "share": (None, None, "squeezed"),
    "speculate": (None, "ngram"),
    "threads": (1, None),
}


class Neighbour:
    """Takes memory, and gives it back: `AT_ONCE` in a step or a tenth of a second, whichever is
    longer. Between two steps alone can a runtime give anything back."""

    def __init__(self, seed: int) -> None:
        self._draws = random.Random(seed)
        self._over, self._stepped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def observe(self, event: object) -> None:
        if isinstance(event, StepDone):
            self._stepped.set()

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _live(self) -> None:
        taken: list[mmap.mmap] = []
        while not self._over.wait(0.1):
            if not self._stepped.is_set():
                continue
            self._stepped.clear()
            if self._draws.random() < 0.8 and len(taken) < TAKEN // AT_ONCE:
                taken.append(mmap.mmap(-1, AT_ONCE))
                for at in range(0, AT_ONCE, mmap.PAGESIZE):
                    taken[-1][at] = 1
            elif taken:
                taken.pop().close()


def requests(draws: random.Random) -> tuple[list[list[int]], list[Any]]:
    prompts, params = [], []
    for _ in range(50):
        length = draws.choice((1, 30, 150, 170))
        prompts.append([draws.randrange(199) for _ in range(length)])
        wishes: list[dict[str, Any]] = [{}, {}, {}, {"n": 2}, {"beam_width": 2}]
        params.append(
            kvrt.SamplingParams(max_tokens=12, ignore_eos=True, seed=1, **draws.choice(wishes))
        )
    return prompts, params


def outcome(model: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Of one draw of settings. Raises whatever is not an error that says what to do."""
    draws = random.Random(seed)
    options = {name: draws.choice(values) for name, values in OPTIONS.items()}
    if options["offload"] == "disk":
        options["offload"] = f"disk:{folder}:256MiB"
    if not options["prefix_cache"]:
        options["offload"] = None
    told: dict[str, Any] = {"options": options, "answered": 0, "refused": 0, "errors": []}
    try:
        runtime = kvrt.Runtime(model, backend="cpu", load_format="dummy", seed=1, **options)
    except KvrtError as error:
        return told | {"not_opened": str(error), "fix": error.fix}
    with runtime, Neighbour(seed) as neighbour:
        runtime.add_observer(neighbour.observe)
        prompts, params = requests(draws)
        for result in runtime.generate(prompts, params):
            if result.error is None:
                told["answered"] += 1
            else:
                told["refused"] += 1
                told["errors"].append(f"{type(result.error).__name__}: {result.error}")
        (last,) = runtime.generate([[1, 2, 3]], kvrt.SamplingParams(max_tokens=2))
        told["still_answers"] = last.error is None
        runtime.cache.check_integrity()
    return told


def main() -> None:
    group, model, seed, count = Group(Path(sys.argv[1])), Path(sys.argv[2]), *map(int, sys.argv[3:])
    logging.disable(logging.CRITICAL)
    group.enter()
    with tempfile.TemporaryDirectory() as folder:
        with kvrt.Runtime(model, backend="cpu", load_format="dummy", seed=1) as runtime:
            runtime.generate([[1, 2, 3]], kvrt.SamplingParams(max_tokens=2, beam_width=2))
        group.limit(group.used() + RESERVE + ROOM)
        for number in range(seed, seed + count):
            print(json.dumps(outcome(model, number, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
