"""The groups of layers of a table: each has pages, and a span, of its own size.

    group 0   |--- page 1 ---|--- page 2 ---|--- page 3 ---|
    group 1   |- 1 -|- 2 -|- 3 -|- 4 -|

A sequence has a row of each group, and the chunks of all come out of one limit. A page of any group
holds as many tokens. What a group has mapped and does not use, it gives up when another needs it.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.holders import NO_PAGES, Holders, PageRow
from kvrt.kv.pages.ops import Copy, Op
from kvrt.kv.pages.placement import Placement, PlacementEvolver

SeqId = Hashable

Rows = tuple[PageRow, ...]
"""Of each group, a sequence's row."""

Pages = tuple[tuple[int, ...], ...]
"""Of each group, some of its pages."""

Growing = tuple[SeqId, int, bool]
"""A sequence that grows, by how many pages, and whether it writes to its last one, too."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """There are not enough pages; nothing was changed.

    Args:
        needed: pages that were asked for, of a group that has not so many.
        free: pages of it that there were.
        group: which.
    """

    needed: int
    free: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Retired:
    """Pages that nobody holds any more, but that step number `step` may still read."""

    step: int
    pages: Pages


class Want(NamedTuple):
    """What one sequence takes of a group.

    Args:
        seq: which.
        pages: how many.
        copies: the first of them is a copy of its last one, which others hold as well.
    """

    seq: SeqId
    pages: int
    copies: bool


@dataclass(frozen=True, slots=True)
class Lane:
    """What a page table knows of the pages of one group; a value.

    Args:
        group: which layers, and what they keep.
        placement: which chunks are mapped, which pages are free.
        holders: who holds each page.
    """

    group: Group
    placement: Placement
    holders: Holders

    @property
    def geometry(self) -> Geometry:
        return self.group.geometry

    def held(self, row: PageRow) -> PageRow:
        """The pages of a row that are kept: before the window, a row is 0."""
        return row[row > 0] if self.group.window else row

    def leave(
        self,
        growing: Sequence[Growing],
        rows: dict[SeqId, Rows],
        computed: Mapping[SeqId, int],
        group: int,
    ) -> "Left":
        """Of sequences that take pages, give up those that tokens which are not `computed` do not
        see."""
        if not self.group.window:
            return Left(self)
        changed, released, idle = self.holders.evolver(), list[int](), list[int]()
        for seq, pages, _ in growing:
            done = computed.get(seq, 0)
            if not pages or not done:
                continue
            own = rows[seq]
            first, window = self.group.kept(done)
            row = own[group].copy()
            gone = slice(first.stop, window.start)
            given = self.held(row[gone])
            released += changed.drop(given)
            idle += changed.idle(given)
            row[gone] = 0
            rows[seq] = (*own[:group], row, *own[group + 1 :])
        lane = replace(self, holders=changed.persistent())
        return Left(lane, tuple(released), tuple(idle))

    def wants(
        self, growing: Sequence[Growing], rows: Mapping[SeqId, Rows], group: int
    ) -> list[Want]:
        """Which of those sequences take pages of this group."""
        writable = self.holders.writable
        left: Counter[int] = Counter()  # last pages, by how many go on in a copy of them
        wants = []
        for seq, pages, writes in growing:
            copies = False
            if writes:
                last = rows[seq][group].item(-1)
                if not writable(last, left[last] if left else 0):
                    copies = True
                    left[last] += 1
            if pages or copies:
                wants.append(Want(seq, pages + copies, copies))
        return wants

    def extend(
        self, wants: Sequence[Want], rows: dict[SeqId, Rows], group: int, taken: Sequence[int]
    ) -> tuple["Lane", list[Copy]]:
        """Put the pages that were taken behind the rows of one group; and the copies to make."""
        changed, copies = self.holders.evolver(), list[Copy]()
        changed.take(taken)
        new, at = np.array(taken, np.int32), 0
        for seq, pages, is_copy in wants:
            own = rows.get(seq, ())  # a new sequence gets its rows one after the other
            row = own[group] if group < len(own) else NO_PAGES
            if is_copy:
                copies.append(Copy(row.item(-1), taken[at], group))
                changed.drop(row[-1:])
                row = row[:-1]
            row = np.concatenate((row, new[at : at + pages]))
            rows[seq] = (*own[:group], row, *own[group + 1 :])
            at += pages
        return replace(self, holders=changed.persistent()), copies

    def fill(
        self, row: PageRow, pages: int, places: Sequence[int], taken: Sequence[int]
    ) -> tuple["Lane", PageRow]:
        """Put the pages that were taken in these places of a row, so many pages long then."""
        longer = np.zeros(pages, np.int32)
        longer[: len(row)] = row
        if not taken:
            return self, longer
        longer[list(places)] = taken
        changed = self.holders.evolver()
        changed.take(taken)
        return replace(self, holders=changed.persistent()), longer

    def add(self, row: PageRow) -> "Lane":
        """One more row has these pages."""
        changed = self.holders.evolver()
        changed.add(self.held(row))
        return replace(self, holders=changed.persistent())

    def drop(self, row: PageRow) -> "Left":
        """A row has these pages no longer."""
        if not len(row):
            return Left(self)
        changed, held = self.holders.evolver(), self.held(row)
        released = changed.drop(held)
        idle = changed.idle(held) if self.group.window else ()
        return Left(replace(self, holders=changed.persistent()), released, idle)

    def move(self, pages: Sequence[int], to: Sequence[int]) -> "Lane":
        """Whoever holds `pages` holds those of `to` instead, which were free."""
        changed = self.holders.evolver()
        changed.move(pages, to)
        return replace(self, holders=changed.persistent())

    def name(self, pages: Sequence[int]) -> "Lane":
        """The index holds these pages from now on."""
        changed = self.holders.evolver()
        changed.name(pages)
        return replace(self, holders=changed.persistent())

    def forget(self, pages: Sequence[int]) -> tuple["Lane", tuple[int, ...]]:
        """The index holds these pages no longer; and those that nobody holds now."""
        if not pages:
            return self, ()
        changed = self.holders.evolver()
        released = changed.forget(pages)
        return replace(self, holders=changed.persistent()), released


class Left(NamedTuple):
    """What is when rows have left pages of a group.

    Args:
        lane: the next one.
        released: those of them that nobody holds now.
        idle: those that the index alone holds now, of a group with a window.
    """

    lane: Lane
    released: tuple[int, ...] = ()
    idle: tuple[int, ...] = ()


class Placers:
    """Changes the placements of all lanes, within one limit. Notes the ops, in their order.

    Args:
        lanes: stay as they are.
        limit: chunks that may be mapped, all lanes together.
    """

    def __init__(self, lanes: Sequence[Lane], limit: int) -> None:
        self.ops: list[Op] = []
        self._limit = limit
        self._placers = [
            lane.placement.evolver(group, self.ops) for group, lane in enumerate(lanes)
        ]

    def persistent(self, lanes: Sequence[Lane]) -> tuple[Lane, ...]:
        """The lanes, with what has become of their placements."""
        return tuple(
            replace(lane, placement=placer.persistent())
            for lane, placer in zip(lanes, self._placers, strict=True)
        )

    def take(self, group: int, count: int) -> list[int]:
        """Take so many pages of a group, or as many as there are."""
        placer = self._placers[group]
        taken = placer.take(count, self._room(placer))
        while len(taken) < count and self._give_way(placer):
            taken += placer.take(count - len(taken), self._room(placer))
        return taken

    def give(self, group: int, pages: Sequence[int]) -> None:
        """Make pages that were used open again."""
        self._placers[group].give(pages)

    def exchange(self, group: int, pages: Sequence[int], closed: Sequence[int]) -> list[int]:
        """Give up pages of a group for as many others that are open, none of which is `closed`."""
        placer = self._placers[group]
        placer.claim(closed)
        taken = placer.take(len(pages), placer.mapped_chunks)
        placer.give((*closed, *pages))
        return taken

    def trim(self, keep_warm: int) -> None:
        """Unmap warm chunks, the highest of the last groups first, down to `keep_warm` of them and
        to the limit."""
        for placer in reversed(self._placers):
            others = sum(other.warm_chunks for other in self._placers if other is not placer)
            placer.trim(max(0, keep_warm - others), self._room(placer))

    def _room(self, placer: PlacementEvolver) -> int:
        """Chunks that it may have mapped."""
        others = sum(other.mapped_chunks for other in self._placers if other is not placer)
        return self._limit - others

    def _give_way(self, placer: PlacementEvolver) -> bool:
        """Unmap a warm chunk of another group than this one's. False: there is none, or that would
        be of no use."""
        if placer.mapped_chunks < self._room(placer):
            return False
        for other in reversed(self._placers):
            if other is not placer and (warm := other.warm_chunks):
                other.trim(warm - 1, other.mapped_chunks)
                return True
        return False
