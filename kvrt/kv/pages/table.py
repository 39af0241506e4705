"""The page table: which pages hold which sequence's tokens. An immutable value.

    lengths   a: 37          b: 21        c: 21          page_size 16; c was just forked from b
    rows      a: (4, 9, 2)   b: (4, 7)    c: (4, 7)

                   +-- 9 -- 2 -- a        page 4 has two referrers: the pages 9 and 7
              4 ---+                      page 7 has two: the sequences b and c
                   +-- 7 -- b, c          every other page has one

Sequences share pages only as a common beginning, so that a page always follows the same page. It
is enough to count *direct* referrers, which are the pages that follow it and the sequences that
end in it: a fork then adds one referrer to one page, however long the sequence is, and freeing a
sequence stops at the first page that somebody else still holds.

A sequence that ends may leave its full pages *cached* (`keep`): another one can begin with them
(`attach`) until they are given up (`kvrt.kv.pages.eviction`), from the end of a cached row towards
its beginning. Pages that only cached rows hold are *idle*: they are what can be evicted.

Every operation leaves this table as it is and returns a `Change`: the next table, and the ops that
lead to it. To go back is to keep the old table.

A step changes the length of every sequence, but only few chunks. So what is kept by sequence is
in plain dicts that are copied and never changed after (0.6 us for 256 entries; setting them all in
a pmap takes 280 us); what is kept by chunk, and grows with the memory, is a pmap.
"""

import itertools
from collections.abc import Hashable, Iterable, KeysView, Mapping, Sequence
from dataclasses import dataclass, replace

from kvrt.kv.pages.change import Change, Retired, Shortage
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.ops import Copy, Move, Op, Scrub
from kvrt.kv.pages.placement import Placement
from kvrt.kv.pages.referrers import Referrers, ReferrersEvolver, Row

SeqId = Hashable


@dataclass(frozen=True, slots=True)
class PageTable:
    """See the module. Made by `PageTable.empty`, and then by its own operations.

    A sequence's id may be any hashable value. One that the table does not hold has length 0 and no
    pages.

    Args:
        geometry: pages over chunks.
        limit: mapped chunks allowed; see `with_limit`.
        scrub: each page that becomes free is overwritten (`Scrub`).
        lengths: tokens of each sequence.
        rows: pages of each sequence, in order.
        cached: by the last page: rows that stay although their sequence has ended.
        referrers: who holds each page.
        retired: pages that wait for a step, in the order in which they were freed.
        placement: which chunks are mapped, which pages are free.
        version: of the committed table that this one was planned on; see `kvrt.kv.cache`.
    """

    geometry: Geometry
    limit: int
    scrub: bool
    lengths: dict[SeqId, int]
    rows: dict[SeqId, Row]
    cached: dict[int, Row]
    referrers: Referrers
    retired: tuple[Retired, ...]
    placement: Placement
    version: int = 0

    @classmethod
    def empty(cls, geometry: Geometry, limit: int, *, scrub: bool = False) -> Change:
        """A table without sequences, in which the null page is mapped.

        Raises:
            ValueError: not even the null page fits in `limit` chunks.
        """
        placer = Placement.empty(geometry).evolver()
        if placer.take(1, limit) != [0]:
            raise ValueError(f"a limit of {limit} chunks has no room for the null page")
        table = cls(geometry, limit, scrub, {}, {}, {}, Referrers.none(), (), placer.persistent())
        return Change(table, tuple(placer.ops))

    # --- looking -----------------------------------------------------------------------------

    def __contains__(self, seq: SeqId) -> bool:
        return seq in self.lengths

    @property
    def sequences(self) -> KeysView[SeqId]:
        return self.lengths.keys()

    def length(self, seq: SeqId) -> int:
        """Tokens of the sequence."""
        return self.lengths.get(seq, 0)

    def pages(self, seq: SeqId) -> Row:
        """The pages that hold its tokens, in order."""
        return self.rows.get(seq, ())

    @property
    def free_pages(self) -> int:
        """Pages that `grow` can certainly hand out; see `Placement.free_pages`."""
        return self.placement.free_pages(self.limit)

    @property
    def retired_pages(self) -> int:
        """Pages that wait for a step's end."""
        return sum(len(retired.pages) for retired in self.retired)

    @property
    def used_pages(self) -> int:
        """Pages that sequences hold, each counted once."""
        return self.placement.used_pages - 1 - self.retired_pages - self.idle_pages

    @property
    def idle_pages(self) -> int:
        """Cached pages that no sequence holds: what can be evicted."""
        return self.referrers.idle.bit_count()

    @property
    def mapped_chunks(self) -> int:
        return self.placement.mapped_chunks

    @property
    def warm_chunks(self) -> int:
        """Mapped chunks in which no page is used or retired."""
        return self.placement.warm.bit_count()

    def refs(self, page: int) -> int:
        """How many sequences and cached rows hold the page. Looks at all of them."""
        rows = (*self.rows.values(), *self.cached.values())
        return sum(page in row for row in rows)

    def own_pages(self, seq: SeqId) -> int:
        """Pages that only this sequence holds."""
        row, shared = self.pages(seq), self.referrers.counts
        alone = itertools.takewhile(lambda page: page not in shared, reversed(row))
        return sum(1 for _ in alone)

    def pages_needed(self, seq: SeqId, new_tokens: int) -> int:
        """Pages that `grow` would take for it alone."""
        old = self.length(seq)
        needed = self.geometry.pages_for(old + new_tokens) - self.geometry.pages_for(old)
        if (
            new_tokens
            and old % self.geometry.page_size
            and self.rows[seq][-1] in self.referrers.counts
        ):
            needed += 1
        return needed

    # --- changing ----------------------------------------------------------------------------

    def with_limit(self, chunks: int) -> "PageTable":
        """The same table, in which at most `chunks` may be mapped.

        If more are mapped, none is added, warm ones go at the next `trim`, and no more pages are
        handed out than would fit: the rest goes as pages come free.
        """
        return replace(self, limit=chunks)

    def grow(self, tokens: Mapping[SeqId, int]) -> Change | Shortage:
        """Make room for so many more tokens of each sequence; a new one begins at length 0.

        A last page that is shared and not full is copied first, since the new tokens go into it.

        Raises:
            ValueError: a number of tokens is negative.
        """
        size = self.geometry.page_size
        lengths = self.lengths.copy()
        shared = self.referrers.counts
        changed: ReferrersEvolver | None = None
        wants: list[tuple[SeqId, int, bool]] = []
        needed = 0
        for seq, count in tokens.items():
            if count < 0:
                raise ValueError(f"sequence {seq!r} cannot grow by {count} tokens")
            old = lengths.get(seq, 0)
            lengths[seq] = old + count
            pages = (old + count + size - 1) // size - (old + size - 1) // size
            copies = False
            if shared and count and old % size and (row := self.rows[seq])[-1] in shared:
                copies = True
                pages += 1
                changed = changed or self.referrers.evolver()
                changed.replace_last(row)
                shared = changed.counts
            if pages:
                wants.append((seq, pages, copies))
                needed += pages
        if not needed:
            return Change(replace(self, lengths=lengths))

        placer = self.placement.evolver()
        taken = placer.take(needed, self.limit)
        if len(taken) < needed:
            return Shortage(needed, len(taken))
        rows = self.rows.copy()
        ops: list[Op] = list(placer.ops)
        at = 0
        for seq, pages, copies in wants:
            row = rows.get(seq, ())
            new = tuple(taken[at : at + pages])
            at += pages
            if copies:
                ops.append(Copy(row[-1], new[0]))
                row = row[:-1]
            rows[seq] = row + new
        table = replace(
            self,
            lengths=lengths,
            rows=rows,
            referrers=changed.persistent() if changed else self.referrers,
            placement=placer.persistent(),
        )
        return Change(table, tuple(ops))

    def fork(self, parent: SeqId, child: SeqId) -> Change:
        """A new sequence with the parent's tokens; they share all pages.

        Raises:
            KeyError: there is no such parent.
            ValueError: there is such a child already.
        """
        self._require(parent)
        return self._begin(child, self.lengths[parent], self.pages(parent))

    def truncate(self, seq: SeqId, length: int, after: int | None = None) -> Change:
        """Forget the tokens from position `length` on.

        Args:
            after: the last step that may read them; their pages are retired until `reclaim`. None:
                no step does, and they are free at once.

        Raises:
            KeyError: there is no such sequence.
            ValueError: it is not that long, or `length` is negative.
        """
        self._require(seq)
        if not 0 <= length <= self.lengths[seq]:
            raise ValueError(
                f"sequence {seq!r} has {self.lengths[seq]} tokens and cannot be cut to {length}"
            )
        row = self.pages(seq)
        keep = self.geometry.pages_for(length)
        cut = self._drop(
            {**self.lengths, seq: length}, {**self.rows, seq: row[:keep]}, row, keep, after
        )
        if length % self.geometry.page_size:  # the rest of this page may be written anew
            cut = replace(cut, dropped=(row[keep - 1], *cut.dropped))
        return cut

    def pick(
        self, seq: SeqId, start: int, picked: Sequence[int], after: int | None = None
    ) -> Change:
        """Of the tokens from slot `start` on keep those in the slots `picked`, forget the rest.

        They move to the slots from `start` on, in order: so the one branch of a tree that came
        true becomes the sequence.

        Args:
            picked: slots, ascending, each `start` or more.
            after: see `truncate`.

        Raises:
            KeyError: there is no such sequence.
            ValueError: it has not all of those slots, they are in no order, or one that would be
                written is in a page that another sequence holds as well.
        """
        self._require(seq)
        ends = (start - 1, *picked, self.lengths[seq])
        if start < 0 or any(left >= right for left, right in itertools.pairwise(ends)):
            raise ValueError(
                f"slots {list(picked)} are not ascending from {start} to below {self.lengths[seq]},"
                f" the length of sequence {seq!r}"
            )
        size, row = self.geometry.page_size, self.pages(seq)
        moves = []
        for to, source in enumerate(picked, start):
            if to != source:
                moves.append(Move(row[source // size], source % size, row[to // size], to % size))
        if moves and any(page in self.referrers.counts for page in row[start // size :]):
            raise ValueError(f"sequence {seq!r} shares pages from slot {start} on")
        cut = self.truncate(seq, start + len(picked), after)
        return replace(cut, ops=(*moves, *cut.ops))

    def free(self, seq: SeqId, after: int | None = None) -> Change:
        """Forget the sequence. `after`: see `truncate`.

        Raises:
            KeyError: there is no such sequence.
        """
        self._require(seq)
        lengths, rows = self.lengths.copy(), self.rows.copy()
        del lengths[seq]
        return self._drop(lengths, rows, rows.pop(seq, ()), 0, after)

    def keep(self, seq: SeqId, pages: int, after: int | None = None) -> Change:
        """The sequence ends, and its first `pages` pages stay cached. `after`: see `truncate`.

        Raises:
            KeyError: there is no such sequence.
            ValueError: it has not so many full pages.
        """
        self._require(seq)
        full = self.lengths[seq] // self.geometry.page_size
        if not 0 <= pages <= full:
            raise ValueError(f"sequence {seq!r} has {full} full pages and cannot keep {pages}")
        if not pages:
            return self.free(seq, after)
        cut = self.truncate(seq, pages * self.geometry.page_size, after)
        table = cut.table
        row = table.rows[seq]
        lengths, rows, cached = table.lengths.copy(), table.rows.copy(), table.cached.copy()
        del lengths[seq], rows[seq]
        referrers = table.referrers.evolver()
        for page in row[:-1]:  # what ended within this row is part of it now
            if page in cached:
                referrers.drop_cached(cached.pop(page))
        if referrers.cache_live(row):
            cached[row[-1]] = row
        kept = replace(
            table, lengths=lengths, rows=rows, cached=cached, referrers=referrers.persistent()
        )
        return Change(kept, cut.ops, cut.dropped)

    def attach(self, seq: SeqId, row: Row) -> Change:
        """A new sequence that begins with full pages, the beginning of another or a cached row.

        Raises:
            ValueError: there is such a sequence already.
        """
        return self._begin(seq, len(row) * self.geometry.page_size, row)

    def reclaim(self, done_step: int) -> Change:
        """Make the pages free that waited for steps up to `done_step`, which has ended."""
        done = [retired for retired in self.retired if retired.step <= done_step]
        if not done:
            return Change(self)
        waiting = tuple(retired for retired in self.retired if retired.step > done_step)
        return replace(self, retired=waiting).give([p for retired in done for p in retired.pages])

    def trim(self, keep_warm: int = 0) -> Change:
        """Unmap warm chunks until at most `keep_warm` are left, and the limit is kept."""
        placer = self.placement.evolver()
        placer.trim(keep_warm, self.limit)
        if not placer.ops:
            return Change(self)
        return Change(replace(self, placement=placer.persistent()), tuple(placer.ops))

    # --- within ------------------------------------------------------------------------------

    def _require(self, seq: SeqId) -> None:
        if seq not in self.lengths:
            raise KeyError(f"sequence {seq!r} is not in the page table")

    def _drop(
        self,
        lengths: dict[SeqId, int],
        rows: dict[SeqId, Row],
        row: Row,
        keep: int,
        after: int | None,
    ) -> Change:
        """The change after which one sequence holds only the first `keep` pages of its `row`."""
        referrers = self.referrers.evolver()
        released = referrers.drop_live(row, keep)
        table = replace(self, lengths=lengths, rows=rows, referrers=referrers.persistent())
        if not released:
            return Change(table)
        if after is None:
            given = table.give(released)
            return replace(given, dropped=released)
        retired = (*self.retired, Retired(after, released))
        return Change(replace(table, retired=retired), (), released)

    def _begin(self, seq: SeqId, length: int, row: Row) -> Change:
        """A new sequence that shares `row`."""
        if seq in self.lengths:
            raise ValueError(f"sequence {seq!r} is in the page table already")
        referrers = self.referrers
        if row:
            changed = referrers.evolver()
            changed.add_live(row)
            referrers = changed.persistent()
        lengths, rows = {**self.lengths, seq: length}, {**self.rows, seq: row}
        return Change(replace(self, lengths=lengths, rows=rows, referrers=referrers))

    def give(self, pages: Iterable[int]) -> Change:
        """Make pages free that nobody holds: for the operations of a table, here and beside it."""
        pages = tuple(pages)
        placer = self.placement.evolver()
        placer.give(pages)
        scrubs = tuple(Scrub(page) for page in pages) if self.scrub else ()
        return Change(replace(self, placement=placer.persistent()), scrubs)
