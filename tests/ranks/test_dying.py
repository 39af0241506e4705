"""kill -9 of a rank at every point where it can be: all end within two seconds, by its name, and
nothing is left."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from kvrt.errors import DeviceError
from kvrt.ranks.link import Kind
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime, ranks_here, until

DYING = Path(__file__).parent / "dying"
END_S = 2.0
SAID = SamplingParams(max_tokens=40, ignore_eos=True)
PROMPTS = [[n, 8, 9] * 40 for n in range(12)]

RANKS = {
    "parts": {"tensor_parallel": 2},
    "stages": {"pipeline_parallel": 2},
    "both": {"tensor_parallel": 2, "pipeline_parallel": 2},
}
TOLD = [kind.name for kind in Kind if kind < Kind.DONE and kind is not Kind.UNDO]
POINTS = [
    *(f"{told}:1" for told in TOLD),
    "MEET:2", "ATTEMPT:3", "SETTLE:3", "STEP:2", "STEP:30",
    *(f"call:{number}" for number in (1, 2, 3, 4, 5, 6, 7, 13, 14, 40)),
]  # fmt: skip
DEFAULT = {("parts", "call:7")}
"""Of the cases those that always run."""


def cases() -> list[object]:
    return [
        pytest.param(
            RANKS[ranks], rank, point, id=f"{ranks}-{rank}-{point}",
            marks=[] if (ranks, point) in DEFAULT else [pytest.mark.extra],
        )
        for ranks in RANKS
        for rank in range(1, 4 if ranks == "both" else 2)
        for point in POINTS
    ]  # fmt: skip


@pytest.mark.parametrize(("ranks", "rank", "point"), cases())
def test_a_rank_that_is_killed_anywhere_ends_all_by_its_name(
    ranks: dict[str, int],
    rank: int,
    point: str,
    make_runtime: MakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{DYING}{os.pathsep}{before}" if before else str(DYING))
    monkeypatch.setenv("DIE_AT", f"{rank}:{point}")
    options = {"offload": "host:64MiB", "preemption": "move", "memory_limit": "24MiB"}
    with watching(rank) as died, pytest.raises(DeviceError) as raised:
        ask_until_it_ends(make_runtime(**options, **ranks), tmp_path)
    until(lambda: bool(died), END_S)
    assert time.monotonic() - died[0] < END_S
    assert f"rank {rank} " in str(raised.value)
    assert "SIGKILL" in str(raised.value)
    until(lambda: ranks_here() == [], END_S)


@contextmanager
def watching(rank: int) -> Iterator[list[float]]:
    """When a rank died: empty, as long as it lives."""
    died: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set() and len(ranks := ranks_here()) < rank:
            time.sleep(0.005)
        while not ended.is_set() and ranks[rank - 1].is_running():
            if ranks[rank - 1].status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.005)
        died.append(time.monotonic())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield died
    finally:
        ended.set()
        thread.join()


def ask_until_it_ends(runtime: Runtime, folder: Path) -> None:
    """Have it do all that ranks are told to do."""
    for number in range(4):
        results = runtime.generate(PROMPTS, SAID)
        for result in results:
            if result.error is not None:
                raise result.error
        runtime.save_cache(folder / str(number))
        runtime.sleep(1)
        runtime.wake()
