"""Which chunks are mapped, which pages in them are free, and which to hand out next.

    chunk    0         1         2         3         4
             |---------|---------|---------|  hole   |---------|
    pages    |null| us |ed |open |open  |blocked|blocked   |open

A page that is not used is *open* if all of its chunks are mapped, else *blocked*. New pages are
taken from the mapped chunk with the most used pages that has an open one, so that the other chunks
empty. If no page is open, the lowest hole is mapped: below it everything is mapped, so that the
page which straddles its lower edge becomes open, too.

A mapped chunk without used pages is *warm*. It counts against the limit, and is given up if a
lower hole is needed and the limit is reached.

Sets of chunks are Python integers, bit c for chunk c: 4 KiB for 64 GiB in chunks of 2 MiB, values
by nature, and 0.2-2.6 us an operation. A chunk nobody has touched is in none of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pyrsistent import PMap, pmap

from kvrt.errors import IntegrityError
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.ops import Map, Op, Unmap


@dataclass(frozen=True, slots=True)
class Placement:
    """The state of all chunks and pages; a value. `evolver` makes the next one.

    Args:
        geometry: pages over chunks.
        mapped: the set of mapped chunks.
        warm: the set of those without a used page.
        held: of each mapped chunk: how many used pages have a byte in it, and the set of its own
            pages (those that begin in it, counted from the first) that are open.
        ready: by number of used pages: the set of chunks that have an open page.
        mapped_chunks: how many chunks are mapped.
        open_pages: how many pages are open.
        used_pages: how many pages are used, the null page included.
    """

    geometry: Geometry
    mapped: int
    warm: int
    held: PMap[int, tuple[int, int]]
    ready: dict[int, int]
    mapped_chunks: int
    open_pages: int
    used_pages: int

    @classmethod
    def empty(cls, geometry: Geometry) -> "Placement":
        """Nothing is mapped, and no page is used: not even the null page."""
        return cls(geometry, 0, 0, pmap(), {}, 0, 0, 0)

    def free_pages(self, limit: int) -> int:
        """Pages that can certainly be taken while at most `limit` chunks are mapped.

        The exact number where pages do not straddle chunks. Where they do, `take` may find a few
        more, about one for each run of holes.
        """
        geometry = self.geometry
        if limit >= geometry.chunks:
            return geometry.pages - self.used_pages
        room = max(0, limit - self.mapped_chunks)
        found = self.open_pages + room * geometry.chunk_bytes // geometry.page_bytes
        return max(0, min(found, geometry.pages_in(limit) - self.used_pages))

    def users_beside(self, page: int) -> int:
        """Used pages in the chunk to which a used page belongs."""
        geometry = self.geometry
        return self.held[page * geometry.page_bytes // geometry.chunk_bytes][0]

    def open_among(self, pages: range) -> list[int]:
        """Those of some pages that are open."""
        found, geometry = [], self.geometry
        for page in pages:
            owner = page * geometry.page_bytes // geometry.chunk_bytes
            _, free = self.held.get(owner, (0, 0))
            if free >> page - geometry.own_pages(owner).start & 1:
                found.append(page)
        return found

    def evolver(self, group: int = 0, ops: list[Op] | None = None) -> "PlacementEvolver":
        """`group`: whose chunks these are; `ops`: to note ops in, beside those of others."""
        return PlacementEvolver(self, group, [] if ops is None else ops)


class PlacementEvolver:
    """Changes a placement in place, and gives the result as a new value. Notes the ops.

    Args:
        base: stays as it is.
        group: whose chunks these are.
        ops: what the device has to do is added here.
    """

    def __init__(self, base: Placement, group: int, ops: list[Op]) -> None:
        self.ops = ops
        self._group = group
        self._geometry = base.geometry
        self._mapped = base.mapped
        self._warm = base.warm
        self._held = base.held.evolver()
        self._ready = base.ready.copy()
        self.mapped_chunks = base.mapped_chunks
        self._open_pages = base.open_pages
        self._used_pages = base.used_pages

    def persistent(self) -> Placement:
        return Placement(
            self._geometry,
            self._mapped,
            self._warm,
            self._held.persistent(),
            self._ready,
            self.mapped_chunks,
            self._open_pages,
            self._used_pages,
        )

    @property
    def warm_chunks(self) -> int:
        """Mapped chunks without a used page."""
        return self._warm.bit_count()

    def take(self, count: int, limit: int) -> list[int]:
        """Take `count` pages, or as many as there are while at most `limit` chunks are mapped."""
        count = min(count, self._geometry.pages_in(limit) - self._used_pages)
        taken: list[int] = []
        while len(taken) < count:
            if self._ready:
                fullest = self._ready[max(self._ready)]
                taken += self._take_from(_lowest(fullest), count - len(taken))
            elif not self._map_next(limit):
                break
        return taken

    def give(self, pages: Iterable[int]) -> None:
        """Make used pages open again.

        Raises:
            IntegrityError: one of them is not used.
        """
        for owner, given in self._by_owner(pages):
            used, free = self._held[owner]
            first = self._geometry.own_pages(owner).start
            for page in given:
                bit = 1 << page - first
                if free & bit:
                    raise IntegrityError(f"page {page} was freed twice")
                free |= bit
            self._used_pages -= len(given)
            self._set(owner, used - len(given), free)
            self._add_users(self._geometry.chunks_of(max(given))[1:], -1)

    def claim(self, pages: Iterable[int]) -> None:
        """Take these pages, which are open."""
        for owner, wanted in self._by_owner(pages):
            used, free = self._held[owner]
            first = self._geometry.own_pages(owner).start
            self._used_pages += len(wanted)
            self._set(owner, used + len(wanted), free & ~sum(1 << page - first for page in wanted))
            self._add_users(self._geometry.chunks_of(max(wanted))[1:], 1)

    def trim(self, keep_warm: int, limit: int) -> None:
        """Unmap warm chunks, the highest first, down to `keep_warm` of them and to the limit."""
        warm = self.warm_chunks
        while warm and (warm > keep_warm or self.mapped_chunks > limit):
            self._unmap(self._warm.bit_length() - 1)
            warm -= 1

    def _by_owner(self, pages: Iterable[int]) -> Iterable[tuple[int, list[int]]]:
        """Pages by the chunk that they belong to."""
        geometry = self._geometry
        by_owner: dict[int, list[int]] = {}
        for page in pages:
            by_owner.setdefault(page * geometry.page_bytes // geometry.chunk_bytes, []).append(page)
        return by_owner.items()

    def _take_from(self, chunk: int, count: int) -> list[int]:
        used, free = self._held[chunk]
        first = self._geometry.own_pages(chunk).start
        pages: list[int] = []
        while free and len(pages) < count:
            page = _lowest(free)
            free ^= 1 << page
            pages.append(first + page)
        self._used_pages += len(pages)
        self._set(chunk, used + len(pages), free)
        self._add_users(self._geometry.chunks_of(pages[-1])[1:], 1)
        return pages

    def _add_users(self, chunks: range, more: int) -> None:
        """Count a page of a lower chunk that reaches into these; only a chunk's last page can."""
        for chunk in chunks:
            used, free = self._held[chunk]
            self._set(chunk, used + more, free)

    def _map_next(self, limit: int) -> bool:
        """Map the lowest hole, instead of warm chunks above it if need be. False: it cannot be."""
        hole = _lowest(~self._mapped)
        if hole >= self._geometry.chunks:
            return False
        while self.mapped_chunks >= limit and self._warm >> hole:
            # No page is open, so this one cannot be used without mapping more, either.
            self._unmap(self._warm.bit_length() - 1)
        if self.mapped_chunks >= limit:
            return False
        self._map(hole)
        return True

    def _map(self, chunk: int) -> None:
        self.ops.append(Map(chunk, self._group))
        self._mapped |= 1 << chunk
        self.mapped_chunks += 1
        self._warm |= 1 << chunk
        self._held[chunk] = (0, 0)
        own = self._geometry.own_pages(chunk)
        free = (1 << len(own)) - 1
        if own and not self._covered(own[-1]):
            free >>= 1
        self._set(chunk, 0, free)
        self._set_straddler(chunk, is_open=True)

    def _unmap(self, chunk: int) -> None:
        self.ops.append(Unmap(chunk, self._group))
        self._set_straddler(chunk, is_open=False)
        self._set(chunk, 0, 0)
        self._mapped ^= 1 << chunk
        self.mapped_chunks -= 1
        self._warm ^= 1 << chunk
        del self._held[chunk]

    def _set_straddler(self, chunk: int, *, is_open: bool) -> None:
        """Open or block the page that begins in a lower chunk and reaches into this one."""
        page = self._geometry.pages_of(chunk).start
        owner = self._geometry.chunks_of(page).start
        if owner == chunk or not self._covered(page):
            return
        used, free = self._held[owner]
        bit = 1 << page - self._geometry.own_pages(owner).start
        self._set(owner, used, free | bit if is_open else free & ~bit)

    def _covered(self, page: int) -> bool:
        return all(self._mapped >> chunk & 1 for chunk in self._geometry.chunks_of(page))

    def _set(self, chunk: int, used: int, free: int) -> None:
        """Every change of a chunk goes through here, so that sets and counts follow it."""
        used_before, free_before = self._held[chunk]
        bit = 1 << chunk
        if free_before:
            left = self._ready[used_before] ^ bit
            if left:
                self._ready[used_before] = left
            else:
                del self._ready[used_before]
        if free:
            self._ready[used] = self._ready.get(used, 0) | bit
        if bool(used) != bool(used_before):
            self._warm ^= bit
        self._open_pages += free.bit_count() - free_before.bit_count()
        self._held[chunk] = (used, free)


def _lowest(bits: int) -> int:
    """The position of the lowest bit that is set; `bits` is not 0."""
    return (bits & -bits).bit_length() - 1
