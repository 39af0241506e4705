"""Prefix reuse: sequences begin with pages that others have computed.

add       the tokens of a sequence get names          (kvrt.kv.tiers.names)
plan      match -> attach; or wait, if somebody is just computing the next page of it
commit    full pages of running sequences are found by their names from now on
end       those of them that have names stay cached, until they are evicted
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvrt.kv.index.cost import MoveCost
from kvrt.kv.index.ends import Ends, InOrder
from kvrt.kv.index.events import EventLog
from kvrt.kv.index.eviction import CachedPage, Eviction
from kvrt.kv.index.prefix import PrefixIndex
from kvrt.kv.pages.holders import NO_PAGES, Row
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.names import PageName, page_key, tenant_of


class Reuse(Protocol):
    """What planning asks about cached pages."""

    def match(self, seq: Seq) -> Row:
        """Pages that a waiting sequence can begin with; never all of its tokens."""

    def stored(self, seq: Seq, matched: int) -> int:
        """How many pages after the `matched` ones should be fetched from outside the device."""

    def found(self, names: Sequence[PageName]) -> Row:
        """Those that are here of the pages of these names, up to the first that is not."""

    def computing(self, seq: Seq) -> Sequence[PageName]:
        """The pages of a running sequence, if others may wait for those it has not computed."""

    def in_order(self) -> InOrder:
        """The cached pages, those to evict first before others."""

    def bring_back(self, seq: Seq, page_size: int) -> float:
        """What it costs to preempt a sequence, to preempt others first."""


class NoReuse:
    """Nothing is ever cached."""

    def match(self, seq: Seq) -> Row:
        return NO_PAGES

    def stored(self, seq: Seq, matched: int) -> int:
        return 0

    def found(self, names: Sequence[PageName]) -> Row:
        return NO_PAGES

    def computing(self, seq: Seq) -> Sequence[PageName]:
        return ()

    def in_order(self) -> InOrder:
        return Ends().in_order()

    def bring_back(self, seq: Seq, page_size: int) -> float:
        return MoveCost().bring_back(seq.computed, page_size, stored=False)


class Tiers(Protocol):
    """Where pages are outside the device; `kvrt.kv.offload.Offload` is one."""

    def available(self, names: Sequence[PageName]) -> int:
        """How many of the first of these pages could be fetched."""


@dataclass(frozen=True, slots=True)
class ReuseStats:
    """Since the runtime was made.

    Args:
        prompt_tokens: of all sequences that began to run, those that began anew included.
        cached_tokens: how many of them were not computed, because their pages were there.
        named_pages: pages that can be found by their tokens now.
        dropped_pages: pages that could be found and were given up.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    named_pages: int = 0
    dropped_pages: int = 0


class PrefixReuse:
    """Names the tokens of sequences, and finds pages by them. Belongs to the engine's thread.

    Args:
        page_size: tokens in a page.
        policy: which pages to evict first.
        cost: whether to fetch pages or to compute them.
        ttl: seconds after which an unused page is not worth its memory while nothing runs.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self,
        page_size: int,
        policy: Eviction,
        cost: MoveCost | None = None,
        ttl: float = math.inf,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index = PrefixIndex(policy)
        self.events = EventLog()
        self.cost = cost or MoveCost()
        self.tiers: Tiers | None = None
        self._ttl = ttl
        self._page_size = page_size
        self._prompt_tokens = self._cached_tokens = self._dropped_pages = 0
        self._now = now

    # --- what planning asks ------------------------------------------------------------------

    def match(self, seq: Seq) -> Row:
        if not seq.matches:
            return NO_PAGES
        return self.index.match(self._names(seq, self._matchable(seq)))

    def stored(self, seq: Seq, matched: int) -> int:
        if self.tiers is None or not seq.matches:
            return 0
        if seq.preemptions and self.cost.choice == "recompute":
            return 0
        count = self.tiers.available(seq.names[matched : self._matchable(seq)])
        end = (matched + count) * self._page_size
        return count if count and self.cost.moves(count, self._page_size, end) else 0

    def found(self, names: Sequence[PageName]) -> Row:
        return self.index.match(names)

    def computing(self, seq: Seq) -> Sequence[PageName]:
        finds = seq.shares and seq.named >= seq.computed // self._page_size
        return seq.names if finds and seq.pending > 1 else ()

    def in_order(self) -> InOrder:
        return self.index.in_order()

    def bring_back(self, seq: Seq, page_size: int) -> float:
        stored = self.tiers is not None
        return self.cost.bring_back(seq.computed, page_size, stored=stored)

    def missing(self, seq: Seq) -> list[PageName]:
        """The pages that a waiting sequence would begin with and that are not on the device."""
        return seq.names[len(self.match(seq)) : self._matchable(seq)] if seq.matches else []

    # --- what the engine tells ---------------------------------------------------------------

    def begin(self, seq: Seq, cached: Row) -> None:
        """A sequence was admitted, and begins with these pages."""
        seq.named = len(cached)
        self.index.touch(cached.tolist(), self._now(), hit=True)
        self._prompt_tokens += seq.prompt_len
        self._cached_tokens += min(len(cached) * self._page_size, seq.prompt_len)

    def computed(self, seq: Seq, row: Row) -> list[int]:
        """Tokens of a sequence were computed: its full pages can be found now, if it shares.
        Returns those of them that could not be found before."""
        full = seq.computed // self._page_size
        pages: list[int] = []
        if full == seq.named or not seq.shares:
            return pages
        now = self._now()
        parent = row.item(seq.named - 1) if seq.named else 0
        for depth, page in enumerate(row[seq.named : full].tolist(), seq.named):
            if depth and self.index.at(parent) is None:
                break  # it is another's page that is found by that name, or it was invalidated
            name = self._names(seq, depth + 1)[depth]
            if not self.index.add(name, page, parent, depth, now):
                break
            self.events.add("stored", (name,))
            pages.append(page)
            parent = page
        seq.named += len(pages)
        return pages

    def end(self, row: Row) -> None:
        """A sequence ends that held these pages."""
        self.index.touch(row.tolist(), self._now())

    def leaving(self, pages: Iterable[int]) -> list[tuple[PageName, int]]:
        """Of pages about to be dropped, those that are cheaper to fetch later than to compute."""
        size = self._page_size
        entries = [entry for page in pages if (entry := self.index.at(page)) is not None]
        return [
            (entry.name, entry.page)
            for entry in entries
            if self.cost.moves(1, size, (entry.depth + 1) * size)
        ]

    def dropped(self, pages: Iterable[int]) -> None:
        """Pages hold no longer what they held."""
        names = self.index.forget(pages)
        self._dropped_pages += len(names)
        self.events.add("removed", names)

    def clear(self) -> None:
        """No page can be found any more."""
        self._dropped_pages += len(self.index.forget([entry.page for entry in self.index]))
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
        idle = [entry for entry in self.index if table.lanes[0].holders.idle(entry.page)]
        expired = [entry.page for entry in idle if used[entry] + self._ttl <= now]
        kept = [used[entry] for entry in idle if used[entry] + self._ttl > now]
        return table.forget((tuple(expired),)), min(kept) + self._ttl - now if kept else None

    @property
    def stats(self) -> ReuseStats:
        return ReuseStats(
            self._prompt_tokens, self._cached_tokens, len(self.index), self._dropped_pages
        )

    def _matchable(self, seq: Seq) -> int:
        """Pages it could begin with; its last token must be computed, for what comes after it."""
        return (len(seq.tokens) - 1) // self._page_size

    def _names(self, seq: Seq, count: int) -> list[PageName]:
        """The names of the sequence's first `count` pages at least."""
        size, names = self._page_size, seq.names
        parent, tenant = names[-1].key if names else seq.root, tenant_of(seq.root)
        for start in range(len(names) * size, count * size, size):
            tokens = tuple(seq.tokens[start : start + size])
            name = PageName(page_key(parent, tokens), parent, tokens, tenant)
            names.append(name)
            parent = name.key
        return names[:count] if len(names) > count else names
