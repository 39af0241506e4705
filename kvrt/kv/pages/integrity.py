"""The rules that hold in every page table, checked from scratch."""

from collections import Counter, defaultdict

from kvrt.errors import IntegrityError
from kvrt.kv.pages.table import PageTable, SeqId


def check_table(table: PageTable) -> None:
    """Count everything anew, and compare. Looks at all sequences and mapped chunks.

    Raises:
        IntegrityError: a rule is broken; the message says which, and where.
    """
    used = _check_sequences(table)
    _check_chunks(table, used)


def _check_sequences(table: PageTable) -> set[int]:
    """Rows, referrers and retired pages; returns all used pages."""
    geometry = table.geometry
    before: dict[int, int | None] = {}
    referrers: dict[int, set[tuple[str, SeqId]]] = defaultdict(set)
    rows = [("sequence", seq, table.pages(seq)) for seq in table.lengths]
    rows += [("cached row", end, row) for end, row in table.cached.items()]
    for kind, name, row in rows:
        for previous, page in zip((None, *row), row, strict=False):
            _require(
                before.setdefault(page, previous) == previous,
                f"page {page} follows page {previous} in {kind} {name!r}, and another elsewhere",
            )
            if previous is not None:
                referrers[previous].add(("page", page))
        if row:
            referrers[row[-1]].add((kind, name))
    for seq, length in table.lengths.items():
        _require(
            len(table.pages(seq)) == geometry.pages_for(length),
            f"sequence {seq!r} has {length} tokens and {len(table.pages(seq))} pages",
        )
    for end, row in table.cached.items():
        _require(row[-1:] == (end,), f"the cached row {row} does not end in page {end}")
    _require(set(table.rows) <= set(table.lengths), "a sequence without a length has pages")
    _check_referrers(table, referrers)
    retired = [page for entry in table.retired for page in entry.pages]
    used = [0, *before, *retired]
    repeated = [page for page, times in Counter(used).items() if times > 1]
    _require(not repeated, f"pages {repeated} are held twice (or are the null page)")
    return set(used)


def _check_referrers(table: PageTable, found: dict[int, set[tuple[str, SeqId]]]) -> None:
    """Counts, and which pages are idle."""
    counted = {page: len(by) for page, by in found.items() if len(by) > 1}
    _require(
        counted == table.referrers.counts,
        f"shared pages have the referrers {counted}; the table says {table.referrers.counts}",
    )
    alive = {page for row in table.rows.values() for page in row}
    idle = sum(1 << page for page in found if page not in alive)
    _require(table.referrers.idle == idle, "the idle pages are not those on record")
    cached: dict[int, int] = {}
    for page in alive:
        count = sum(
            kind == "cached row" or (kind == "page" and name not in alive)
            for kind, name in found[page]
        )
        if count:
            cached[page] = count
    _require(
        cached == table.referrers.cached,
        f"live pages have the cached referrers {cached}; the table says {table.referrers.cached}",
    )


def _check_chunks(table: PageTable, used: set[int]) -> None:
    """What is mapped and open, and the counts of it."""
    geometry, placement = table.geometry, table.placement
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
