"""Pages for a plan: taken from what is free and from what is only cached, or from sequences."""

from collections.abc import Callable, Iterable, Mapping

from kvrt.kv.index.keeping import keep_to_limit
from kvrt.kv.index.outside import Fetches
from kvrt.kv.index.reuse import Reuse
from kvrt.kv.index.tenants import TenantsInOrder
from kvrt.kv.pages.lanes import Pages, SeqId, Shortage
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq

_EVICTED_AT_ONCE = 16
"""Pages evicted beyond those needed, so that choosing them does not cost every step anew; never
more than an eighth of what is cached."""


class PlannedPages:
    """What a plan does to the page table, as far as it has come: each method adds to it.

    Args:
        change: so far.
        reuse: what is cached.
        cached: to evict from; None: all of it.
    """

    def __init__(self, change: Change, reuse: Reuse, cached: TenantsInOrder | None = None) -> None:
        self.change = change
        self._reuse = reuse
        self._cached = cached or reuse.in_order()

    @property
    def table(self) -> PageTable:
        return self.change.table

    @property
    def room(self) -> int:
        """Bytes that can be had without taking pages from a sequence."""
        return self.table.free_bytes + self.table.idle_bytes

    @property
    def dropped(self) -> Pages:
        """Of each group, cached pages that are given up."""
        return self.change.dropped

    def copy(self) -> "PlannedPages":
        return PlannedPages(self.change, self._reuse, self._cached)

    def do(self, change: Change) -> None:
        self.change = self.change.then(change)

    def preempt(self, seq: Seq) -> None:
        """A sequence loses its pages; those that have names stay cached."""
        self._lose(self.table.free(seq.id))

    def clear(self) -> None:
        """Give up all that is only cached, so that what comes lies in as few chunks as it can."""
        self._cached = self._reuse.in_order()
        self._cached.look_again(self._reuse.entries_of(self.change.idled))
        self.do(self.table.forget(self._cached.take(self.table, self.table.idle_bytes)))

    def keep_to_limit(self, still: Iterable[Seq] = ()) -> bool:
        """Evict what is cached beyond the limit. False: that does not suffice, even if what is left
        is moved together, but for the pages of sequences that are `still`."""
        change, fits = keep_to_limit(self.table, self._cached, [seq.id for seq in still])
        self.do(change)
        return fits

    def grow(self, tokens: Mapping[SeqId, int]) -> bool:
        """Grow, and evict what must go for it. False: it takes more than there is."""
        return self._take(lambda table: table.grow(tokens), tokens)

    def fetch(self, seq: SeqId, fetches: Fetches) -> bool:
        """Begin a sequence with pages that are there, and new ones for those that come, as `grow`
        does."""
        self.do(self.table.attach(seq, fetches.rows))
        return self._take(lambda table: table.fill(seq, fetches.border, fetches.places))

    def _take(
        self, pages: Callable[[PageTable], Change | Shortage], leaving: Iterable[SeqId] = ()
    ) -> bool:
        """Take pages, and evict what must go for it; at last those that sequences can leave."""
        while isinstance(grown := pages(self.table), Shortage):
            missing = grown.needed - grown.free
            ahead = min(_EVICTED_AT_ONCE, self.table.idle_pages // 8)
            page_bytes = self.table.lanes[grown.group].geometry.page_bytes
            evicted = self._cached.take(self.table, max(missing, ahead) * page_bytes)
            if any(evicted):
                self.do(self.table.forget(evicted))
            elif not self._leave(leaving):
                return False
        self.do(grown)
        return True

    def _leave(self, seqs: Iterable[SeqId]) -> bool:
        """Let sequences leave the named pages before their windows, so that these can be evicted.
        False: there are none."""
        left = self.table.leave(seqs)
        if left.table.used_pages == self.table.used_pages:
            return False
        self._lose(left)
        return True

    def _lose(self, change: Change) -> None:
        """Sequences lose pages; those that have names can be evicted."""
        self.do(change)
        self._cached.look_again(self._reuse.entries_of(change.idled))
