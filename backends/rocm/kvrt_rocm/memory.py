"""Virtual memory by the runtime's own calls: hipMemAddressReserve, hipMemCreate, hipMemMap.

    reserve  hipMemAddressReserve                           release  hipMemAddressFree
    create   hipMemCreate                                   destroy  hipMemRelease
    map      hipMemMap, hipMemSetAccess, hipMemGetAccess    unmap    hipMemUnmap

Where ROCm has ways of its own:

- hipMemMap may report success and have mapped nothing, so the access is asked for afterwards.
- hipMemUnmap of what is not mapped follows a null pointer, so only what was seen to be mapped is
  unmapped.
- Memory may come back only with the address range it was mapped in, see `_try_returning`.
- hipMemMap and hipMemUnmap wait for the null stream.
- Memory is only ever the device's, never the host's.
"""

from contextlib import ExitStack, suppress
from typing import Any

import torch
from kvrt_kernels.gpu import Place, forgotten

from kvrt.errors import DeviceError, KvrtError, OutOfMemory
from kvrt.spi import Chunk, DType, MemoryInfo, Span

from . import calls
from .calls import Context, call

CHUNK = 2 << 20
"""Bytes of a chunk at least: the runtime may allow 4 KiB, for which a call takes as long."""
KEEPS_MEMORY = (
    "this ROCm gives memory back only with the address range it was mapped in: the KV cache grows,"
    " but shrinks only when it is closed; fix: update ROCm"
)
TRIED = 16 << 20
"""Bytes mapped and released at opening, to see whether they come back."""


class RocmMemory:
    """See `kvrt.spi.VirtualMemory`.

    Memory of this device that only this device can reach. What is unmapped must not be in use any
    more.

    Where memory comes back only with its address range, a destroyed chunk is kept for the next
    `create` instead, until the spans that it was mapped in are released. So nothing is lost, but
    nothing shrinks while a span lives; `notes` says so.

    Args:
        index: the device's.
        context: the device, for the runtime.
        place: how torch sees its memory.
        shareable: let chunks be exported to other processes.
    """

    def __init__(self, index: int, context: Context, place: Place, *, shareable: bool) -> None:
        self._index = index
        self._context = context
        self._place = place
        self._properties = calls.allocation_of(index, shareable=shareable)
        self._access = calls.access_by(index)
        smallest = call("hipMemGetAllocationGranularity", self._properties, calls.RECOMMENDED)
        self.granularity: int = max(CHUNK, smallest)
        self._spans: dict[int, Span] = {}
        self._bytes: dict[int, torch.Tensor] = {}  # the tensor of a span, by its base
        self._handles: dict[int, Any] = {}
        self._mapped: set[int] = set()  # addresses
        self._kept: list[int] = []  # handles of destroyed chunks
        self._been: dict[int, set[int]] = {}  # the spans' bases where a chunk was mapped, by handle
        self._returns = True
        try:
            self._returns = self._try_returning()
        except KvrtError:
            self.close()
            raise
        self.notes: tuple[str, ...] = () if self._returns else (KEEPS_MEMORY,)

    def reserve(self, nbytes: int) -> Span:
        base = int(call("hipMemAddressReserve", nbytes, self.granularity, 0, 0, needed=nbytes))
        span = self._spans[base] = Span(base, nbytes)
        return span

    def release(self, span: Span) -> None:
        self._bytes.pop(span.base, None)
        with forgotten(self._spans, span.base):
            call("hipMemAddressFree", span.base, span.nbytes)
        for been in list(self._been.values()):
            been.discard(span.base)
        with suppress(KvrtError):  # the span is released; what fails here is kept a while longer
            self._destroy_kept()

    def create(self) -> Chunk:
        try:
            return Chunk(self._kept.pop())
        except IndexError:
            pass
        handle = call(
            "hipMemCreate", self.granularity, self._properties, 0, needed=self.granularity
        )
        self._handles[int(handle)] = handle
        self._been[int(handle)] = set()
        return Chunk(int(handle))

    def destroy(self, chunk: Chunk) -> None:
        if self._been[chunk.handle]:
            self._kept.append(chunk.handle)
        else:
            self._destroy(chunk.handle)

    def _destroy(self, handle: int) -> None:
        with forgotten(self._been, handle), forgotten(self._handles, handle) as held:
            call("hipMemRelease", held)

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
        call("hipMemMap", address, self.granularity, 0, self._handles[chunk.handle], 0)
        try:
            call("hipMemSetAccess", address, self.granularity, self._access, 1)
            access = call("hipMemGetAccess", self._access.location, address)
        except KvrtError:
            with suppress(KvrtError):  # the first failure is the one to tell
                # If access cannot be asked for, nothing is mapped, and unmapping would be fatal.
                call("hipMemGetAccess", self._access.location, address)
                self._mapped.add(address)
                self._unmap(address)
            raise
        if access != int(calls.READ_WRITE):
            raise DeviceError(
                f"hipMemMap at {address:#x} reported success and mapped nothing",
                call="hipMemMap",
                code="hipSuccess",
            )
        self._mapped.add(address)
        if not self._returns:
            self._been[chunk.handle].add(span.base)

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        self._unmap(span.base + at)

    def _unmap(self, address: int) -> None:
        call("hipMemUnmap", address, self.granularity)
        self._mapped.remove(address)

    def tensor(self, span: Span, dtype: DType) -> torch.Tensor:
        whole = self._bytes.get(span.base)
        if whole is None:
            whole = self._place.wrap(span.base, span.nbytes, self._index)
            self._bytes[span.base] = whole
        kind: torch.dtype = getattr(torch, dtype)
        return whole.view(kind)

    def info(self) -> MemoryInfo:
        self._context.use()
        free, total = call("hipMemGetInfo")
        kept = len(self._kept) * self.granularity
        return MemoryInfo(total, free + kept, len(self._handles) * self.granularity - kept)

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
        """Unmap, destroy and release what is left; what fails is left for another call.

        Raises:
            DeviceError: something could not be given back.
        """
        self._kept.clear()
        with ExitStack() as last_first:
            for span in list(self._spans.values()):
                last_first.callback(self.release, span)
            for handle in list(self._handles):
                last_first.callback(self._destroy, handle)
            for address in list(self._mapped):
                last_first.callback(self._unmap, address)
