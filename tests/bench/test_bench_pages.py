"""What the page table costs in a step: no device, except for the batch.

    pytest tests/bench/test_bench_pages.py --benchmark-enable --benchmark-group-by=group

256 sequences of about 1,000 tokens, in pages as SmolLM2-135M has them (360 KiB for 16 tokens), over
chunks of 2 MiB. ``docs/design/page-table.md`` has the numbers that its decisions were made by.
"""

import random
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.executor.local import LocalPages
from kvrt.kv.cache import KVCache
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.table import Change, PageTable
from kvrt.registry import open_device
from kvrt.spi import Device, KVLayout

MIB = 1 << 20
SEQUENCES = 256
PAGES = 180_000
STEP = dict.fromkeys(range(SEQUENCES), 1)


def layout(layers: int = 30, head_dim: int = 64) -> KVLayout:
    return KVLayout.packed("bfloat16", layers=layers, kv_heads=3, head_dim=head_dim, page_size=16)


def geometry() -> Geometry:
    return Geometry(layout().page_bytes, 16, 2 * MIB, PAGES)


def done(change: object) -> PageTable:
    assert isinstance(change, Change)
    return change.table


def running(shape: Geometry, limit: int) -> PageTable:
    """Sequences in the middle of decoding: at every step, one in 16 needs a page."""
    rng = random.Random(0)
    table = PageTable.empty([Group(shape)], limit).table
    for seq in range(SEQUENCES):
        table = done(table.grow({seq: 1000 + seq % 16}))
    for seq in rng.sample(range(SEQUENCES), 64):  # as if they had come and gone for a while
        table = done(table.free(seq))
        table = done(table.grow({seq: rng.randint(900, 1100) // 16 * 16 + seq % 16}))
    return table


@pytest.fixture(scope="module")
def table() -> PageTable:
    shape = geometry()
    return running(shape, shape.chunks)


@pytest.mark.benchmark(group="page table: grow 256 sequences by a token")
def test_grow(benchmark: BenchmarkFixture, table: PageTable) -> None:
    benchmark(table.grow, STEP)


@pytest.mark.benchmark(group="page table: grow 256 sequences by a token")
def test_grow_where_all_have_forked(benchmark: BenchmarkFixture, table: PageTable) -> None:
    for seq in range(0, SEQUENCES, 2):
        table = done(table.free(seq + 1))
        table = done(table.fork(seq, seq + 1))
    table = done(table.grow(STEP))
    benchmark(table.grow, STEP)


@pytest.mark.benchmark(group="page table: one sequence")
def test_grow_by_a_prompt_of_2048(benchmark: BenchmarkFixture, table: PageTable) -> None:
    benchmark(table.grow, {"new": 2048})


@pytest.mark.benchmark(group="page table: one sequence")
def test_fork(benchmark: BenchmarkFixture, table: PageTable) -> None:
    benchmark(table.fork, 7, "child")


@pytest.mark.benchmark(group="page table: one sequence")
def test_free(benchmark: BenchmarkFixture, table: PageTable) -> None:
    benchmark(table.free, 7)


@pytest.mark.benchmark(group="page table: one sequence")
def test_truncate_by_a_page(benchmark: BenchmarkFixture, table: PageTable) -> None:
    benchmark(table.truncate, 7, table.length(7) - 16)


@pytest.mark.benchmark(group="page table: one sequence")
def test_free_pages(benchmark: BenchmarkFixture, table: PageTable) -> None:
    benchmark(lambda: table.free_pages)


# --- with a device ---------------------------------------------------------------------------


@pytest.fixture
def device() -> Iterator[Device]:
    device = open_device("cpu")
    yield device
    device.close()


@pytest.fixture
def cache(device: Device) -> Iterator[KVCache]:
    """Pages of 2 KiB, so that all of it is a few dozen MiB."""
    cache = KVCache(
        LocalPages(device, [layout(layers=1, head_dim=8)], PAGES), limit_bytes=128 * MIB
    )
    for seq in range(SEQUENCES):
        assert cache.commit(cache.table.grow({seq: 1000 + seq % 16})) is None
    yield cache
    cache.close()


@pytest.mark.benchmark(group="KV cache: decode step of 256")
def test_plan_commit_and_batch(benchmark: BenchmarkFixture, cache: KVCache) -> None:
    steps = iter(range(10**9))
    seqs, ones = list(range(SEQUENCES)), [1] * SEQUENCES

    def step() -> None:
        assert cache.commit(cache.table.grow(STEP)) is None
        cache.step(seqs, ones)
        cache.end_step(next(steps))

    benchmark.pedantic(step, rounds=500, warmup_rounds=10)


@pytest.mark.benchmark(group="KV cache: decode step of 256")
def test_batch_of_the_same_sequences(benchmark: BenchmarkFixture, cache: KVCache) -> None:
    benchmark(cache.step, list(range(SEQUENCES)), [1] * SEQUENCES)


@pytest.mark.benchmark(group="KV cache: decode step of 256")
def test_batch_when_one_sequence_left(benchmark: BenchmarkFixture, cache: KVCache) -> None:
    turns = iter(range(10**9))

    def batch() -> None:
        gone = next(turns) % SEQUENCES
        cache.step([seq for seq in range(SEQUENCES) if seq != gone], [1] * (SEQUENCES - 1))

    benchmark(batch)


@pytest.mark.benchmark(group="KV cache: a chunk's life")
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_grow_and_free_a_sequence_of_eight_chunks(
    benchmark: BenchmarkFixture, device: Device, warm: bool
) -> None:
    form = layout()
    cache = KVCache(
        LocalPages(device, [form], PAGES),
        limit_bytes=64 * MIB,
        keep_warm_bytes=warm * 32 * MIB,
    )
    tokens = 8 * device.info.granularity // form.page_bytes * form.page_size

    def live() -> None:
        assert cache.commit(cache.table.grow({"a": tokens})) is None
        assert cache.commit(cache.table.free("a")) is None
        cache.idle()

    benchmark(live)
    cache.close()
