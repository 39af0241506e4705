"""Pages move together, so that chunks come free without anybody losing what was computed.

    chunk     0              1              2              3
    before    n 1 2 3 4 5    6 7 . . . .    . . 14 . . .   18 . . . . 23
    after     n 1 2 3 4 5    6 7 a b c .    - - -  - - -    - - - - -  -     a b c: 14 18 23

Sequences come and go, and what is left of them lies here and there: pages that would have room in a
third of a device's chunks may keep all of them. To copy a page takes microseconds, and to compute
its tokens again milliseconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from kvrt.kv.pages.holders import PageRow
from kvrt.kv.pages.lanes import Lane, Placers, Rows, SeqId
from kvrt.kv.pages.ops import Copy, Op, Scrub
from kvrt.kv.pages.table import Change, PageTable


def can_pack(table: PageTable, chunks: int, still: Iterable[SeqId] = ()) -> bool:
    """Whether `pack` would empty so many chunks."""
    if table.packed_chunks > table.mapped_chunks - table.warm_chunks - chunks:
        return False
    return sum(own.chunks for own in _leaving(table, chunks, still)) == chunks


def pack(table: PageTable, chunks: int, still: Iterable[SeqId] = ()) -> Change:
    """Move pages until so many chunks, those with the least in them, hold none any more, or as many
    as can be; `PageTable.trim` takes them out.

    Args:
        still: sequences whose pages stay where they are.
    """
    placers, lanes = Placers(table.lanes, table.limit), list(table.lanes)
    rows, ops, moved = table.rows, list[Op](), list[dict[int, int]]()
    for group, (lane, out) in enumerate(
        zip(table.lanes, _leaving(table, chunks, still), strict=True)
    ):
        pages = sorted(out.pages)
        to = placers.exchange(group, pages, sorted(out.closed)) if pages else []
        moved.append(dict(zip(pages, to, strict=True)))
        if not pages:
            continue
        lanes[group] = lane.move(pages, to)
        now = np.arange(len(lane.holders.counts), dtype=np.int32)
        now[pages] = to
        rows = _renumbered(rows, group, now)
        ops += [Copy(*pair, group) for pair in moved[group].items()]
        ops += [Scrub(page, group) for page in pages] if table.scrub else ()
    if not ops:
        return Change(table)
    packed = replace(table, lanes=placers.persistent(lanes), rows=rows)
    return Change(packed, tuple(ops), moved=tuple(moved))


@dataclass(slots=True)
class _Leaving:
    """What leaves the chunks of one group.

    Args:
        closed: are open, and in chunks that are empty or are to be: nothing moves there.
        pages: move to others that are open.
        chunks: that are emptied.
    """

    closed: set[int]
    pages: set[int] = field(default_factory=set)
    chunks: int = 0

    def empty(self, lane: Lane, chunk: int) -> bool:
        """Empty one more chunk. False: there is no room for its pages."""
        within = lane.geometry.pages_of(chunk)  # the first and the last may be a neighbour's, too
        pages = [page for page in lane.holders.held(within) if page not in self.pages]
        closed = [page for page in lane.placement.open_among(within) if page not in self.closed]
        room = lane.placement.open_pages - len(self.closed) - len(closed)
        if len(self.pages) + len(pages) > room:
            return False
        self.pages.update(pages)
        self.closed.update(closed)
        self.chunks += 1
        return True


def _leaving(table: PageTable, count: int, still: Iterable[SeqId]) -> list[_Leaving]:
    """Of each group, what moves for `count` chunks to be emptied, or as many as can be."""
    found = [_Leaving(closed=_open_in_warm(lane)) for lane in table.lanes]
    stays = _staying(table, still)
    order = sorted(
        (users * lane.geometry.page_bytes, group, chunk)
        for group, lane in enumerate(table.lanes)
        for chunk, (users, _) in lane.placement.held.items()
        if users and chunk not in stays[group]
    )
    full: set[int] = set()  # groups without room for the chunk that has least, so for no other
    for _, group, chunk in order:
        if count == 0:
            break
        if group in full:
            continue
        if found[group].empty(table.lanes[group], chunk):
            count -= 1
        else:
            full.add(group)
    return found


def _open_in_warm(lane: Lane) -> set[int]:
    """The pages that are open and reach into a chunk without used pages."""
    warm, found = lane.placement.warm, set[int]()
    while warm:
        chunk = warm.bit_length() - 1
        warm ^= 1 << chunk
        found.update(lane.placement.open_among(lane.geometry.pages_of(chunk)))
    return found


def _staying(table: PageTable, still: Iterable[SeqId]) -> list[set[int]]:
    """Of each group, the chunks under pages that do not move: the null page, those that a step may
    still read, and those of sequences that are `still`."""
    rows = [table.rows_of(seq) for seq in still]
    found: list[set[int]] = []
    for group, lane in enumerate(table.lanes):
        pages = {0}.union(*(entry.pages[group] for entry in table.retired))
        pages.update(*(row[group].tolist() for row in rows))
        found.append({chunk for page in pages for chunk in lane.geometry.chunks_of(page)})
    return found


def _renumbered(rows: dict[SeqId, Rows], group: int, now: PageRow) -> dict[SeqId, Rows]:
    """Rows in which each page of one group is `now[page]`. Those that do not change stay the same
    arrays."""
    found = {}
    for seq, own in rows.items():
        row = now[own[group]]
        same = np.array_equal(row, own[group])
        found[seq] = own if same else (*own[:group], row, *own[group + 1 :])
    return found
