"""What a page table holds, to look at. An immutable value; `kvrt.kv.pages.table` changes it."""

from collections.abc import KeysView
from dataclasses import dataclass, fields

import numpy as np

from kvrt.kv.pages.group import Group
from kvrt.kv.pages.holders import NO_PAGES, PageRow
from kvrt.kv.pages.lanes import Lane, Retired, Rows, SeqId


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """See the module.

    A sequence's id may be any hashable value. One that the table does not hold has length 0 and no
    pages.

    Args:
        lanes: the pages of each group of layers.
        limit: mapped chunks allowed, all groups together; see `PageTable.with_limit`.
        scrub: each page that becomes free is overwritten (`Scrub`).
        lengths: tokens of each sequence.
        rows: pages of each sequence, in order: a row for each group. One that never had any has
            none.
        retired: pages that wait for a step, in the order in which they were freed.
        version: of the committed table that this one was planned on; see `kvrt.kv.cache`.
    """

    lanes: tuple[Lane, ...]
    limit: int
    scrub: bool
    lengths: dict[SeqId, int]
    rows: dict[SeqId, Rows]
    retired: tuple[Retired, ...]
    version: int = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Contents) or self.rows.keys() != other.rows.keys():
            return False
        plain = [field.name for field in fields(self) if field.name != "rows"]
        return all(getattr(self, name) == getattr(other, name) for name in plain) and all(
            all(map(np.array_equal, rows, other.rows[seq])) for seq, rows in self.rows.items()
        )

    def __contains__(self, seq: SeqId) -> bool:
        return seq in self.lengths

    @property
    def sequences(self) -> KeysView[SeqId]:
        return self.lengths.keys()

    def length(self, seq: SeqId) -> int:
        """Tokens of the sequence."""
        return self.lengths.get(seq, 0)

    @property
    def page_size(self) -> int:
        """Tokens in a page of any group."""
        return self.lanes[0].geometry.page_size

    @property
    def groups(self) -> list[Group]:
        """Of layers."""
        return [lane.group for lane in self.lanes]

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of each group."""
        return sum(lane.geometry.page_bytes for lane in self.lanes)

    def row(self, seq: SeqId, group: int = 0) -> PageRow:
        """The pages that hold its tokens, in order, 0 for those it has given up: int32 [pages]."""
        rows = self.rows.get(seq)
        return NO_PAGES if rows is None else rows[group]

    def rows_of(self, seq: SeqId) -> Rows:
        """Its row of each group."""
        return self.rows.get(seq) or (NO_PAGES,) * len(self.lanes)

    def pages(self, seq: SeqId, group: int = 0) -> tuple[int, ...]:
        """The same as numbers."""
        return tuple(self.row(seq, group).tolist())

    @property
    def free_pages(self) -> int:
        """Pages of each group that can be had. If there is one group, `grow` can certainly hand
        them out; see `Placement.free_pages`."""
        used = self.mapped_chunks - self.warm_chunks
        alone: list[int] = []
        for lane in self.lanes:
            placement = lane.placement
            own = placement.mapped_chunks - placement.warm.bit_count()
            alone.append(placement.free_pages(self.limit - used + own))
        return min(self.free_bytes // self.page_bytes, *alone)

    @property
    def free_bytes(self) -> int:
        """Bytes of pages that can be had: `grow` knows whether they are those of the right groups,
        and may find some more where pages straddle chunks."""
        mapped = self.mapped_chunks
        together = max(0, self.limit - mapped) * self.lanes[0].geometry.chunk_bytes
        alone: list[int] = []
        for lane in self.lanes:
            placement, page_bytes = lane.placement, lane.geometry.page_bytes
            together += placement.open_pages * page_bytes
            room = self.limit - mapped + placement.mapped_chunks
            alone.append(placement.free_pages(room) * page_bytes)
        return min(sum(alone), max(together, *alone))

    @property
    def retired_pages(self) -> int:
        """Pages that wait for a step's end."""
        return sum(len(pages) for retired in self.retired for pages in retired.pages)

    @property
    def used_pages(self) -> int:
        """Pages that sequences hold, each counted once."""
        used = sum(lane.placement.used_pages - 1 for lane in self.lanes)
        return used - self.retired_pages - self.idle_pages

    @property
    def idle_pages(self) -> int:
        """Cached pages that no sequence holds: what can be evicted."""
        return sum(lane.holders.cached for lane in self.lanes)

    @property
    def idle_bytes(self) -> int:
        """Their bytes."""
        return sum(lane.holders.cached * lane.geometry.page_bytes for lane in self.lanes)

    @property
    def mapped_chunks(self) -> int:
        return sum(lane.placement.mapped_chunks for lane in self.lanes)

    @property
    def warm_chunks(self) -> int:
        """Mapped chunks in which no page is used or retired."""
        return sum(lane.placement.warm.bit_count() for lane in self.lanes)

    @property
    def chunks_over_limit(self) -> int:
        """Chunks with a page that is used or retired beyond the limit, after it was lowered."""
        return max(0, self.mapped_chunks - self.warm_chunks - self.limit)

    @property
    def packed_chunks(self) -> int:
        """Chunks that all pages which are used or retired would take, close together."""
        return sum(
            -(-lane.placement.used_pages * lane.geometry.page_bytes // lane.geometry.chunk_bytes)
            for lane in self.lanes
        )

    @property
    def bytes_beyond_limit(self) -> int:
        """Bytes of pages that would be beyond the limit even if all lay close together; 0 where it
        is only that each group takes whole chunks."""
        used = sum(lane.placement.used_pages * lane.geometry.page_bytes for lane in self.lanes)
        return max(0, used - self.limit * self.lanes[0].geometry.chunk_bytes)

    def own_bytes(self, seq: SeqId) -> int:
        """Bytes of the pages that no other sequence holds."""
        return sum(
            int(np.count_nonzero(lane.holders.own(lane.held(self.row(seq, group)))))
            * lane.geometry.page_bytes
            for group, lane in enumerate(self.lanes)
        )

    def held_bytes(self, seq: SeqId) -> int:
        """Bytes of all pages that it holds."""
        return sum(
            len(lane.held(row)) * lane.geometry.page_bytes
            for lane, row in zip(self.lanes, self.rows_of(seq), strict=True)
        )
