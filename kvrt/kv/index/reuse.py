"""Prefix reuse: sequences begin with pages that others have computed.

add       the tokens of a sequence get names          (kvrt.kv.tiers.names)
plan      match -> attach; or wait, if somebody is just computing the next page of it
commit    full pages of running sequences are found by their names from now on
end       those of them that have names stay cached, until they are evicted
"""

import math
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvrt.kv.index.cost import MoveCost
from kvrt.kv.index.events import EventLog
from kvrt.kv.index.eviction import CachedPage, Eviction
from kvrt.kv.index.outside import Fetches, fetches
from kvrt.kv.index.prefix import PrefixIndex
from kvrt.kv.index.tenants import TenantEnds, TenantsInOrder
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.lanes import Pages, Rows
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.media import mark_of
from kvrt.kv.tiers.names import PageName, StoredName, page_key, tenant_of


class Reuse(Protocol):
    """What planning asks about cached pages."""

    def match(self, seq: Seq, without: Pages = ()) -> Rows:
        """Rows that a waiting sequence can begin with, one of each group; never all of its tokens.
        Empty: no pages of any.

        Args:
            without: of each group, pages that the plan gives up.
        """

    def stored(self, seq: Seq, matched: int, without: Pages = ()) -> Fetches | None:
        """The pages that should be fetched from outside the device, for the sequence to resume
        behind the `matched` ones; None: none should. `without`: as in `match`."""

    def found(self, names: Sequence[PageName], without: Pages = ()) -> int:
        """How many pages of these names a sequence could begin with."""

    def computing(self, seq: Seq) -> Sequence[PageName]:
        """The pages of a running sequence, if others may wait for those it has not computed."""

    def in_order(self) -> TenantsInOrder:
        """The cached pages, those to evict first before others."""

    def entries_of(self, pages: Pages) -> Iterable[tuple[CachedPage, int]]:
        """What they are in that order, of each with its group."""

    def bring_back(self, seq: Seq, nbytes: int) -> float:
        """What it costs to preempt a sequence that has pages of so many bytes, to preempt others
        first."""


class NoReuse:
    """Nothing is ever cached."""

    def match(self, seq: Seq, without: Pages = ()) -> Rows:
        return ()

    def stored(self, seq: Seq, matched: int, without: Pages = ()) -> Fetches | None:
        return None

    def found(self, names: Sequence[PageName], without: Pages = ()) -> int:
        return 0

    def computing(self, seq: Seq) -> Sequence[PageName]:
        return ()

    def in_order(self) -> TenantsInOrder:
        return TenantEnds().in_order()

    def entries_of(self, pages: Pages) -> Iterable[tuple[CachedPage, int]]:
        return ()

    def bring_back(self, seq: Seq, nbytes: int) -> float:
        return MoveCost().bring_back(seq.computed, nbytes, stored=False)


class Tiers(Protocol):
    """Where pages are outside the device; `kvrt.kv.offload.Offload` is one."""

    def __contains__(self, name: StoredName) -> bool:
        """Whether the page could be fetched."""


@dataclass(frozen=True, slots=True)
class ReuseStats:
    """Since the runtime was made.

    Args:
        prompt_tokens: of all sequences that began to run, those that began anew included.
        cached_tokens: how many of them were not computed, because their pages were there.
        named_pages: pages that can be found by their tokens now, of all groups of layers.
        dropped_pages: pages that could be found and were given up, of all groups.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    named_pages: int = 0
    dropped_pages: int = 0


class PrefixReuse:
    """Names the tokens of sequences, and finds pages by them. Belongs to the engine's thread.

    Args:
        groups: of layers, whose pages are of as many tokens.
        policy: which pages to evict first.
        cost: whether to fetch pages or to compute them.
        ttl: seconds after which an unused page is not worth its memory while nothing runs.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        policy: Eviction,
        cost: MoveCost | None = None,
        ttl: float = math.inf,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index = PrefixIndex(policy, groups)
        self._groups = tuple(groups)
        self.events = EventLog()
        self.cost = cost or MoveCost()
        self.tiers: Tiers | None = None
        self._ttl = ttl
        self._page_size = groups[0].geometry.page_size
        self._prompt_tokens = self._cached_tokens = self._dropped_pages = 0
        self._now = now

    # --- what planning asks ------------------------------------------------------------------

    def match(self, seq: Seq, without: Pages = ()) -> Rows:
        if not seq.matches:
            return ()
        return self.index.match(self._names(seq, self._matchable(seq)), without)

    def stored(self, seq: Seq, matched: int, without: Pages = ()) -> Fetches | None:
        if seq.preemptions and self.cost.choice == "recompute":
            return None
        found = self._outside(seq, matched, without)
        if found is None:
            return None
        sizes = [group.geometry.page_bytes for group in self._groups]
        nbytes = sum(map(operator.mul, sizes, map(len, found.places)))
        tokens = (found.border - matched) * self._page_size
        end = found.border * self._page_size
        return found if self.cost.moves(nbytes, tokens, end) else None

    def _outside(self, seq: Seq, matched: int, without: Pages = ()) -> Fetches | None:
        """What could be fetched."""
        if self.tiers is None or not seq.matches:
            return None
        names = self._names(seq, self._matchable(seq))
        rows = self.index.there(names, without)
        return fetches(self._groups, names, rows, matched, self.tiers.__contains__)

    def found(self, names: Sequence[PageName], without: Pages = ()) -> int:
        return len(self.index.match(names, without)[0])

    def computing(self, seq: Seq) -> Sequence[PageName]:
        finds = seq.shares and seq.named >= seq.computed // self._page_size
        return seq.names if finds and seq.pending > 1 else ()

    def in_order(self) -> TenantsInOrder:
        return self.index.in_order()

    def entries_of(self, pages: Pages) -> Iterable[tuple[CachedPage, int]]:
        return self.index.entries_of(pages)

    def bring_back(self, seq: Seq, nbytes: int) -> float:
        stored = self.tiers is not None
        return self.cost.bring_back(seq.computed, nbytes, stored=stored)

    def missing(self, seq: Seq) -> list[StoredName]:
        """The pages that a waiting sequence would begin with and that are not on the device."""
        cached = self.match(seq)
        found = self._outside(seq, len(cached[0])) if cached else None
        return [] if found is None else [name for _, name in found.names(seq.names)]

    # --- what the engine tells ---------------------------------------------------------------

    def begin(self, seq: Seq, rows: Rows, pages: int) -> None:
        """A sequence was admitted, and begins with so many pages. Those behind them in its `rows`
        come from outside the device, or are needed when they have come."""
        seq.named, seq.last_named = pages, self.index.last(tuple(row[:pages] for row in rows))
        self.index.touch(self._last(seq), self._now(), hit=True)
        self._resume_at(self._last(seq))
        self.index.hold(rows)
        self._prompt_tokens += seq.prompt_len
        self._cached_tokens += min(pages * self._page_size, seq.prompt_len)

    def computed(self, seq: Seq, rows: Rows) -> Pages:
        """Tokens of a sequence were computed: its full pages can be found now, if it shares.
        Returns those of each group that could not be found before; empty: none."""
        full, start = seq.computed // self._page_size, seq.named
        if full == start or not seq.shares:
            return ()
        before = self._last(seq)
        if start and (before is None or self.index.find(before.name) is not before):
            return ()  # it was forgotten
        now, names = self._now(), self._names(seq, full)
        last = tuple(row.item(start - 1) for row in rows) if start else ()
        named: list[tuple[int, ...]] = []
        for own in zip(*(row[start:full].tolist() for row in rows), strict=True):
            name = names[seq.named]
            entry = self.index.find(name)
            if entry is None:
                if not self.index.has_before(before, last):
                    break
                entry, taken = self.index.add(name, own, before, seq.named, now), own
                if entry is None:
                    break  # another name has its key
            elif self.index.windowed and entry.before is before:
                taken = self.index.fill(entry, own)
            else:
                break
            if any(taken) and entry.pages == taken:
                self.events.add("stored", (name,))
            named.append(taken)
            seq.named += 1
            seq.last_named = before = entry
            last = own
            if seq.named == (seq.prompt_len - 1) // self._page_size:
                self._resume_at(entry)
        if before is not None and not any(before.pages):
            self.index.drop_links(before)
        return tuple(tuple(filter(None, pages)) for pages in zip(*named, strict=True))

    def _resume_at(self, last: CachedPage | None) -> None:
        """A sequence begins behind it, or would if the same is asked again."""
        if last is not None:
            last.resumed = True

    def end(self, seq: Seq) -> None:
        """A sequence ends."""
        self.index.touch(self._last(seq), self._now())

    def only_of(self, seq: Seq, table: PageTable) -> tuple[set[PageName], Pages]:
        """What can be found of a sequence and is in no other's row, and all that comes after: the
        names, and the pages of each group. Where another has the rest of a page's groups, those
        with a window are of this one alone nevertheless."""
        index, rows, entry = self.index, table.rows_of(seq.id), self._last(seq)
        whole, parts = list[CachedPage](), list[tuple[CachedPage, int]]()
        while entry is not None:
            for group, page in enumerate(entry.pages):
                holders = table.lanes[group].holders
                row = rows[group][entry.depth : entry.depth + 1]
                if page and (holders.idle(page) or (page == row and holders.own(row))):
                    parts.append((entry, group))
                    whole += [entry] if group in index.deciding else []
            entry = entry.before
        after = index.and_after(whole)
        pages = [set(own) for own in index.pages_of(after)]
        for entry, group in parts:
            pages[group].add(entry.pages[group])
        names = {entry.name for entry in (*after, *(entry for entry, _ in parts))}
        return names, tuple(map(tuple, pages))

    def unpinned(self, rows: Rows) -> None:
        """A pin held these pages until now."""
        self.index.touch(self.index.last(rows), self._now())

    def leaving(self, pages: Pages) -> list[tuple[StoredName, int]]:
        """Of pages of each group about to be dropped, those that somebody may resume with, and
        that are cheaper to fetch then than to compute."""
        size = self._page_size
        return [
            (StoredName(entry.name, group), entry.pages[group])
            for entry, group in self.index.entries_of(pages)
            if self.index.resumed_near(entry, group)
            and self.cost.moves(
                self._groups[group].geometry.page_bytes, size, (entry.depth + 1) * size
            )
        ]

    def dropped(self, pages: Pages) -> None:
        """Pages of each group hold no longer what they held."""
        before = len(self.index)
        self.events.add("removed", self.index.forget(pages))
        self._dropped_pages += before - len(self.index)

    def idled(self, pages: Pages) -> None:
        """Pages of each group with a window are in no row any more (`Change.idled`)."""
        self.index.idle(pages, self._now())

    def clear(self) -> None:
        """No page can be found any more."""
        self._dropped_pages += len(self.index)
        self.index.forget(self.index.pages_of([*self.index]))
        self.events.add("cleared", (None,))

    def expire(self, table: PageTable) -> tuple[Change, float | None]:
        """Give up the idle pages that nobody used for `ttl`, nor any page after them.

        Returns:
            The change; and the seconds after which more will have to go, None if none is left.
        """
        if self._ttl == math.inf:
            return Change(table), None
        now, used = self._now(), dict[CachedPage | None, float]()
        for entry in sorted(self.index, key=lambda entry: entry.depth, reverse=True):
            last = used[entry] = max(entry.used, used.get(entry, -math.inf))
            used[entry.before] = max(last, used.get(entry.before, -math.inf))
        idle = [entry for entry in self.index if _idle(entry, table)]
        expired = [entry for entry in idle if used[entry] + self._ttl <= now]
        kept = [used[entry] for entry in idle if used[entry] + self._ttl > now]
        change = table.forget(self.index.pages_of(expired))
        return change, min(kept) + self._ttl - now if kept else None

    @property
    def stats(self) -> ReuseStats:
        return ReuseStats(
            self._prompt_tokens, self._cached_tokens, len(self.index), self._dropped_pages
        )

    def _last(self, seq: Seq) -> CachedPage | None:
        """The entry of the last of its pages that can be found."""
        last = seq.last_named if seq.named else None
        return last if isinstance(last, CachedPage) else None

    def _matchable(self, seq: Seq) -> int:
        """Pages it could begin with; its last token must be computed, for what comes after it."""
        return (len(seq.tokens) - 1) // self._page_size

    def _names(self, seq: Seq, count: int) -> list[PageName]:
        """The names of the sequence's first `count` pages at least."""
        size, names = self._page_size, seq.names
        parent, tenant = names[-1].key if names else seq.root, tenant_of(seq.root)
        for start in range(len(names) * size, count * size, size):
            tokens = tuple(seq.tokens[start : start + size])
            key = page_key(parent, tokens, mark_of(seq.media, start, start + size))
            name = PageName(key, parent, tokens, tenant)
            names.append(name)
            parent = key
        return names[:count] if len(names) > count else names


def _idle(entry: CachedPage, table: PageTable) -> bool:
    """It has pages, and no sequence holds one of them."""
    return any(entry.pages) and all(
        lane.holders.idle(page) for lane, page in zip(table.lanes, entry.pages, strict=True) if page
    )
