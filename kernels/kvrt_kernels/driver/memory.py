"""Virtual memory by a driver's own calls."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

import torch

from kvrt.errors import KvrtError, OutOfMemory
from kvrt.spi import Chunk, DType, MemoryInfo, Span
from kvrt_kernels.driver.calls import Calls, Handle
from kvrt_kernels.gpu import Place

Key = TypeVar("Key")
Value = TypeVar("Value")


@contextmanager
def forgotten(table: dict[Key, Value], key: Key) -> Iterator[Value]:
    """Take an entry out of a table while it is given back to a driver; put it back if that fails.

    In this order, since a driver may hand the same handle or address to another thread at once.
    """
    value = table.pop(key)
    try:
        yield value
    except BaseException:
        table[key] = value
        raise


class MappedMemory:
    """See `kvrt.spi.VirtualMemory`.

    Memory of this device that only this device can reach. What is unmapped must not be in use any
    more: a driver need not wait for the device.

    Args:
        index: the device's.
        calls: of the device.
        place: how torch sees its memory.
    """

    notes: tuple[str, ...] = ()
    """What a user should be told."""

    def __init__(self, index: int, calls: Calls, place: Place) -> None:
        self._index = index
        self._calls = calls
        self._place = place
        self.granularity = calls.granularity()
        self._spans: dict[int, Span] = {}
        self._bytes: dict[int, torch.Tensor] = {}  # the tensor of a span, by its base
        self._handles: dict[int, Handle] = {}
        self._mapped: set[int] = set()  # addresses

    def reserve(self, nbytes: int) -> Span:
        base = self._calls.reserve(nbytes, self.granularity)
        span = self._spans[base] = Span(base, nbytes)
        return span

    def release(self, span: Span) -> None:
        self._bytes.pop(span.base, None)
        with forgotten(self._spans, span.base):
            self._calls.release(span.base, span.nbytes)

    def create(self) -> Chunk:
        try:
            handle = self._calls.create(self.granularity)
        except OutOfMemory:
            # Torch may sit on memory that no tensor needs.
            if not self._place.give_back(self._index):
                raise
            handle = self._calls.create(self.granularity)
        self._handles[int(handle)] = handle
        return Chunk(int(handle))

    def destroy(self, chunk: Chunk) -> None:
        self._destroy(chunk.handle)

    def _destroy(self, handle: int) -> None:
        with forgotten(self._handles, handle) as held:
            self._calls.destroy(held)

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        address = span.base + at
        self._calls.map(address, self.granularity, self._handles[chunk.handle])
        self._mapped.add(address)
        try:
            self._calls.allow(address, self.granularity)
        except KvrtError:
            with suppress(KvrtError):  # the first failure is the one to tell
                self._unmap(address)
            raise

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        self._unmap(span.base + at)

    def _unmap(self, address: int) -> None:
        self._calls.unmap(address, self.granularity)
        self._mapped.remove(address)

    def tensor(self, span: Span, dtype: DType) -> torch.Tensor:
        whole = self._bytes.get(span.base)
        if whole is None:
            whole = self._place.wrap(span.base, span.nbytes, self._index)
            self._bytes[span.base] = whole
        kind: torch.dtype = getattr(torch, dtype)
        return whole.view(kind)

    def info(self) -> MemoryInfo:
        free, total = self._calls.memory_info()
        return MemoryInfo(total, free, len(self._handles) * self.granularity)

    def close(self) -> None:
        """Unmap, destroy and release what is left; what fails is left for another call.

        Raises:
            DeviceError: something could not be given back.
        """
        with ExitStack() as last_first:
            for span in list(self._spans.values()):
                last_first.callback(self.release, span)
            for handle in list(self._handles):
                last_first.callback(self._destroy, handle)
            for address in list(self._mapped):
                last_first.callback(self._unmap, address)
