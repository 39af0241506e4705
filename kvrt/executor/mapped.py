"""A span, and the chunks that are mapped in it."""

from torch import Tensor

from kvrt.errors import IntegrityError
from kvrt.executor.pool import ChunkPool
from kvrt.spi import Chunk, Device, DType


class Mapped:
    """Reserves the span. What it says is mapped is what the device has mapped, at any time.

    Args:
        device: where.
        nbytes: of the span: whole chunks.
        pool: where chunks come from, and go to.

    Raises:
        DeviceError: the addresses cannot be reserved.
    """

    def __init__(self, device: Device, nbytes: int, pool: ChunkPool) -> None:
        self.device = device
        self.pool = pool
        self.chunk_bytes = device.info.granularity
        self.span = device.memory.reserve(nbytes)
        self.mapped: dict[int, Chunk] = {}
        self._released = False

    def tensor(self, dtype: DType) -> Tensor:
        """The whole span, holes included: 1-D. Valid until it is released."""
        return self.device.memory.tensor(self.span, dtype)

    def map(self, index: int) -> None:
        """Map a chunk from the pool. Raises `OutOfMemory` if there is none and none to be had."""
        if index in self.mapped:
            raise IntegrityError(f"chunk {index} is mapped already")
        chunk = self.pool.take()
        try:
            self.device.memory.map(self.span, index * self.chunk_bytes, chunk)
        except BaseException:
            self.pool.give(chunk)
            raise
        self.mapped[index] = chunk

    def unmap(self, index: int) -> None:
        """Unmap a chunk, into the pool."""
        if index not in self.mapped:
            raise IntegrityError(f"chunk {index} is not mapped")
        chunk = self.mapped[index]
        self.device.memory.unmap(self.span, index * self.chunk_bytes, chunk)
        del self.mapped[index]
        self.pool.give(chunk)

    def release(self) -> None:
        """Give the addresses back, and the chunks to the pool. Safe to call twice, also after it
        failed half-way."""
        if self._released:
            return
        self.device.synchronize()
        for index in list(self.mapped):
            self.unmap(index)
        self.device.memory.release(self.span)
        self._released = True
