"""A service that is asked for minutes, by impatient clients, with memory that comes and goes.

pytest -m extra tests/runtime/test_soak.py            2 minutes
SOAK_MINUTES=30 pytest -m extra tests/runtime/test_soak.py
"""

import os
import random
import threading
import time
from pathlib import Path

import pytest

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.testing.host import Resources, physical_bytes

from .conftest import MakeRuntime, pages_in_use, until

MINUTES = float(os.environ.get("SOAK_MINUTES", "2"))
CHUNK = 2 << 20
CLIENTS = 6
PHASES = 6
"""After each all comes to rest. In the first three the allocator finds its size."""
GROWTH = 4 << 20
"""Bytes that may come in the second half: noise, and steps recorded for a new number of tokens."""

TOPICS = [[n * 7 % 199] * 64 + list(range(n, n + 40)) for n in range(12)]
"""What prompts begin with, so that pages are found again, evicted, moved and fetched."""


class Client(threading.Thread):
    """Asks, reads some of the answers, and loses its patience with others.

    Args:
        enough: ends it, between two requests.
        seed: of all that it does.
    """

    def __init__(self, runtime: Runtime, enough: threading.Event, seed: int) -> None:
        super().__init__(name=f"client {seed}")
        self._runtime = runtime
        self._enough = enough
        self._random = random.Random(seed)
        self.answered = self.aborted = 0
        self.errors: list[BaseException] = []

    def run(self) -> None:
        try:
            while not self._enough.is_set():
                self._ask()
        except BaseException as error:
            self.errors.append(error)

    def _ask(self) -> None:
        rng = self._random
        prompt = rng.choice(TOPICS)[: rng.randint(1, 104)]
        prompt = prompt + [rng.randrange(199) for _ in range(rng.randint(0, 150))]
        stream = self._runtime.stream(
            prompt, self._params(), cache_salt=rng.choice(("", "a")), private=rng.random() < 0.1
        )
        fate = rng.random()
        if fate < 0.01:
            self._runtime.abort(stream.request_id)
        elif fate < 0.06:  # a connection that is lost after some tokens
            for _ in range(rng.randint(0, 5)):
                next(stream, None)
            stream.close()
        result = stream.wait()
        if result.error is not None:
            raise result.error
        if result.finish_reason == "abort":
            self.aborted += 1
        else:
            self.answered += 1

    def _params(self) -> SamplingParams:
        rng = self._random
        new = rng.randint(1, 40)
        if rng.random() < 0.1:
            return SamplingParams(max_tokens=new, n=2, beam_width=3)
        count = rng.choice((1, 1, 1, 2, 3))
        return SamplingParams(
            max_tokens=new, n=count, temperature=float(count > 1), seed=rng.randrange(99),
            speculate=4 if rng.random() < 0.3 else 0,
        )  # fmt: skip


def disturb(runtime: Runtime, rng: random.Random, folder: Path) -> None:
    """What an operator does."""
    weights = runtime.model.weight_bytes
    act = rng.randrange(6)
    if act < 3:
        runtime.set_memory_limit(weights + rng.choice((8, 12, 20, 40)) * CHUNK)
    elif act == 3:
        runtime.save_cache(folder, compress=rng.choice((None, 1)))
    elif act == 4:
        runtime.invalidate(rng.choice(TOPICS))
    else:
        runtime.pin(rng.choice(TOPICS)[:32])
        runtime.invalidate(cache_salt="a")


def settled(runtime: Runtime) -> int:
    """Physical memory when all is at rest and nothing is kept for later."""
    for topic in TOPICS:
        runtime.unpin(topic[:32])
    until(lambda: not runtime.busy and not pages_in_use(runtime), seconds=60)
    runtime.invalidate()
    until(lambda: runtime.stats().cache.mapped_bytes <= CHUNK, seconds=60)
    return physical_bytes()


@pytest.mark.extra
@pytest.mark.timeout(60 * MINUTES + 480)
@pytest.mark.promise("P39")
def test_minutes_of_impatient_clients_leave_nothing_behind(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    runtime = make_runtime(
        memory_limit="512MiB", keep_warm=0, offload=f"host:16MiB,disk:{tmp_path / 'disk'}:64MiB",
        prefix_cache_ttl=5.0,
    )  # fmt: skip
    rng, totals, marks = random.Random(1), [0, 0], []
    for _ in range(PHASES):
        enough = threading.Event()
        clients = [Client(runtime, enough, rng.randrange(2**32)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        end = time.monotonic() + MINUTES * 60 / PHASES
        while time.monotonic() < end and not any(client.errors for client in clients):
            time.sleep(0.5)
            disturb(runtime, rng, tmp_path / "saved")
        enough.set()
        for client in clients:
            client.join(60)
            assert not client.is_alive(), "a client waits for ever"
            assert not client.errors, client.errors
            totals[0] += client.answered
            totals[1] += client.aborted
        runtime.set_memory_limit("512MiB")
        marks.append((settled(runtime), Resources.now()))
    assert totals[0] > 50 * MINUTES
    assert totals[1] > 0
    stats = runtime.stats()
    assert stats.offload is not None
    assert stats.offload.fetched_pages
    (half, _), (end_bytes, last) = marks[PHASES // 2 - 1], marks[-1]
    assert end_bytes - half < GROWTH, [nbytes for nbytes, _ in marks]
    assert last.threads == marks[0][1].threads
    assert last.descriptors == marks[0][1].descriptors
