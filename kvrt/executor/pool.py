"""Chunks of physical memory that are created and not mapped."""

from kvrt.sharing.tenant import Tenant
from kvrt.spi import Chunk, Device


class ChunkPool:
    """Keeps chunks for later, because creating one is the slow part of growing.

        fill --> [ c4  c9  c2 ] --> drain          create and destroy: off the decode path
                    ^       |
                  give     take                    recycle, while a model runs

    A pooled chunk is held memory like a mapped one. How many to keep is the caller's decision. A
    chunk keeps its bytes, and the last one given is the first one taken: so to undo an unmap, after
    all that came later is undone, brings back the same bytes.

    Args:
        device: whose memory it is.
        tenant: asked before each chunk is created, and told when one is gone; None: the device is
            not shared.
    """

    def __init__(self, device: Device, tenant: Tenant | None = None) -> None:
        self._memory = device.memory
        self._chunk_bytes = device.info.granularity
        self._tenant = tenant
        self._chunks: list[Chunk] = []

    def __len__(self) -> int:
        return len(self._chunks)

    def take(self) -> Chunk:
        """The chunk that was given last, or a new one.

        Raises:
            OutOfMemory: the pool is empty and the device has no memory left, or other tenants are
                due what it has (`NotLeased`).
        """
        return self._chunks.pop() if self._chunks else self._create()

    def give(self, chunk: Chunk) -> None:
        """Keep an unmapped chunk."""
        self._chunks.append(chunk)

    def fill(self, count: int) -> None:
        """Create chunks until there are at least `count`.

        Raises:
            OutOfMemory: as `take`; those created so far are kept.
        """
        while len(self._chunks) < count:
            self._chunks.append(self._create())

    def drain(self, count: int = 0) -> None:
        """Destroy chunks until at most `count` are left, the longest kept first."""
        while len(self._chunks) > count:
            self._memory.destroy(self._chunks[0])
            del self._chunks[0]
            if self._tenant is not None:
                self._tenant.give(self._chunk_bytes)

    def _create(self) -> Chunk:
        if self._tenant is None:
            return self._memory.create()
        self._tenant.take(self._chunk_bytes)
        try:
            return self._memory.create()
        except BaseException:
            self._tenant.give(self._chunk_bytes)
            raise
