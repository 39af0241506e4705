"""The rules that hold in every page table, checked from scratch."""

from collections import Counter

import numpy as np

from kvrt.errors import IntegrityError
from kvrt.kv.pages.holders import Holders
from kvrt.kv.pages.lanes import Lane
from kvrt.kv.pages.table import PageTable


def check_table(table: PageTable) -> None:
    """Count everything anew, and compare. Looks at all sequences and mapped chunks.

    Raises:
        IntegrityError: a rule is broken; the message says which, and where.
    """
    _require(set(table.rows) <= set(table.lengths), "a sequence without a length has pages")
    for group, lane in enumerate(table.lanes):
        _check_chunks(lane, _check_sequences(table, group))


def _check_sequences(table: PageTable, group: int) -> set[int]:
    """Rows, holders and retired pages; returns all used pages."""
    lane = table.lanes[group]
    rows: Counter[int] = Counter()
    for seq, length in table.lengths.items():
        pages = table.pages(seq, group)
        _require(
            len(pages) == lane.geometry.pages_for(length),
            f"sequence {seq!r} has {length} tokens and {len(pages)} pages",
        )
        for needed in lane.group.kept(length):
            _require(
                all(pages[needed.start : needed.stop]),
                f"sequence {seq!r} lacks pages of {length} tokens that it needs: {pages}",
            )
        kept = [page for page in pages if page]
        _require(len(set(kept)) == len(kept), f"sequence {seq!r} has a page twice: {pages}")
        rows.update(kept)
    held = _check_holders(lane.holders, rows)
    retired = [page for entry in table.retired for page in entry.pages[group]]
    used = [0, *held, *retired]
    repeated = [page for page, times in Counter(used).items() if times > 1]
    _require(not repeated, f"pages {repeated} are held twice (or are the null page)")
    return set(used)


def _check_holders(holders: Holders, rows: Counter[int]) -> set[int]:
    """Counts, and how many pages are cached; returns the pages that are held."""
    named = set(holders.named)
    counted = {int(page): holders.counts.item(page) // 2 for page in np.flatnonzero(holders.counts)}
    found = {page: rows[page] for page in rows.keys() | named}
    _require(
        counted == found,
        f"pages are in as many rows as {found}, and have names: {named}; the table says {counted}",
    )
    cached = sum(not rows[page] for page in named)
    _require(
        cached == holders.cached,
        f"{cached} pages are cached; the table counts {holders.cached}",
    )
    return set(found)


def _check_chunks(lane: Lane, used: set[int]) -> None:
    """What is mapped and open, and the counts of it."""
    geometry, placement = lane.geometry, lane.placement
    mapped = {c for c in range(placement.mapped.bit_length()) if placement.mapped >> c & 1}
    users: Counter[int] = Counter()
    for page in used:
        _require(0 <= page < geometry.pages, f"page {page} does not exist")
        users.update(geometry.chunks_of(page))
    lost = set(users) - mapped
    _require(not lost, f"chunks {sorted(lost)} hold used pages and are not mapped")
    _require(
        set(placement.held) == mapped and placement.mapped_chunks == len(mapped),
        f"{len(mapped)} chunks are mapped; the table counts {placement.mapped_chunks}",
    )
    ready: dict[int, int] = {}
    open_pages = 0
    for chunk in mapped:
        own = geometry.own_pages(chunk)
        free = [p for p in own if p not in used and mapped.issuperset(geometry.chunks_of(p))]
        open_pages += len(free)
        expected = (users[chunk], sum(1 << page - own.start for page in free))
        _require(
            placement.held[chunk] == expected,
            f"chunk {chunk} has (used, open) = {placement.held[chunk]}, not {expected}",
        )
        if free:
            ready[users[chunk]] = ready.get(users[chunk], 0) | 1 << chunk
        _require(
            bool(placement.warm >> chunk & 1) == (not users[chunk]),
            f"chunk {chunk} has {users[chunk]} users, and is marked the other way",
        )
    _require(placement.ready == ready, "the chunks with open pages are not those on record")
    counts = (placement.open_pages, placement.used_pages)
    _require(
        counts == (open_pages, len(used)),
        f"(open, used) pages are {(open_pages, len(used))}; the table counts {counts}",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise IntegrityError(message)
