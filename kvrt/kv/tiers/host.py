"""KV pages in host memory that a device copies from and to."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from kvrt.errors import ConfigError, ContractError, IntegrityError, OutOfMemory
from kvrt.kv.tiers.names import PageName
from kvrt.units import MIB, format_bytes

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 4096
"""Of a slot in bytes, so that the disk can read and write it without a copy (O_DIRECT)."""

SLAB_BYTES = 32 * MIB
"""About so much is taken at once: host memory of a device may be slow to get, as it is pinned."""

STAGING_BYTES = 64 * MIB
STAGING_PAGES = 40
"""What only passes through host memory gets the larger of the two."""


class Buffers(Protocol):
    """Where host memory comes from: an executor, or a device's copier."""

    def host_buffer(self, nbytes: int) -> "Tensor":
        """See `kvrt.spi.Copier.host_buffer`."""


@dataclass(slots=True, eq=False)
class HostPage:
    """One page in host memory: pinned while a copy writes or reads it.

    Args:
        name: of the page.
        data: uint8 [page_bytes], contiguous, its address a multiple of 4096.
    """

    name: PageName
    data: "Tensor" = field(repr=False)
    slot: int
    pins: int = 1
    written: bool = False


@dataclass(frozen=True, slots=True)
class HostStats:
    """What a `HostStore` holds and did.

    Args:
        pages: pages that can be found.
        pinned: pages that a copy writes or reads.
        used_bytes: of slots in use.
        held_bytes: of memory taken from the system.
        budget_bytes: what it may hold.
        evicted: pages dropped to make room.
        refused: reservations for which there was no room.
    """

    pages: int
    pinned: int
    used_bytes: int
    held_bytes: int
    budget_bytes: int
    evicted: int
    refused: int


class HostStore:
    """Slots of one page each, in slabs of a device's own host memory, up to a byte budget.

        reserve --> [ written by a copy ] -- commit --> [ found ] -- remove, or evicted --> free
                        pinned                |  unpin       ^  pin while a copy reads it
                                              +-- dropped

    It copies nothing itself. Memory is taken a slab at a time as pages come, and given back when a
    slab is empty: low slots are used first, so that high slabs empty. One empty slab is kept
    against taking and giving at its edge.

    A page that is removed while a copy still uses it is not found any more, and its slot is used
    again after the last `unpin`. Not thread-safe: it belongs to the engine's thread.

    Args:
        buffers: where memory comes from that a device copies from and to.
        page_bytes: bytes of one page.
        budget: bytes it may take from the system.
        slab_bytes: about how much to take at once.

    Raises:
        ConfigError: the budget is less than one page.
    """

    def __init__(
        self, buffers: Buffers, page_bytes: int, budget: int, *, slab_bytes: int = SLAB_BYTES
    ) -> None:
        self.page_bytes = page_bytes
        self._buffers = buffers
        self._budget = budget
        self._stride = -(-page_bytes // ALIGNMENT) * ALIGNMENT
        # Slabs of equal size that fill the budget; each has room to align its first slot.
        slabs = -(-budget // slab_bytes)
        self._slab_slots = max(1, (budget // slabs - ALIGNMENT) // self._stride)
        self._slab_bytes = self._slab_slots * self._stride + ALIGNMENT
        if self._slab_bytes > budget:
            raise ConfigError(
                f"host memory for pages: {format_bytes(budget)} is less than one page of"
                f" {format_bytes(page_bytes)}",
                fix=f"give at least {format_bytes(self._slab_bytes)}",
            )
        self.slots = slabs * self._slab_slots
        """Pages that it can hold."""
        self._slabs: dict[int, Tensor] = {}
        self._used: dict[int, int] = {}  # slots in use of each slab
        self._free: list[int] = []  # heap of slots in the slabs that are there
        self._pages: OrderedDict[PageName, HostPage] = OrderedDict()  # least recently used first
        self._unfound: set[HostPage] = set()  # being written, or removed while pinned
        self._evicted = self._refused = 0

    @classmethod
    def staging(cls, buffers: Buffers, page_bytes: int) -> Self:
        """Room for what pages on their way to and from a disk go through."""
        return cls(buffers, page_bytes, max(STAGING_BYTES, STAGING_PAGES * page_bytes))

    def __contains__(self, name: PageName) -> bool:
        return name in self._pages

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def full(self) -> bool:
        """Every slot is used, so that the next page takes the place of another."""
        return len(self._pages) + len(self._unfound) >= self.slots

    def reserve(self, name: PageName) -> HostPage | None:
        """A pinned slot to copy the page into; the least recently used pages make room for it.

        It is found after `commit`. If the copy is given up, `unpin` it instead.

        Returns:
            None if the page is there already, or everything is pinned, or the system has no
            memory left.
        """
        if name in self._pages:
            return None
        slot = self._take()
        if slot is None:
            self._refused += 1
            return None
        page = HostPage(name, self._data(slot), slot)
        self._unfound.add(page)
        return page

    def commit(self, page: HostPage) -> None:
        """The copy into a reserved page is done: it can be found, and is pinned no more.

        If another copy of the same page was faster, this one is dropped.
        """
        if page not in self._unfound or page.written:
            raise ContractError(f"commit of a page that is not reserved: slot {page.slot}")
        page.written = True
        if page.name not in self._pages:
            self._unfound.discard(page)
            self._pages[page.name] = page
        self.unpin(page)

    def find(self, name: PageName) -> HostPage | None:
        """The page, which counts as used now; None if it is not there or not yet written."""
        page = self._pages.get(name)
        if page is not None:
            self._pages.move_to_end(name)
        return page

    def pin(self, page: HostPage) -> None:
        """Keep the page's bytes in place until `unpin`. Counts."""
        if page.pins == 0 and self._pages.get(page.name) is not page:
            raise ContractError(f"pin of a page that is gone: slot {page.slot}")
        page.pins += 1

    def unpin(self, page: HostPage) -> None:
        """One copy is done with the page."""
        if page.pins == 0:
            raise ContractError(f"unpin of a page that is not pinned: slot {page.slot}")
        page.pins -= 1
        if page.pins == 0 and page in self._unfound:
            self._unfound.discard(page)
            self._give(page.slot)

    def remove(self, name: PageName) -> bool:
        """Drop the page. Returns whether it was there."""
        page = self._pages.pop(name, None)
        if page is None:
            return False
        if page.pins:
            self._unfound.add(page)
        else:
            self._give(page.slot)
        return True

    def names(self) -> list[PageName]:
        """All pages that can be found, the least recently used first."""
        return list(self._pages)

    def oldest(self) -> Iterator[HostPage]:
        """Pages that could be evicted, the least recently used first. Change nothing meanwhile."""
        return (page for page in self._pages.values() if not page.pins)

    def stats(self) -> HostStats:
        pinned = len(self._unfound) + sum(1 for page in self._pages.values() if page.pins)
        return HostStats(
            pages=len(self._pages),
            pinned=pinned,
            used_bytes=(len(self._pages) + len(self._unfound)) * self._stride,
            held_bytes=len(self._slabs) * self._slab_bytes,
            budget_bytes=self._budget,
            evicted=self._evicted,
            refused=self._refused,
        )

    def check_integrity(self) -> None:
        """Raises `IntegrityError` if slots, pages and slabs disagree."""
        live = [*self._pages.values(), *self._unfound]
        slots = [page.slot for page in live] + self._free
        if sorted(slots) != sorted(
            slab * self._slab_slots + n for slab in self._slabs for n in range(self._slab_slots)
        ):
            raise IntegrityError("host pages: a slot is lost, used twice, or of no slab")
        for slab, used in self._used.items():
            if used != sum(1 for page in live if page.slot // self._slab_slots == slab):
                raise IntegrityError(f"host pages: slab {slab} does not count {used} slots in use")
        if any(not page.pins for page in self._unfound):
            raise IntegrityError("host pages: a page that nobody can find or uses has a slot")

    # --- slots ------------------------------------------------------------------------------

    def _take(self) -> int | None:
        """A free slot: of a slab that is there, of a new one, or of an evicted page."""
        if not self._free and not self._grow():
            victim = next(self.oldest(), None)
            if victim is None:
                return None
            self._evicted += 1
            self.remove(victim.name)
        slot = heapq.heappop(self._free)
        self._used[slot // self._slab_slots] += 1
        return slot

    def _give(self, slot: int) -> None:
        heapq.heappush(self._free, slot)
        slab = slot // self._slab_slots
        self._used[slab] -= 1
        if not self._used[slab]:
            # The lower one of two empty slabs stays.
            empty = [slab for slab, used in self._used.items() if not used]
            if len(empty) > 1:
                self._drop(max(empty))

    def _grow(self) -> bool:
        if (len(self._slabs) + 1) * self._slab_bytes > self._budget:
            return False
        try:
            slab_memory = self._buffers.host_buffer(self._slab_bytes)
        except OutOfMemory:
            return False
        slab = next(n for n in range(len(self._slabs) + 1) if n not in self._slabs)
        self._slabs[slab] = slab_memory[-slab_memory.data_ptr() % ALIGNMENT :]
        self._used[slab] = 0
        for slot in range(slab * self._slab_slots, (slab + 1) * self._slab_slots):
            heapq.heappush(self._free, slot)
        return True

    def _drop(self, slab: int) -> None:
        del self._slabs[slab], self._used[slab]
        self._free = [slot for slot in self._free if slot // self._slab_slots != slab]
        heapq.heapify(self._free)

    def _data(self, slot: int) -> "Tensor":
        slab, index = divmod(slot, self._slab_slots)
        start = index * self._stride
        return self._slabs[slab][start : start + self.page_bytes]
