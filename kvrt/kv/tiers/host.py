"""KV pages in host memory that a device copies from and to."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from kvrt.errors import ConfigError, ContractError, IntegrityError, OutOfMemory
from kvrt.kv.tiers.names import StoredName
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

_WASTE = 8
"""Less than one in so many bytes of a frame is lost, whatever pages are in it."""


class Buffers(Protocol):
    """Where host memory comes from: an executor, or a device's copier."""

    def host_buffer(self, nbytes: int) -> "Tensor":
        """See `kvrt.spi.Copier.host_buffer`."""


@dataclass(slots=True, eq=False)
class _Frame:
    """Memory for pages of one size.

    Args:
        number: its place in the slabs.
        group: whose pages are in it.
        free: heap of its slots without a page.
        pages: that are in it.
    """

    number: int
    group: int
    free: list[int]
    pages: set["HostPage"] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class HostPage:
    """One page in host memory: pinned while a copy writes or reads it.

    Args:
        name: of the page.
        data: uint8, of the size of its group's pages, contiguous, its address a multiple of 4096.
        frame: where it is.
        slot: where in the frame.
    """

    name: StoredName
    data: "Tensor" = field(repr=False)
    frame: _Frame
    slot: int
    pins: int = 1
    written: bool = False


@dataclass(frozen=True, slots=True)
class HostStats:
    """What a `HostStore` holds and did.

    Args:
        pages: pages that can be found.
        pinned: pages that a copy writes or reads.
        used_bytes: of frames in use.
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
    """Pages in slabs of a device's own host memory, up to a byte budget.

        reserve --> [ written by a copy ] -- commit --> [ found ] -- remove, or evicted --> free
                        pinned                |  unpin       ^  pin while a copy reads it
                                              +-- dropped

        slab    |---- frame 0 ----|---- frame 1 ----|---- frame 2 ----|
                |  a large page   | small | small | | small |       | |

    Pages of all groups of layers share the budget, and one order of use. Memory is divided into
    frames for the largest page, each for the pages of one group, as many as it has room for; an
    empty one is for any. What makes room is the least recently used page: if a page of another
    size is to come, with all that are in its frame.

    It copies nothing itself. Memory is taken a slab at a time as pages come, and given back when a
    slab is empty: low frames are used first, so that high slabs empty. One empty slab is kept
    against taking and giving at its edge.

    A page that is removed while a copy still uses it is not found any more, and its slot is used
    again after the last `unpin`. Not thread-safe: it belongs to the engine's thread.

    Args:
        buffers: where memory comes from that a device copies from and to.
        sizes: of each group, bytes of one page.
        budget: bytes it may take from the system.
        slab_bytes: about how much to take at once.

    Raises:
        ConfigError: the budget is less than one page.
    """

    def __init__(
        self, buffers: Buffers, sizes: Sequence[int], budget: int, *, slab_bytes: int = SLAB_BYTES
    ) -> None:
        self.sizes = tuple(sizes)
        self._buffers = buffers
        self._budget = budget
        self._strides = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        self.frame_bytes = _frame_bytes(self._strides, budget)
        """What is taken at once for pages of a group."""
        self._in_frame = [self.frame_bytes // stride for stride in self._strides]
        # Slabs of equal size that fill the budget; each has room to align its first frame.
        slabs = -(-budget // slab_bytes)
        self._slab_frames = max(1, (budget // slabs - ALIGNMENT) // self.frame_bytes)
        self._slab_bytes = self._slab_frames * self.frame_bytes + ALIGNMENT
        if self._slab_bytes > budget:
            raise ConfigError(
                f"host memory for pages: {format_bytes(budget)} is less than one page of"
                f" {format_bytes(max(sizes))}",
                fix=f"give at least {format_bytes(self._slab_bytes)}",
            )
        self.capacity = slabs * self._slab_frames * self.frame_bytes
        """Bytes of pages that it can hold."""
        self._slabs: dict[int, Tensor] = {}
        self._used: dict[int, int] = {}  # frames in use of each slab
        self._free: list[int] = []  # heap of empty frames in the slabs that are there
        self._frames: dict[int, _Frame] = {}  # that are not empty
        self._open: list[set[int]] = [set() for _ in sizes]  # of each group, those with free slots
        self._pages: OrderedDict[StoredName, HostPage] = OrderedDict()  # least recently used first
        self._unfound: set[HostPage] = set()  # being written, or removed while pinned
        self._evicted = self._refused = 0

    @classmethod
    def staging(cls, buffers: Buffers, sizes: Sequence[int]) -> Self:
        """Room for what pages on their way to and from a disk go through."""
        return cls(buffers, sizes, max(STAGING_BYTES, STAGING_PAGES * max(sizes)))

    def __contains__(self, name: StoredName) -> bool:
        return name in self._pages

    def __len__(self) -> int:
        return len(self._pages)

    def share(self, group: int) -> int:
        """Bytes of `capacity` that a page of the group takes."""
        return self.frame_bytes // self._in_frame[group]

    @property
    def used_bytes(self) -> int:
        """Bytes of `capacity` in use."""
        return len(self._frames) * self.frame_bytes

    def in_the_way(self, group: int) -> list[HostPage] | None:
        """What goes when a page of the group comes: nothing while there is room. None: everything
        is pinned."""
        if self._open[group] or self._free or self._may_grow():
            return []
        return self._victims(group) or None

    def reserve(self, name: StoredName) -> HostPage | None:
        """A pinned slot to copy the page into; what is `in_the_way` makes room for it.

        It is found after `commit`. If the copy is given up, `unpin` it instead.

        Returns:
            None if the page is there already, or everything is pinned, or the system has no
            memory left.
        """
        if name in self._pages:
            return None
        frame = self._take(name.group)
        if frame is None:
            self._refused += 1
            return None
        slot = heapq.heappop(frame.free)
        if not frame.free:
            self._open[name.group].discard(frame.number)
        page = HostPage(name, self._data(frame, slot), frame, slot)
        frame.pages.add(page)
        self._unfound.add(page)
        return page

    def commit(self, page: HostPage) -> None:
        """The copy into a reserved page is done: it can be found, and is pinned no more.

        If another copy of the same page was faster, this one is dropped.
        """
        if page not in self._unfound or page.written:
            raise ContractError(
                f"commit of a page that is not reserved: {page.name.page.key.hex()[:8]}"
            )
        page.written = True
        if page.name not in self._pages:
            self._unfound.discard(page)
            self._pages[page.name] = page
        self.unpin(page)

    def find(self, name: StoredName) -> HostPage | None:
        """The page, which counts as used now; None if it is not there or not yet written."""
        page = self._pages.get(name)
        if page is not None:
            self._pages.move_to_end(name)
        return page

    def pin(self, page: HostPage) -> None:
        """Keep the page's bytes in place until `unpin`. Counts."""
        if page.pins == 0 and self._pages.get(page.name) is not page:
            raise ContractError(f"pin of a page that is gone: {page.name.page.key.hex()[:8]}")
        page.pins += 1

    def unpin(self, page: HostPage) -> None:
        """One copy is done with the page."""
        if page.pins == 0:
            raise ContractError(
                f"unpin of a page that is not pinned: {page.name.page.key.hex()[:8]}"
            )
        page.pins -= 1
        if page.pins == 0 and page in self._unfound:
            self._unfound.discard(page)
            self._give(page)

    def remove(self, name: StoredName) -> bool:
        """Drop the page. Returns whether it was there."""
        page = self._pages.pop(name, None)
        if page is None:
            return False
        if page.pins:
            self._unfound.add(page)
        else:
            self._give(page)
        return True

    def give_back(self, nbytes: int) -> int:
        """Give so many bytes back to the system, in whole slabs, with the pages in them; fewer if
        copies use the others. Returns how many."""
        given = 0
        for slab in sorted(self._slabs, reverse=True):
            if given >= nbytes:
                break
            numbers = range(slab * self._slab_frames, (slab + 1) * self._slab_frames)
            frames = [self._frames[number] for number in numbers if number in self._frames]
            pages = [page for frame in frames for page in frame.pages]
            if any(page.pins for page in pages):
                continue
            self._evicted += len(pages)
            for page in pages:
                self.remove(page.name)
            if slab in self._slabs:  # an empty one goes by itself if there is another
                self._drop(slab)
            given += self._slab_bytes
        return given

    def names(self) -> list[StoredName]:
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
            used_bytes=self.used_bytes,
            held_bytes=len(self._slabs) * self._slab_bytes,
            budget_bytes=self._budget,
            evicted=self._evicted,
            refused=self._refused,
        )

    def check_integrity(self) -> None:
        """Raises `IntegrityError` if pages, frames and slabs disagree."""
        live = {*self._pages.values(), *self._unfound}
        for frame in self._frames.values():
            slots = [page.slot for page in frame.pages] + frame.free
            if sorted(slots) != list(range(self._in_frame[frame.group])) or not frame.pages:
                raise IntegrityError(
                    f"host pages: frame {frame.number} lost a slot, or has it twice"
                )
            if bool(frame.free) != (frame.number in self._open[frame.group]):
                raise IntegrityError(f"host pages: frame {frame.number} is not known to have room")
            if any(page.frame is not frame for page in frame.pages):
                raise IntegrityError(f"host pages: a slot of frame {frame.number} is another's")
            if any(page.name.group != frame.group for page in frame.pages):
                raise IntegrityError(f"host pages: frame {frame.number} has pages of two groups")
        framed = [page for frame in self._frames.values() for page in frame.pages]
        if len(framed) != len(live) or live != {*framed}:
            raise IntegrityError("host pages: a page has no slot, or a slot has no page")
        frames = [*self._frames, *self._free]
        if sorted(frames) != sorted(
            slab * self._slab_frames + n for slab in self._slabs for n in range(self._slab_frames)
        ):
            raise IntegrityError("host pages: a frame is lost, used twice, or of no slab")
        for slab, used in self._used.items():
            if used != sum(1 for number in self._frames if number // self._slab_frames == slab):
                raise IntegrityError(f"host pages: slab {slab} does not count {used} frames in use")
        if any(not page.pins for page in self._unfound):
            raise IntegrityError("host pages: a page that nobody can find or uses has a slot")

    # --- frames ------------------------------------------------------------------------------

    def _victims(self, group: int) -> list[HostPage]:
        """The pages after whose removal there is a slot for one of the group; none if all are
        pinned."""
        for page in self.oldest():
            if page.name.group == group:
                return [page]
            if not any(other.pins for other in page.frame.pages):
                return [*page.frame.pages]
        return []

    def _take(self, group: int) -> _Frame | None:
        """A frame with a free slot: one that has pages of the group, an empty one, of a new slab,
        or after what is least recently used was evicted."""
        if not self._open[group] and not self._free and not self._grow():
            victims = self._victims(group)
            if not victims:
                return None
            self._evicted += len(victims)
            for page in victims:
                self.remove(page.name)
        if self._open[group]:
            return self._frames[min(self._open[group])]
        number = heapq.heappop(self._free)
        frame = self._frames[number] = _Frame(number, group, [*range(self._in_frame[group])])
        self._open[group].add(number)
        self._used[number // self._slab_frames] += 1
        return frame

    def _give(self, page: HostPage) -> None:
        frame = page.frame
        frame.pages.discard(page)
        heapq.heappush(frame.free, page.slot)
        self._open[frame.group].add(frame.number)
        if frame.pages:
            return
        del self._frames[frame.number]
        self._open[frame.group].discard(frame.number)
        heapq.heappush(self._free, frame.number)
        slab = frame.number // self._slab_frames
        self._used[slab] -= 1
        if not self._used[slab]:
            # The lower one of two empty slabs stays.
            empty = [slab for slab, used in self._used.items() if not used]
            if len(empty) > 1:
                self._drop(max(empty))

    def _may_grow(self) -> bool:
        return (len(self._slabs) + 1) * self._slab_bytes <= self._budget

    def _grow(self) -> bool:
        if not self._may_grow():
            return False
        try:
            slab_memory = self._buffers.host_buffer(self._slab_bytes)
        except OutOfMemory:
            return False
        slab = next(n for n in range(len(self._slabs) + 1) if n not in self._slabs)
        self._slabs[slab] = slab_memory[-slab_memory.data_ptr() % ALIGNMENT :]
        self._used[slab] = 0
        for frame in range(slab * self._slab_frames, (slab + 1) * self._slab_frames):
            heapq.heappush(self._free, frame)
        return True

    def _drop(self, slab: int) -> None:
        del self._slabs[slab], self._used[slab]
        self._free = [frame for frame in self._free if frame // self._slab_frames != slab]
        heapq.heapify(self._free)

    def _data(self, frame: _Frame, slot: int) -> "Tensor":
        slab, index = divmod(frame.number, self._slab_frames)
        start = index * self.frame_bytes + slot * self._strides[frame.group]
        return self._slabs[slab][start : start + self.sizes[frame.group]]


def _frame_bytes(strides: Sequence[int], budget: int) -> int:
    """The largest page, or as few of them as pages of all sizes fill nearly."""
    largest = max(strides)
    for frame in range(largest, min(_WASTE * largest, budget - ALIGNMENT) + 1, largest):
        if all(frame % stride * _WASTE < frame for stride in strides):
            return frame
    return largest
