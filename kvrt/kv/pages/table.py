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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kvrt.kv.pages.contents import Contents
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.holders import Holders, PageRow
from kvrt.kv.pages.lanes import Growing, Lane, Pages, Placers, Retired, Rows, SeqId, Shortage
from kvrt.kv.pages.ops import Move, Op, Scrub
from kvrt.kv.pages.placement import Placement


@dataclass(frozen=True, slots=True)
class Change:
    """The table after an operation, and what has to be done on the device, in order.

    Args:
        table: after it.
        ops: for the device.
        dropped: of each group, pages that the prefix index held and holds no longer.
        idled: of each group with a window, pages that were in rows and that the prefix index alone
            holds now.
        moved: of each group, pages and where they are now (`kvrt.kv.pages.packing`). Nothing else
            is in such a change, so that there is no question which number of a page is meant.
    """

    table: "PageTable"
    ops: tuple[Op, ...] = ()
    dropped: Pages = ()
    idled: Pages = ()
    moved: tuple[dict[int, int], ...] = ()

    def then(self, change: "Change") -> "Change":
        """This change and then another, which was planned on this one's table.

        Raises:
            ValueError: pages move in one of them.
        """
        if self.moved or change.moved:
            raise ValueError("pages move in a change of their own")
        dropped = _both(self.dropped, change.dropped)
        idled = _both(self.idled, change.idled)
        return Change(change.table, self.ops + change.ops, dropped, idled)

    def lost(self, group: int = 0) -> tuple[int, ...]:
        """Of one group, the pages that were dropped."""
        return self.dropped[group] if self.dropped else ()


@dataclass(frozen=True, slots=True, eq=False)
class PageTable(Contents):
    """See the module. Made by `PageTable.empty`, and then by its own operations."""

    @classmethod
    def empty(cls, groups: Sequence[Group], limit: int, *, scrub: bool = False) -> Change:
        """A table without sequences, in which the null page of each group is mapped.

        Args:
            groups: with pages for as many tokens, over chunks of one size.

        Raises:
            ValueError: not even the null pages fit in `limit` chunks, or the groups differ in the
                tokens of a page or the size of a chunk.
        """
        shapes = [each.geometry for each in groups]
        if len({(shape.page_size, shape.chunk_bytes) for shape in shapes}) != 1:
            raise ValueError("groups of pages differ in the tokens of a page or the size of chunks")
        lanes = tuple(Lane(each, Placement.empty(each.geometry), Holders.none()) for each in groups)
        placers = Placers(lanes, limit)
        if any(placers.take(group, 1) != [0] for group in range(len(lanes))):
            raise ValueError(f"a limit of {limit} chunks has no room for the null pages")
        return Change(cls(placers.persistent(lanes), limit, scrub, {}, {}, ()), tuple(placers.ops))

    def with_limit(self, chunks: int) -> "PageTable":
        """The same table, in which at most `chunks` may be mapped.

        If more are mapped, none is added, warm ones go at the next `trim`, and no more pages are
        handed out than would fit: the rest goes as pages come free.
        """
        return replace(self, limit=chunks)

    def grow(
        self, tokens: Mapping[SeqId, int], computed: Mapping[SeqId, int] | None = None
    ) -> Change | Shortage:
        """Make room for so many more tokens of each sequence; a new one begins at length 0.

        A last page that is shared and not full is copied first, since the new tokens go into it.
        Of groups with a window, a sequence that takes a page gives up those which tokens that are
        not computed yet do not see.

        Args:
            computed: how many of each sequence's tokens are; None: all that it had before. Not one
                more, since some of the new tokens may be drafts.

        Raises:
            ValueError: a number of tokens is negative.
        """
        size = self.page_size
        lengths = self.lengths.copy()
        growing: list[Growing] = []
        for seq, count in tokens.items():
            if count < 0:
                raise ValueError(f"sequence {seq!r} cannot grow by {count} tokens")
            old = lengths.get(seq, 0)
            lengths[seq] = old + count
            pages = (old + count + size - 1) // size - (old + size - 1) // size
            writes = bool(count and old % size)
            if pages or writes:
                growing.append((seq, pages, writes))
        rows, lanes, ops = self.rows.copy(), list(self.lanes), list[Op]()
        placers: Placers | None = None
        idled: list[tuple[int, ...]] = []
        computed = self.lengths if computed is None else computed
        for group, lane in enumerate(self.lanes):
            lane, left, idle = lane.leave(growing, rows, computed, group)
            idled.append(idle)
            wants = lane.wants(growing, rows, group)
            if not wants:
                continue
            placers = placers or Placers(self.lanes, self.limit)
            placers.give(group, left)
            if self.scrub:  # before their chunks may go for others
                placers.ops += [Scrub(page, group) for page in left]
            needed = sum(want.pages for want in wants)
            taken = placers.take(group, needed)
            if len(taken) < needed:
                return Shortage(needed, len(taken), group)
            lanes[group], copies = lane.extend(wants, rows, group, taken)
            ops += copies
        if placers is None:
            return Change(replace(self, lengths=lengths))
        table = replace(self, lanes=placers.persistent(lanes), lengths=lengths, rows=rows)
        return Change(table, (*placers.ops, *ops), idled=tuple(idled))

    def leave(self, seqs: Iterable[SeqId]) -> Change:
        """Give up what sequences do not need any more to grow; `grow` does that as well."""
        growing = [(seq, 1, False) for seq in seqs if seq in self.rows]
        rows = self.rows.copy()
        left = [
            lane.leave(growing, rows, self.lengths, group) for group, lane in enumerate(self.lanes)
        ]
        lanes, released, idled = zip(*left, strict=True)
        return replace(replace(self, lanes=lanes, rows=rows)._give(released), idled=idled)

    def fork(self, parent: SeqId, child: SeqId) -> Change:
        """A new sequence with the parent's tokens; they share all pages.

        Raises:
            KeyError: there is no such parent.
            ValueError: there is such a child already.
        """
        self._require(parent)
        return self._begin(child, self.lengths[parent], self.rows.get(parent))

    def truncate(self, seq: SeqId, length: int, after: int | None = None) -> Change:
        """Forget the tokens from position `length` on.

        Args:
            after: the last step that may read them; their pages are retired until `reclaim`. None:
                no step does, and they are free at once.

        Raises:
            KeyError: there is no such sequence.
            ValueError: it is not that long, or `length` is negative, or so far before its end that
                it has given up pages of layers with a window which it would need again.
        """
        self._require(seq)
        if not 0 <= length <= self.lengths[seq]:
            raise ValueError(
                f"sequence {seq!r} has {self.lengths[seq]} tokens and cannot be cut to {length}"
            )
        rows = self.rows.get(seq)
        if rows is None:
            return Change(replace(self, lengths={**self.lengths, seq: length}))
        for lane, row in zip(self.lanes, rows, strict=True):
            if not all(row[pages.start : pages.stop].all() for pages in lane.group.kept(length)):
                raise ValueError(f"sequence {seq!r} has given up pages that {length} tokens need")
        keep = self.lanes[0].geometry.pages_for(length)
        kept, left = tuple(row[:keep] for row in rows), tuple(row[keep:] for row in rows)
        return self._drop({**self.lengths, seq: length}, {**self.rows, seq: kept}, left, after)

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
        size = self.page_size
        moves: list[Op] = []
        for group, lane in enumerate(self.lanes):
            row = self.pages(seq, group)
            for to, source in enumerate(picked, start):
                if to != source:
                    there = row[to // size], to % size
                    moves.append(Move(row[source // size], source % size, *there, group))
            if moves and not all(map(lane.holders.writable, row[start // size :])):
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
        return self._drop(lengths, rows, rows.pop(seq, ()), after)

    def name(self, pages: Pages) -> Change:
        """The prefix index holds these pages of each group from now on, which are in rows and full.

        Raises:
            ValueError: one is in no row, or has a name already.
        """
        lanes = tuple(lane.name(own) for lane, own in zip(self.lanes, pages, strict=True))
        return Change(replace(self, lanes=lanes))

    def forget(self, pages: Pages) -> Change:
        """The prefix index holds these pages of each group no longer; those that are in no row are
        free.

        Raises:
            ValueError: one has no name.
        """
        if not any(pages):
            return Change(self)
        lanes, released = zip(
            *(lane.forget(own) for lane, own in zip(self.lanes, pages, strict=True)), strict=True
        )
        return replace(replace(self, lanes=lanes)._give(released), dropped=pages)

    def attach(self, seq: SeqId, rows: Rows) -> Change:
        """A new sequence that begins with full pages of each group, which have names.

        Raises:
            ValueError: there is such a sequence already.
        """
        return self._begin(seq, len(rows[0]) * self.page_size, rows)

    def fill(self, seq: SeqId, pages: int, places: Pages) -> Change | Shortage:
        """Let a sequence have so many full pages of tokens, whose keys and values come from
        elsewhere: new pages in these places of each group, where it has none."""
        placers, lanes, rows = Placers(self.lanes, self.limit), list(self.lanes), list[PageRow]()
        for group, (row, at) in enumerate(zip(self.rows_of(seq), places, strict=True)):
            taken = placers.take(group, len(at))
            if len(taken) < len(at):
                return Shortage(len(at), len(taken), group)
            lanes[group], row = lanes[group].fill(row, pages, at, taken)
            rows.append(row)
        table = replace(
            self,
            lanes=placers.persistent(lanes),
            lengths={**self.lengths, seq: pages * self.page_size},
            rows={**self.rows, seq: tuple(rows)},
        )
        return Change(table, tuple(placers.ops))

    def reclaim(self, done_step: int) -> Change:
        """Make the pages free that waited for steps up to `done_step`, which has ended."""
        done = [retired.pages for retired in self.retired if retired.step <= done_step]
        if not done:
            return Change(self)
        waiting = tuple(retired for retired in self.retired if retired.step > done_step)
        pages = tuple(tuple(itertools.chain(*own)) for own in zip(*done, strict=True))
        return replace(self, retired=waiting)._give(pages)

    def trim(self, keep_warm: int = 0) -> Change:
        """Unmap warm chunks until at most `keep_warm` are left, and the limit is kept."""
        placers = Placers(self.lanes, self.limit)
        placers.trim(keep_warm)
        if not placers.ops:
            return Change(self)
        return Change(replace(self, lanes=placers.persistent(self.lanes)), tuple(placers.ops))

    # --- within ------------------------------------------------------------------------------

    def _require(self, seq: SeqId) -> None:
        if seq not in self.lengths:
            raise KeyError(f"sequence {seq!r} is not in the page table")

    def _drop(
        self, lengths: dict[SeqId, int], rows: dict[SeqId, Rows], left: Rows, after: int | None
    ) -> Change:
        """The change after which one sequence is as in `lengths` and `rows`, and has left pages."""
        table = replace(self, lengths=lengths, rows=rows)
        if not left or not len(left[0]):
            return Change(table)
        lanes, released, idled = zip(
            *(lane.drop(row) for lane, row in zip(self.lanes, left, strict=True)), strict=True
        )
        table = replace(table, lanes=lanes)
        if after is None or not any(released):
            return replace(table._give(released), idled=idled)
        table = replace(table, retired=(*self.retired, Retired(after, released)))
        return Change(table, idled=idled)

    def _begin(self, seq: SeqId, length: int, rows: Rows | None) -> Change:
        """A new sequence that shares `rows`."""
        if seq in self.lengths:
            raise ValueError(f"sequence {seq!r} is in the page table already")
        table = replace(self, lengths={**self.lengths, seq: length})
        if rows is None:
            return Change(table)
        lanes = tuple(lane.add(row) for lane, row in zip(self.lanes, rows, strict=True))
        return Change(replace(table, lanes=lanes, rows={**self.rows, seq: rows}))

    def _give(self, pages: Pages) -> Change:
        """Make pages free that nobody holds."""
        if not any(pages):
            return Change(self)
        placers = Placers(self.lanes, self.limit)
        scrubs: list[Op] = []
        for group, own in enumerate(pages):
            placers.give(group, own)
            scrubs += [Scrub(page, group) for page in own] if self.scrub else ()
        return Change(replace(self, lanes=placers.persistent(self.lanes)), tuple(scrubs))


def _both(first: Pages, then: Pages) -> Pages:
    return tuple(a + b for a, b in itertools.zip_longest(first, then, fillvalue=()))
