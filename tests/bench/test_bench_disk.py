"""Pages to and from disk, beside what the disk itself can do.

    pytest tests/bench/test_bench_disk.py --benchmark-enable --benchmark-only -m ''

The disk's rate is that of reading or writing a file from its begin to its end, in pieces of 4 MiB,
past the page cache, with as many threads as are best; measured right before each round, from and
to the same memory. ``docs/design/tiers.md`` says what was chosen by such measurements.
"""

import mmap
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.kv.tiers.blockfile import BLOCK, Bytes
from kvrt.kv.tiers.disk import DiskStore, PageTicket
from kvrt.kv.tiers.files import DATA
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.names import StoredName, chain, fingerprint, root_key
from kvrt.kv.tiers.pagefile import PageFile

pytestmark = pytest.mark.extra  # it needs a disk that nobody else uses

FINGERPRINT = fingerprint(b"a model", "float32", "a layout")
TOTAL, MEMORY, PIECE = 512 << 20, 64 << 20, 4 << 20
ROUNDS = 5
PAGES = {"180 KiB": 180 << 10, "720 KiB": 720 << 10, "2 MiB": 2 << 20}
"""720 KiB: 16 tokens of SmolLM2-135M in float32; 180 KiB: in int8. 2 MiB: of Llama-3.1-8B, bf16."""


class Bench:
    """A file of pages, memory for some of them, and the rate of the disk under it."""

    def __init__(self, folder: Path, page_bytes: int) -> None:
        self.folder = folder
        self.form = PageFormat(FINGERPRINT, (page_bytes,), 16)
        count = TOTAL // page_bytes
        tokens = range(16 * count)
        self.names = [StoredName(name) for name in chain(root_key(FINGERPRINT), tokens, 16)]
        memory = np.frombuffer(mmap.mmap(-1, MEMORY), np.uint8)
        memory[:] = np.random.default_rng(0).integers(0, 256, MEMORY, np.uint8)
        self.pieces = [memory[at : at + PIECE] for at in range(0, MEMORY, PIECE)]
        slots = range(0, MEMORY - page_bytes, page_bytes)
        self.slots = [memory[at : at + page_bytes] for at in slots]
        self.nbytes = count * page_bytes

    def slot(self, n: int) -> Bytes:
        return self.slots[n % len(self.slots)]

    def disk_rate(self, call: Callable[..., int]) -> float:
        """Bytes per second of `os.preadv` or `os.pwritev`, one after the other."""
        return max(self._pass(call, threads) for threads in (1, 2, 4))

    def _pass(self, call: Callable[..., int], threads: int) -> float:
        file = os.open(self.folder / DATA, os.O_RDWR | os.O_DIRECT)
        size = min(TOTAL, os.fstat(file).st_size) // PIECE * PIECE
        turns = iter(range(size // PIECE))
        lock = threading.Lock()

        def serve() -> None:
            while True:
                with lock:
                    turn = next(turns, None)
                if turn is None:
                    return
                call(file, [self.pieces[turn % len(self.pieces)]], turn * PIECE)

        crew = [threading.Thread(target=serve) for _ in range(threads)]
        start = time.perf_counter()
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        os.close(file)
        return size / (time.perf_counter() - start)

    def open(self) -> DiskStore:
        return DiskStore(PageFile.open(self.folder, self.form))


@pytest.fixture(params=PAGES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, PAGES[request.param])
    store = bench.open()
    for n, name in enumerate(bench.names):
        store.store(name, bench.slot(n))
    assert store.close(60)
    yield bench
    (tmp_path / DATA).unlink()


@pytest.mark.benchmark(group="disk: 512 MiB of pages")
@pytest.mark.parametrize("order", ["in order", "shuffled"])
def test_fetch(benchmark: BenchmarkFixture, bench: Bench, order: str) -> None:
    rates, stores = [], []
    names = list(bench.names)
    if order == "shuffled":
        random.Random(0).shuffle(names)

    def setup() -> None:
        rates.append(bench.disk_rate(os.preadv))
        stores.append(bench.open())
        assert stores[-1].stats().direct, "the page cache would answer"

    def fetch() -> None:
        tickets = [stores[-1].fetch(name, bench.slot(n)) for n, name in enumerate(names)]
        wait(tickets)

    benchmark.pedantic(fetch, setup=setup, teardown=lambda: stores[-1].close(), rounds=ROUNDS)
    _record(benchmark, bench, rates, "read")


@pytest.mark.benchmark(group="disk: 512 MiB of pages")
def test_store(benchmark: BenchmarkFixture, bench: Bench) -> None:
    """Over pages that are removed, as in a tier that has reached its budget."""
    rates, stores = [], []

    def setup() -> None:
        stores.append(bench.open())
        for name in stores[-1].names():
            stores[-1].remove(name)
        stores[-1].close(60)
        rates.append(bench.disk_rate(os.pwritev))
        stores.append(bench.open())

    def store() -> None:
        tickets = [stores[-1].store(name, bench.slot(n)) for n, name in enumerate(bench.names)]
        wait(tickets)

    benchmark.pedantic(store, setup=setup, teardown=lambda: stores[-1].close(), rounds=ROUNDS)
    _record(benchmark, bench, rates, "write")


def wait(tickets: list[PageTicket]) -> None:
    """As an engine does: it looks now and then, and does not wake up for each page."""
    assert tickets[-1].wait(60)
    assert all(ticket.wait(60) and ticket.ok for ticket in tickets)


def _record(benchmark: BenchmarkFixture, bench: Bench, rates: list[float], verb: str) -> None:
    disk = statistics.median(rates)
    rate = bench.nbytes / benchmark.stats["median"]
    benchmark.extra_info["MiB per s"] = round(rate / 2**20)
    benchmark.extra_info[f"of sequential {verb} rate"] = round(rate / disk, 2)


@pytest.mark.benchmark(group="disk: open a folder")
def test_open_ten_thousand_pages(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    form = PageFormat(FINGERPRINT, (BLOCK,), 16)
    file = PageFile.open(tmp_path, form)
    for name in map(StoredName, chain(root_key(FINGERPRINT), range(160_000), 16)):
        file.write(name, np.zeros(BLOCK, np.uint8))
    file.close()

    def look() -> list[StoredName]:
        file = PageFile.open(tmp_path, form, writable=False)
        file.close()
        return file.names()

    assert len(benchmark.pedantic(look, rounds=ROUNDS)) == 10_000
