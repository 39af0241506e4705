"""What is promised to those who share, as numbers: two and three processes with the bundled model.

Memory is 60 % of what all could use, so that it is scarce.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kvrt.sharing.tenant import NotLeased, Tenant, Terms, tenants_of
from kvrt.units import MIB

from .engine import SHARE, Done, Engine, Job
from .watch import Watch

CHUNK = 2 * MIB
WEIGHTS = 8 * MIB
"""About those of the bundled model, in whole chunks."""

PAGE, TOKENS = 32 << 10, 16
"""Bytes of a page, and its tokens."""

ENGINES = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the table.

    Args:
        what: was measured.
        value: as people read it.
        goal: what it should be.
        good: whether it is.
    """

    what: str
    value: str
    goal: str
    good: bool


def measured(*, quick: bool = False) -> str:
    """Markdown."""
    lines = ["| what | measured | goal | |", "| --- | ---: | ---: | --- |"]
    for found in findings(quick=quick):
        cells = (found.what, found.value, found.goal, "" if found.good else "missed")
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def findings(*, quick: bool) -> Iterator[Finding]:
    """All lines. `quick`: with less to do, so that averages say little."""
    for count in (2,) if quick else (2, 3):
        yield from alike(count, requests=24 if quick else 96)
    yield from weighted(requests=64 if quick else 128)
    yield from guaranteed(seconds=2 if quick else 10)
    yield from killed()
    yield from starting(3 if quick else ENGINES)


def demand(job: Job) -> int:
    """Bytes that its requests could use at once."""
    return job.count * -(-(job.prompt + job.answer) // TOKENS) * PAGE


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness (Jain, Chiu and Hawe, 1984): 1 where all have the same."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def alike(count: int, requests: int) -> Iterator[Finding]:
    """Some with as much to do at once."""
    job = Job(requests)
    size = count * WEIGHTS + _whole(0.6 * count * demand(job))
    with _Room() as room:
        engines = room.engines(count, size)
        with Watch(room.path) as watch:
            done = _all([engine.ask(job) for engine in engines])
    rates = [one.tokens / one.seconds for one in done]
    yield from _kept(f"{count} at once", watch, done)
    index = jain(rates)
    yield Finding(
        f"{count} at once: Jain's index of tokens/s", f"{index:.3f}", "0.95", index > 0.95
    )


def weighted(requests: int) -> Iterator[Finding]:
    """Two who could use all of it, of which one weighs three times as much."""
    job = Job(requests, prompt=512)
    size = _whole(max(0.6 * demand(job), 10 * WEIGHTS))
    with _Room() as room:
        heavy, light = room.engines(1, size, weight=3.0) + room.engines(1, size)
        with Watch(room.path) as watch:
            begin = time.monotonic()
            running = [engine.ask(job) for engine in (heavy, light)]
            wait(running, return_when="FIRST_COMPLETED")
            end = time.monotonic()
            done = _all(running)
    held = watch.shares(begin + 0.4 * (end - begin), begin + 0.8 * (end - begin))
    ratio = held[heavy.pid] / held[light.pid]
    yield from _kept("weights of 3 and 1", watch, done)
    yield Finding("weights of 3 and 1: held", f"{ratio:.2f} : 1", "2.7 to 3.3", 2.7 <= ratio <= 3.3)


def guaranteed(seconds: float) -> Iterator[Finding]:
    """One has a guarantee and requests one after the other, while another could use all."""
    burst, each = Job(64, seconds=seconds), Job(1, answer=4, one_by_one=True, seconds=seconds)
    size, guarantee = _whole(2 * WEIGHTS + 0.6 * demand(burst)), WEIGHTS + 3 * CHUNK
    with _Room() as room:
        owner = room.engines(1, size, guarantee=guarantee)[0]
        greedy = room.engines(1, size)[0]
        owner.ask(each).result()
        alone = owner.ask(each).result()
        with Watch(room.path) as watch:
            running = greedy.ask(burst)
            beside = owner.ask(each).result()
            both = running.result()
        most = max(sample.held.get(greedy.pid, 0) for sample in watch.samples)
    ratio = _p99(beside.first) / _p99(alone.first)
    yield from _kept("a guarantee", watch, [alone, beside, both])
    yield Finding(
        "a guarantee: p99 to the first token beside a burst, over alone",
        f"{ratio:.2f} ({_p99(alone.first) * 1e3:.1f} ms alone)",
        "1.2",
        ratio <= 1.2,
    )
    part = most / (size - guarantee)
    goal = "95 to 100 %"
    yield Finding("a guarantee: the other has of the rest", f"{part:.1%}", goal, 0.95 <= part <= 1)


def killed() -> Iterator[Finding]:
    """One that holds almost everything is killed, and another wants it."""
    size = WEIGHTS + 32 * MIB
    with _Room() as room:
        engine = room.engines(1, size)[0]
        engine.ask(Job(64))
        heir = Tenant(room.path, None, Terms("heir"))
        try:
            while (held := _held(room.path, engine.pid)) < 0.9 * size:
                time.sleep(0.001)
            begin = time.monotonic()
            engine.kill()
            while True:
                try:
                    heir.take(held)
                    break
                except NotLeased:
                    time.sleep(0.0005)
            seconds = time.monotonic() - begin
        finally:
            heir.close()
    goal = "below 100 ms"
    yield Finding(
        "kill -9: what it held is another's after", f"{seconds * 1e3:.1f} ms", goal, seconds < 0.1
    )


def starting(count: int) -> Iterator[Finding]:
    """Many start at once, in a share that they fill."""
    size = count * WEIGHTS + count * 2 * CHUNK
    with _Room() as room, Watch(room.path) as watch:
        engines = room.engines(count, size)
        done = _all([engine.ask(Job(4)) for engine in engines])
    yield from _kept(f"{count} that start at once", watch, done)


def _kept(what: str, watch: Watch, done: Sequence[Done]) -> Iterator[Finding]:
    """What holds in every case: no request fails, and nobody has more than is leased."""
    failed = sum(one.failed for one in done)
    count = sum(len(one.first) for one in done)
    yield Finding(f"{what}: failed requests", f"{failed} of {count}", "0", failed == 0)
    part = watch.most / watch.total
    yield Finding(f"{what}: held at most, of all", f"{part:.1%}", "100 %", part <= 1)
    over = watch.over / MIB
    yield Finding(
        f"{what}: more than the ledger says, by the system",
        f"{over:.1f} MiB", "one chunk, 2 MiB", watch.over <= CHUNK,
    )  # fmt: skip


class _Room:
    """A folder for a ledger, and processes that end with it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self.path = Path(self._folder) / f"{SHARE}.cpu0"

    def engines(self, count: int, size: int, **terms: object) -> list[Engine]:
        """So many, started at once; all are ready."""
        made = [Engine(self._folder, size, **terms) for _ in range(count)]
        for engine in made:
            self._stack.enter_context(engine)
        return [engine.ready() for engine in made]

    def __enter__(self) -> "_Room":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _held(path: Path, pid: int) -> int:
    return sum(row.claim.held for row in tenants_of(path)[1] if row.pid == pid)


def _all(running: Sequence[Future[Done]]) -> list[Done]:
    return [one.result() for one in running]


def _p99(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def _whole(nbytes: float) -> int:
    return int(nbytes) // CHUNK * CHUNK
