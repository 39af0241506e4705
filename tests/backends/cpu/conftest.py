"""What the tests of the CPU backend's memory share."""

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvrt_cpu.memory import LinuxMemory, PrivateMemory, ShareableMemory

from kvrt.spi import Span


@pytest.fixture
def private() -> Iterator[PrivateMemory]:
    memory = PrivateMemory()
    yield memory
    memory.close()


@pytest.fixture
def shareable() -> Iterator[ShareableMemory]:
    memory = ShareableMemory()
    yield memory
    memory.close()


@pytest.fixture(params=["private", "shareable"])
def memory(request: pytest.FixtureRequest) -> LinuxMemory:
    """Each of the two kinds."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def byte() -> Callable[[Span, int], ctypes.c_uint8]:
    """Makes one byte of a span readable and writable as ``.value``."""
    return lambda span, offset: ctypes.c_uint8.from_address(span.base + offset)


@pytest.fixture
def resident() -> Callable[[], int]:
    """Tells the bytes of physical memory this process holds, pages of mapped files not counted."""

    def count() -> int:
        gc.collect()
        rollup = Path("/proc/self/smaps_rollup").read_text()
        names = ("Anonymous", "Pss_Shmem")
        return 1024 * sum(int(rollup.partition(f"\n{name}:")[2].split()[0]) for name in names)

    return count


@pytest.fixture
def held(resident: Callable[[], int]) -> Callable[[LinuxMemory], int]:
    """Tells the physical memory in the chunks, as the operating system counts it."""

    def count(memory: LinuxMemory) -> int:
        if isinstance(memory, ShareableMemory):
            return os.fstat(memory.fd).st_blocks * 512
        return resident()

    return count
