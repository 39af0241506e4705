"""The page table: which pages hold which sequence's tokens. An immutable value.

    lengths   a: 37          b: 21        c: 21          page_size 16; c was just forked from b
    rows      a: 4 9 2       b: 4 7       c: 4 7
    holders   4: a b c       7: b c       9, 2: a        what only a holds, a may write to

Sequences that begin alike share pages, and count as holders of each (`kvrt.kv.pages.holders`). The
prefix index is one more holder: pages that it holds have a *name* (`name`), are not written to any
more, and stay *cached* when their sequences have ended. Another one can begin with them (`attach`)
until they are given up (`forget`). A page is free when nobody holds it.

Every operation leaves this table as it is and returns a `Change`: the next table, and the ops that
lead to it. To go back is to keep the old table.

A step changes the length of every sequence, but only few chunks. So what is kept by sequence is
in plain dicts that are copied and never changed after (0.6 us for 256 entries; setting them all in
a pmap takes 280 us); what is kept by chunk, and grows with the memory, is a pmap.
"""

import itertools
from collections import Counter
from collections.abc import Hashable, KeysView, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from kvrt.kv.pages.change import Change, Retired, Shortage
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.holders import Holders, Row
from kvrt.kv.pages.ops import Copy, Move, Op, Scrub
from kvrt.kv.pages.placement import Placement

SeqId = Hashable

NO_PAGES: Row = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class PageTable:
    """See the module. Made by `PageTable.empty`, and then by its own operations.

    A sequence's id may be any hashable value. One that the table does not hold has length 0 and no
    pages.

    Args:
        geometry: pages over chunks.
        limit: mapped chunks allowed; see `with_limit`.
        scrub: each page that becomes free is overwritten (`Scrub`).
        lengths: tokens of each sequence.
        rows: pages of each sequence, in order; one that never had any has no row.
        holders: who holds each page.
        retired: pages that wait for a step, in the order in which they were freed.
        placement: which chunks are mapped, which pages are free.
        version: of the committed table that this one was planned on; see `kvrt.kv.cache`.
    """

    geometry: Geometry
    limit: int
    scrub: bool
    lengths: dict[SeqId, int]
    rows: dict[SeqId, Row]
    holders: Holders
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
        table = cls(geometry, limit, scrub, {}, {}, Holders.none(), (), placer.persistent())
        return Change(table, tuple(placer.ops))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PageTable) or self.rows.keys() != other.rows.keys():
            return False
        plain = [field.name for field in fields(self) if field.name != "rows"]
        return all(getattr(self, name) == getattr(other, name) for name in plain) and all(
            np.array_equal(row, other.rows[seq]) for seq, row in self.rows.items()
        )

    # --- looking -----------------------------------------------------------------------------

    def __contains__(self, seq: SeqId) -> bool:
        return seq in self.lengths

    @property
    def sequences(self) -> KeysView[SeqId]:
        return self.lengths.keys()

    def length(self, seq: SeqId) -> int:
        """Tokens of the sequence."""
        return self.lengths.get(seq, 0)

    def row(self, seq: SeqId) -> Row:
        """The pages that hold its tokens, in order: int32 [pages]."""
        return self.rows.get(seq, NO_PAGES)

    def pages(self, seq: SeqId) -> tuple[int, ...]:
        """The same as numbers."""
        return tuple(self.row(seq).tolist())

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
        return self.holders.cached

    @property
    def mapped_chunks(self) -> int:
        return self.placement.mapped_chunks

    @property
    def warm_chunks(self) -> int:
        """Mapped chunks in which no page is used or retired."""
        return self.placement.warm.bit_count()

    def own_pages(self, seq: SeqId) -> int:
        """Pages that no other sequence holds."""
        return int(np.count_nonzero(self.holders.own(self.row(seq))))

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
        size, writable = self.geometry.page_size, self.holders.writable
        lengths = self.lengths.copy()
        left: Counter[int] = Counter()  # last pages that sequences go on in a copy of
        wants: list[tuple[SeqId, int, bool]] = []
        needed = 0
        for seq, count in tokens.items():
            if count < 0:
                raise ValueError(f"sequence {seq!r} cannot grow by {count} tokens")
            old = lengths.get(seq, 0)
            lengths[seq] = old + count
            pages = (old + count + size - 1) // size - (old + size - 1) // size
            copies = False
            if count and old % size:
                last = self.rows[seq].item(-1)
                if not writable(last, left[last] if left else 0):
                    copies = True
                    pages += 1
                    left[last] += 1
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
        new = np.array(taken, np.int32)
        at = 0
        for seq, pages, copies in wants:
            row = rows.get(seq, NO_PAGES)
            if copies:
                ops.append(Copy(row.item(-1), taken[at]))
                row = row[:-1]
            rows[seq] = np.concatenate((row, new[at : at + pages]))
            at += pages
        changed = self.holders.evolver()
        changed.take(taken)
        for page in left.elements():
            changed.drop(np.array([page], np.int32))
        table = replace(
            self,
            lengths=lengths,
            rows=rows,
            holders=changed.persistent(),
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
        return self._begin(child, self.lengths[parent], self.row(parent))

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
        row = self.row(seq)
        keep = self.geometry.pages_for(length)
        rows = self.rows if keep == len(row) else {**self.rows, seq: row[:keep]}
        return self._drop({**self.lengths, seq: length}, rows, row[keep:], after)

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
                written is in a page that somebody else holds as well.
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
        if moves and not all(map(self.holders.writable, row[start // size :])):
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
        return self._drop(lengths, rows, rows.pop(seq, NO_PAGES), after)

    def name(self, pages: Sequence[int]) -> Change:
        """The prefix index holds these pages from now on, which are in rows and full.

        Raises:
            ValueError: one is in no row, or has a name already.
        """
        changed = self.holders.evolver()
        changed.name(pages)
        return Change(replace(self, holders=changed.persistent()))

    def forget(self, pages: Sequence[int]) -> Change:
        """The prefix index holds these pages no longer; those that are in no row are free.

        Raises:
            ValueError: one has no name.
        """
        if not pages:
            return Change(self)
        changed = self.holders.evolver()
        released = changed.forget(pages)
        freed = replace(self, holders=changed.persistent())._give(released)
        return replace(freed, dropped=tuple(pages))

    def attach(self, seq: SeqId, row: Row) -> Change:
        """A new sequence that begins with full pages, which have names.

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
        return replace(self, retired=waiting)._give([p for retired in done for p in retired.pages])

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
        self, lengths: dict[SeqId, int], rows: dict[SeqId, Row], left: Row, after: int | None
    ) -> Change:
        """The change after which one sequence is as in `lengths` and `rows`, and has left pages."""
        if not len(left):
            return Change(replace(self, lengths=lengths, rows=rows))
        changed = self.holders.evolver()
        released = changed.drop(left)
        table = replace(self, lengths=lengths, rows=rows, holders=changed.persistent())
        if after is None or not released:
            return table._give(released)
        return Change(replace(table, retired=(*self.retired, Retired(after, released))))

    def _begin(self, seq: SeqId, length: int, row: Row) -> Change:
        """A new sequence that shares `row`."""
        if seq in self.lengths:
            raise ValueError(f"sequence {seq!r} is in the page table already")
        changed = self.holders.evolver()
        changed.add(row)
        lengths, rows = {**self.lengths, seq: length}, {**self.rows, seq: row}
        return Change(replace(self, lengths=lengths, rows=rows, holders=changed.persistent()))

    def _give(self, pages: Sequence[int]) -> Change:
        """Make pages free that nobody holds."""
        if not pages:
            return Change(self)
        placer = self.placement.evolver()
        placer.give(pages)
        scrubs = tuple(Scrub(page) for page in pages) if self.scrub else ()
        return Change(replace(self, placement=placer.persistent()), scrubs)
