"""What one chunk of 2 MiB costs on the CPU, beside the bare system calls.

    pytest tests/bench/test_bench_memory.py --benchmark-enable --benchmark-group-by=group

One column a way: the two kinds of memory, the checked memory that the core uses, and the system
calls that the private kind is made of. ``docs/design/cpu-memory.md`` says why it is made of them.
"""

from collections.abc import Iterator

import pytest
from kvrt_cpu import driver
from kvrt_cpu.memory import GRANULARITY, PrivateMemory, ShareableMemory

from kvrt.spi import Chunk, DeviceInfo, Span, VirtualMemory
from kvrt.wrappers.memory import CheckedMemory
from kvrt.wrappers.rules import Facts

ROUNDS = 64


class SystemCalls:
    """`PrivateMemory` with nothing but its system calls: one span, no accounting, no checks."""

    def __init__(self) -> None:
        self._home = self._addresses()
        driver.advise(self._home.base, self._home.nbytes, driver.MADV_HUGEPAGE)
        driver.allow_access(self._home.base, self._home.nbytes)
        self._free = [self._home.base + n * GRANULARITY for n in range(ROUNDS)]
        self._span = self._addresses()

    def _addresses(self) -> Span:
        nbytes = (ROUNDS + 1) * GRANULARITY
        start = driver.reserve(nbytes)
        return Span(-(-start // GRANULARITY) * GRANULARITY, nbytes - GRANULARITY)

    def reserve(self, nbytes: int) -> Span:
        return self._span

    def create(self) -> Chunk:
        address = self._free.pop()
        driver.advise(address, GRANULARITY, driver.MADV_POPULATE_WRITE)
        return Chunk(address)

    def destroy(self, chunk: Chunk) -> None:
        driver.advise(chunk.handle, GRANULARITY, driver.MADV_DONTNEED)
        self._free.append(chunk.handle)

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        driver.move(chunk.handle, span.base + at, GRANULARITY)

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        driver.move(span.base + at, chunk.handle, GRANULARITY)
        driver.clear(span.base + at, GRANULARITY)

    def close(self) -> None:
        for span in (self._home, self._span):
            driver.unmap(span.base, span.nbytes)


WAYS = {"system calls": SystemCalls, "private": PrivateMemory, "shareable": ShareableMemory}


@pytest.fixture(params=[*WAYS, "private, checked"])
def memory(request: pytest.FixtureRequest) -> Iterator[VirtualMemory]:
    way, _, checked = request.param.partition(", ")
    memory = WAYS[way]()
    # The first use of memory that a virtual machine's host has not given yet takes ten times as
    # long, which is not what is measured.
    for chunk in [memory.create() for _ in range(ROUNDS)]:
        memory.destroy(chunk)
    if checked:
        info = DeviceInfo(
            backend="cpu",
            index=0,
            name="",
            arch="",
            total_bytes=0,
            granularity=GRANULARITY,
            torch_device="cpu",
            compute_dtypes=("float32",),
            weight_dtypes=("float32",),
            kv_formats=("float32",),
        )
        yield CheckedMemory(Facts(info), memory)
    else:
        yield memory
    memory.close()


def places(memory):
    """A function that gives the next place of a span, and a chunk for it, at each call."""
    span = memory.reserve(ROUNDS * GRANULARITY)
    turns = iter(enumerate([memory.create() for _ in range(ROUNDS)]))

    def turn():
        number, chunk = next(turns)
        return (span, number * GRANULARITY, chunk), {}

    return turn


@pytest.mark.benchmark(group="memory: create a chunk")
def test_create(benchmark, memory):
    chunks = []
    benchmark.pedantic(lambda: chunks.append(memory.create()), rounds=ROUNDS)


@pytest.mark.benchmark(group="memory: destroy a chunk")
def test_destroy(benchmark, memory):
    chunks = [memory.create() for _ in range(ROUNDS)]
    benchmark.pedantic(lambda: memory.destroy(chunks.pop()), rounds=ROUNDS)


@pytest.mark.benchmark(group="memory: map a chunk")
def test_map(benchmark, memory):
    benchmark.pedantic(memory.map, setup=places(memory), rounds=ROUNDS)


@pytest.mark.benchmark(group="memory: unmap a chunk")
def test_unmap(benchmark, memory):
    turn = places(memory)

    def mapped():
        arguments, options = turn()
        memory.map(*arguments)
        return arguments, options

    benchmark.pedantic(memory.unmap, setup=mapped, rounds=ROUNDS)


@pytest.mark.benchmark(group="memory: map and unmap a pooled chunk")
def test_map_and_unmap_a_pooled_chunk(benchmark, memory):
    span = memory.reserve(GRANULARITY)
    chunk = memory.create()

    def turn():
        memory.map(span, 0, chunk)
        memory.unmap(span, 0, chunk)

    benchmark(turn)


@pytest.mark.benchmark(group="memory: look at what is free")
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "quick"])
def test_free_memory(benchmark, exact):
    memory = PrivateMemory()
    benchmark(lambda: memory.system.free(exact=exact))
    memory.close()
