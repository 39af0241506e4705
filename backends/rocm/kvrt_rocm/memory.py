"""Where ROCm maps memory in ways of its own.

- hipMemMap may report success and have mapped nothing, so the access is asked for afterwards.
- hipMemUnmap of what is not mapped follows a null pointer, so only what was seen to be mapped is
  unmapped.
- Memory may come back only with the address range it was mapped in, see `_try_returning`.
- hipMemMap and hipMemUnmap wait for the null stream.
- Memory is only ever the device's, never the host's.
"""

from contextlib import suppress

from kvrt_kernels.driver.memory import MappedMemory, forgotten
from kvrt_kernels.gpu import Place

from kvrt.errors import DeviceError, KvrtError, OutOfMemory
from kvrt.spi import Chunk, MemoryInfo, Span

from .calls import RocmCalls

KEEPS_MEMORY = (
    "this ROCm gives memory back only with the address range it was mapped in: the KV cache grows,"
    " but shrinks only when it is closed; fix: update ROCm"
)
TRIED = 16 << 20
"""Bytes mapped and released at opening, to see whether they come back."""


class RocmMemory(MappedMemory):
    """See `MappedMemory`.

    Where memory comes back only with its address range, a destroyed chunk is kept for the next
    `create` instead, until the spans that it was mapped in are released. So nothing is lost, but
    nothing shrinks while a span lives; `notes` says so.

    Args:
        index: the device's.
        calls: of the device.
        place: how torch sees its memory.
    """

    _calls: RocmCalls

    def __init__(self, index: int, calls: RocmCalls, place: Place) -> None:
        super().__init__(index, calls, place)
        self._kept: list[int] = []  # handles of destroyed chunks
        self._been: dict[int, set[int]] = {}  # the spans' bases where a chunk was mapped, by handle
        self._returns = True
        try:
            self._returns = self._try_returning()
        except KvrtError:
            self.close()
            raise
        if not self._returns:
            self.notes = (KEEPS_MEMORY,)

    def release(self, span: Span) -> None:
        super().release(span)
        for been in list(self._been.values()):
            been.discard(span.base)
        with suppress(KvrtError):  # the span is released; what fails here is kept a while longer
            self._destroy_kept()

    def create(self) -> Chunk:
        try:
            return Chunk(self._kept.pop())
        except IndexError:
            pass
        chunk = super().create()
        self._been[chunk.handle] = set()
        return chunk

    def destroy(self, chunk: Chunk) -> None:
        if self._been[chunk.handle]:
            self._kept.append(chunk.handle)
        else:
            self._destroy(chunk.handle)

    def _destroy(self, handle: int) -> None:
        with forgotten(self._been, handle):
            super()._destroy(handle)

    def _destroy_kept(self) -> None:
        """Give back the kept chunks that no span holds any more."""
        for handle in list(self._kept):
            try:
                self._kept.remove(handle)
            except ValueError:  # another thread has taken it meanwhile
                continue
            if self._been[handle]:
                self._kept.append(handle)
                continue
            try:
                self._destroy(handle)
            except KvrtError:
                self._kept.append(handle)
                raise

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        address = span.base + at
        self._calls.map(address, self.granularity, self._handles[chunk.handle])
        try:
            self._calls.allow(address, self.granularity)
            allowed = self._calls.allowed(address)
        except KvrtError:
            with suppress(KvrtError):  # the first failure is the one to tell
                # If access cannot be asked for, nothing is mapped, and unmapping would be fatal.
                self._calls.allowed(address)
                self._mapped.add(address)
                self._unmap(address)
            raise
        if not allowed:
            raise DeviceError(
                f"hipMemMap at {address:#x} reported success and mapped nothing",
                call="hipMemMap",
                code="hipSuccess",
            )
        self._mapped.add(address)
        if not self._returns:
            self._been[chunk.handle].add(span.base)

    def info(self) -> MemoryInfo:
        info = super().info()
        kept = len(self._kept) * self.granularity
        return MemoryInfo(info.total, info.free + kept, info.chunks - kept)

    def _try_returning(self) -> bool:
        """Whether unmapped, destroyed chunks come back while their address range is reserved.

        They do not in some versions of ROCm, and no version number tells. If the device is too
        full to try, they are taken not to.
        """
        count = TRIED // self.granularity
        try:
            span = self.reserve(count * self.granularity)
            chunks = [self.create() for _ in range(count)]
        except OutOfMemory:
            self.close()
            return False
        for n, chunk in enumerate(chunks):
            self.map(span, n * self.granularity, chunk)
        before = self.info().free
        for n, chunk in enumerate(chunks):
            self.unmap(span, n * self.granularity, chunk)
            self.destroy(chunk)
        after = self.info().free
        self.release(span)
        return after - before > TRIED // 2

    def close(self) -> None:
        self._kept.clear()
        super().close()
