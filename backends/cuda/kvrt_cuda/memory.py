"""Virtual memory by the driver's own calls: cuMemAddressReserve, cuMemCreate, cuMemMap and so on.

reserve  cuMemAddressReserve         release  cuMemAddressFree
create   cuMemCreate                 destroy  cuMemRelease
map      cuMemMap, cuMemSetAccess    unmap    cuMemUnmap
"""

from contextlib import ExitStack, suppress
from typing import Any

import torch
from kvrt_kernels.gpu import Place, forgotten

from kvrt.errors import KvrtError
from kvrt.spi import Chunk, DType, MemoryInfo, Span

from . import calls
from .calls import Context, call


class CudaMemory:
    """See `kvrt.spi.VirtualMemory`.

    Memory of this device that only this device can reach. The driver makes none of these calls
    wait for the device: what is unmapped must not be in use any more.

    Args:
        index: the device's.
        context: its primary context.
        place: how torch sees its memory.
        shareable: let chunks be exported to other processes.
    """

    def __init__(self, index: int, context: Context, place: Place, *, shareable: bool) -> None:
        self._index = index
        self._context = context
        self._place = place
        self._properties = calls.allocation_of(index, shareable=shareable)
        self._access = calls.access_by(index)
        self.granularity: int = call(
            "cuMemGetAllocationGranularity", self._properties, calls.RECOMMENDED
        )
        self._spans: dict[int, Span] = {}
        self._bytes: dict[int, torch.Tensor] = {}  # the tensor of a span, by its base
        self._handles: dict[int, Any] = {}
        self._mapped: set[int] = set()  # addresses

    def reserve(self, nbytes: int) -> Span:
        base = int(call("cuMemAddressReserve", nbytes, self.granularity, 0, 0, needed=nbytes))
        span = self._spans[base] = Span(base, nbytes)
        return span

    def release(self, span: Span) -> None:
        self._bytes.pop(span.base, None)
        with forgotten(self._spans, span.base):
            call("cuMemAddressFree", span.base, span.nbytes)

    def create(self) -> Chunk:
        handle = call("cuMemCreate", self.granularity, self._properties, 0, needed=self.granularity)
        self._handles[int(handle)] = handle
        return Chunk(int(handle))

    def destroy(self, chunk: Chunk) -> None:
        with forgotten(self._handles, chunk.handle) as handle:
            call("cuMemRelease", handle)

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        address = span.base + at
        call("cuMemMap", address, self.granularity, 0, self._handles[chunk.handle], 0)
        self._mapped.add(address)
        try:
            call("cuMemSetAccess", address, self.granularity, [self._access], 1)
        except KvrtError:
            with suppress(KvrtError):  # the first failure is the one to tell
                self._unmap(address)
            raise

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        self._unmap(span.base + at)

    def _unmap(self, address: int) -> None:
        call("cuMemUnmap", address, self.granularity)
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
        free, total = call("cuMemGetInfo")
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
                last_first.callback(self.destroy, Chunk(handle))
            for address in list(self._mapped):
                last_first.callback(self._unmap, address)
