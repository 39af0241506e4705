"""Virtual memory over the Linux kernel's own: `PrivateMemory` by default, or `ShareableMemory`.

In both, a span is a range of addresses that may not be touched, and a chunk is 2 MiB of physical
memory taken from the system when it is created and given back when it is destroyed. Memory that
is not mapped is not readable: a stray read or write is SIGSEGV. The measurements behind the two
are in ``docs/design/cpu-memory.md``.
"""

import contextlib
import ctypes
import heapq
import os
import threading
import weakref
from typing import Final, TypeVar

import torch

from kvrt.errors import ContractError, DeviceError, KvrtError, OutOfMemory
from kvrt.spi import Capability, Chunk, DType, MemoryInfo, Span

from . import driver, host

GRANULARITY: Final = 2 << 20

_MAPPINGS_TO_SPARE = 4096
"""Memory mappings left for everyone else: when the last is gone, malloc and threads fail too."""

_TORCH_DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


_Memory = TypeVar("_Memory", "PrivateMemory", "ShareableMemory")


class _Slots:
    """Numbered places for chunks, the lowest free one first.

    So neighbours stay neighbours, and the kernel keeps one mapping for many of them.
    """

    def __init__(self, count: int) -> None:
        self.live = 0
        self._count = count
        self._next = 0
        self._free: list[int] = []
        self._lock = threading.Lock()

    def take(self) -> int:
        with self._lock:
            if not self._free and self._next == self._count:
                raise OutOfMemory(
                    f"all {self._count * GRANULARITY} bytes of memory are taken by chunks",
                    needed=GRANULARITY,
                )
            self.live += 1
            if self._free:
                return heapq.heappop(self._free)
            self._next += 1
            return self._next - 1

    def give(self, slot: int) -> None:
        with self._lock:
            heapq.heappush(self._free, slot)
            self.live -= 1


class _MappingBudget:
    """Stops `map` before the process has as many memory mappings as vm.max_map_count allows.

    One map or unmap adds at most two mappings: it may cut one into three. Counting them takes
    50 us to 10 ms, so we count again only when so many were done that we could be at the limit.
    """

    def __init__(self) -> None:
        self._left = 0
        self._lock = threading.Lock()

    def spend(self) -> None:
        with self._lock:
            self._left -= 1

    def require(self) -> None:
        with self._lock:
            if self._left <= 0:
                self._count()
            self._left -= 1

    def _count(self) -> None:
        count, limit = host.mappings()
        self._left = (limit - min(_MAPPINGS_TO_SPARE, limit // 2) - count) // 2
        if self._left <= 0:
            raise OutOfMemory(
                f"cannot map another chunk: the process has {count} memory mappings and"
                f" vm.max_map_count is {limit}",
                needed=GRANULARITY,
                fix=host.raise_map_count(limit),
            )


_open: "weakref.WeakSet[LinuxMemory]" = weakref.WeakSet()
"""Of this process: what one of them holds, another may be given."""


class LinuxMemory:
    """What both kinds share: spans, accounting, and the rule that a forked child keeps out."""

    def __init__(self) -> None:
        self.system = host.HostMemory()
        count = self.system.total() // GRANULARITY
        self._slots = _Slots(count)
        self._mappings = _MappingBudget()
        self._spans: dict[int, Span] = {}
        self._pid = os.getpid()
        # A chunk's own place, one for each that could exist; its handle tells which.
        self._home = self._reserve(count * GRANULARITY)
        _open.add(self)

    def reserve(self, nbytes: int) -> Span:
        self.require_owner()
        return self._reserve(nbytes)

    def _reserve(self, nbytes: int) -> Span:
        # The kernel aligns to 4 KiB: take one chunk more, then give back what sticks out.
        start = driver.reserve(nbytes + GRANULARITY)
        base = -(-start // GRANULARITY) * GRANULARITY
        if base > start:
            driver.unmap(start, base - start)
        driver.unmap(base + nbytes, start + GRANULARITY - base)
        span = Span(base, nbytes)
        self._spans[base] = span
        return span

    def release(self, span: Span) -> None:
        self.require_owner()
        # Forget it first: once unmapped, another thread may be given the same addresses.
        del self._spans[span.base]
        try:
            driver.unmap(span.base, span.nbytes)
        except KvrtError:
            self._spans[span.base] = span
            raise

    def tensor(self, span: Span, dtype: DType) -> torch.Tensor:
        self.require_owner()
        memory = (ctypes.c_uint8 * span.nbytes).from_address(span.base)
        return torch.frombuffer(memory, dtype=_TORCH_DTYPES[dtype])

    def info(self) -> MemoryInfo:
        own = self._slots.live
        elsewhere = sum(memory._slots.live for memory in [*_open]) - own
        others = self.system.others() + elsewhere * GRANULARITY
        return MemoryInfo(self.system.total(), self.system.free(), own * GRANULARITY, others)

    def close(self) -> None:
        _open.discard(self)
        # In a forked child there is nothing of ours, but perhaps something of its own.
        if os.getpid() == self._pid:
            for span in self._spans.values():
                driver.unmap(span.base, span.nbytes)
            self._spans.clear()
        self._pid = -1

    def require_owner(self) -> None:
        """Raise `ContractError` if the device is closed, or was opened by a parent process."""
        if os.getpid() == self._pid:
            return
        if self._pid == -1:
            raise ContractError("the cpu device is closed", fix="open it again")
        raise ContractError(
            f"the cpu device belongs to process {self._pid} and cannot be used in its forked"
            f" child {os.getpid()}",
            fix="open the device in the child, or start it by multiprocessing's spawn method",
        )

    def _require_free(self) -> None:
        if self.system.free(exact=False) >= GRANULARITY:
            return
        free = self.system.free()
        if free < GRANULARITY:
            raise OutOfMemory(
                f"no memory for another chunk of {GRANULARITY} bytes: {free} bytes are free after"
                f" a reserve of {host.RESERVE_BYTES}",
                needed=GRANULARITY,
                free=free,
                fix="lower --memory-limit, or end other programs",
            )


class PrivateMemory(LinuxMemory):
    """Chunks in anonymous memory, in huge pages where the system allows them.

        home   |  c0  |  ....  |  c2  |          created, not mapped
                          |
                          | mremap: the page-table entry moves, no byte is copied
                          v
        span   | hole |  c1  | hole   |

    Every chunk has a home, to which `unmap` moves it back, so it keeps its bytes. mremap with
    DONTUNMAP leaves the source mapped but empty and replaces the target in one step: at no time
    is there a gap where another thread's mmap could land. A chunk's handle is its home's address.

    Raises `DeviceError` with code EINVAL at the first use on Linux before 5.14.
    """

    capabilities: frozenset[Capability] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        home = self._home
        driver.advise(home.base, home.nbytes, driver.MADV_HUGEPAGE)
        # After a fork, the first write to a shared huge page would break it into small ones, for
        # good. The child may not use our memory anyway. The flag moves with a chunk.
        driver.advise(home.base, home.nbytes, driver.MADV_DONTFORK)

    def create(self) -> Chunk:
        self.require_owner()
        self._require_free()
        slot = self._slots.take()
        address = self._home.base + slot * GRANULARITY
        try:
            driver.allow_access(address, GRANULARITY)
            driver.advise(address, GRANULARITY, driver.MADV_POPULATE_WRITE)
        except KvrtError:
            driver.advise(address, GRANULARITY, driver.MADV_DONTNEED)
            self._slots.give(slot)
            raise
        return Chunk(address)

    def destroy(self, chunk: Chunk) -> None:
        self.require_owner()
        driver.advise(chunk.handle, GRANULARITY, driver.MADV_DONTNEED)
        self._slots.give((chunk.handle - self._home.base) // GRANULARITY)

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        self.require_owner()
        self._mappings.require()
        driver.move(chunk.handle, span.base + at, GRANULARITY)

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        self.require_owner()
        self._mappings.spend()
        place = span.base + at
        driver.move(place, chunk.handle, GRANULARITY)
        try:
            driver.clear(place, GRANULARITY)
        except KvrtError:
            driver.move(chunk.handle, place, GRANULARITY)
            raise


class ShareableMemory(LinuxMemory):
    """Chunks in a memory file, which may be mapped at several addresses and by other processes.

    A chunk's handle is its offset in the file `fd`.
    """

    capabilities = frozenset({Capability.ALIASING})

    def __init__(self) -> None:
        super().__init__()
        try:
            self.fd = driver.memory_file("kvrt", self._home.nbytes)
        except KvrtError:
            super().close()
            raise

    def create(self) -> Chunk:
        self.require_owner()
        self._require_free()
        slot = self._slots.take()
        offset = slot * GRANULARITY
        try:
            driver.allocate(self.fd, offset, GRANULARITY)
            # The kernel may have no huge page left, or not know the call (Linux before 6.1). Such
            # a chunk is slower and otherwise the same.
            with contextlib.suppress(DeviceError, OutOfMemory):
                self.make_huge(offset)
        except KvrtError:
            driver.punch(self.fd, offset, GRANULARITY)
            self._slots.give(slot)
            raise
        return Chunk(offset)

    def make_huge(self, offset: int) -> None:
        """Gather a chunk into one huge page.

        Shared memory has small pages unless the administrator says otherwise
        (``shmem_enabled``); this works whatever that setting is.
        """
        place = self._home.base + offset
        driver.map_file(place, GRANULARITY, self.fd, offset)
        try:
            driver.advise(place, GRANULARITY, driver.MADV_COLLAPSE)
        finally:
            driver.clear(place, GRANULARITY)

    def destroy(self, chunk: Chunk) -> None:
        self.require_owner()
        driver.punch(self.fd, chunk.handle, GRANULARITY)
        self._slots.give(chunk.handle // GRANULARITY)

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        self.require_owner()
        self._mappings.require()
        driver.map_file(span.base + at, GRANULARITY, self.fd, chunk.handle)

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        self.require_owner()
        self._mappings.spend()
        driver.clear(span.base + at, GRANULARITY)

    def close(self) -> None:
        if os.getpid() == self._pid:
            os.close(self.fd)
        super().close()


def open_memory(*, shareable: bool) -> tuple[PrivateMemory | ShareableMemory, tuple[str, ...]]:
    """The memory to use here, tried out with one chunk, and what a user should be told about it."""
    if not shareable:
        try:
            return _prove(PrivateMemory()), _private_notes()
        except DeviceError as error:
            if error.code != "EINVAL":
                raise
    memory = _prove(ShareableMemory())
    return memory, _shareable_notes(memory, asked_for=shareable)


def _prove(memory: _Memory) -> _Memory:
    """Put one chunk through its life, so that a kernel without a call is found out now."""
    try:
        span = memory.reserve(GRANULARITY)
        chunk = memory.create()
        memory.map(span, 0, chunk)
        memory.unmap(span, 0, chunk)
        memory.destroy(chunk)
        memory.release(span)
    except KvrtError:
        memory.close()
        raise
    return memory


def _private_notes() -> tuple[str, ...]:
    setting, nbytes = host.huge_pages()
    if setting == "never":
        return (
            "huge pages are off, so attention reads memory 13 to 21 % slower; fix: echo madvise |"
            " sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )
    if nbytes != GRANULARITY:
        return (f"huge pages of this system have {nbytes} bytes, chunks have {GRANULARITY}",)
    return ()


def _shareable_notes(memory: ShareableMemory, *, asked_for: bool) -> tuple[str, ...]:
    notes = []
    if not asked_for:
        notes.append(
            "chunks are shared memory: this kernel cannot move private memory (before 5.14)"
        )
    chunk = memory.create()
    try:
        memory.make_huge(chunk.handle)
    except (DeviceError, OutOfMemory) as error:
        notes.append(f"shared memory has small pages here ({error}): attention is slower")
    memory.destroy(chunk)
    return tuple(notes)
