"""The KV memory of an engine: the pages on the device, which of them can be found again by their
tokens, and those outside."""

import itertools
from collections.abc import Iterable, Iterator

from kvrt.executor.interface import Failed
from kvrt.kv.cache import KVCache
from kvrt.kv.index.keeping import keep_to_limit
from kvrt.kv.index.outside import Fetches
from kvrt.kv.index.reuse import NoReuse, PrefixReuse
from kvrt.kv.offload import Offload
from kvrt.kv.pages.group import last_border
from kvrt.kv.pages.lanes import Pages
from kvrt.kv.pages.packing import pack
from kvrt.kv.pages.table import Change
from kvrt.kv.pressure import Pressure
from kvrt.kv.seq import Seq
from kvrt.sharing.tenant import Tenant

_PREFILL_TOKENS = 64
"""A step of fewer tokens says little about the speed of prefill."""

_WRITING_S = 0.05
"""While idle, pages on their way to disk are looked after so often."""

_WATCHING_S = 1.0
"""While idle, who has something to give looks so often whether others need it, or something to get
back. Tenants of the device ring; but one may die in the moment before, and no system does."""

_EMPTIED_AT_ONCE = 32
"""Chunks from which pages move between two steps: of 2 MiB each, 16 ms at 4 GB/s."""

_LONGEST_REST_S = 3600.0
"""Systems cannot wait for any number of seconds, but a `prefix_cache_ttl` may be any."""


class Memory:
    """Keeps the three in step. Belongs to the engine's thread.

    Args:
        cache: the pages on the device.
        reuse: finds pages that were computed before; None: each sequence computes all of its own.
        offload: moves pages off the device and back; None: what is evicted is lost.
        tenant: of a device that is shared; it holds the model's weights, too.
        pressure: of a machine whose own memory the device's is; None: it has its own.
    """

    def __init__(
        self,
        cache: KVCache,
        reuse: PrefixReuse | None = None,
        offload: Offload | None = None,
        tenant: Tenant | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        self.cache = cache
        self.tenant = tenant
        self.pressure = pressure
        self.later: int | None = None
        """While the machine's memory runs short: chunks that the limit may be again, if others give
        back what they hold. None: nothing is lacking, or other tenants have it."""
        self.reuse = reuse
        self.offload = offload
        self._due: int | None = None  # bytes that other tenants leave

    def commit(self, change: Change) -> Failed | None:
        """Carry a change of the page table out. Pages whose names it drops are found no more; those
        of them that are worth it, and can be found until then, are copied off the device before."""
        if self.offload is not None and self.reuse is not None:
            self.offload.settle()
            self.offload.save(self.reuse.leaving(change.dropped))
        failed = self.cache.commit(change)
        if failed is None and self.reuse is not None:
            self.reuse.dropped(change.dropped)
            self.reuse.idled(change.idled)
            self.reuse.index.moved(change.moved)
        return failed

    # --- the life of a sequence --------------------------------------------------------------

    def expect(self, seq: Seq) -> None:
        """A sequence waits for its turn; others are before it."""
        if self.reuse is not None and self.offload is not None:
            self.offload.prefetch(seq, self.reuse.missing(seq))

    def begin(self, seq: Seq, cached: int, fetches: Fetches | None = None) -> None:
        """A plan that admits the sequence was committed.

        Args:
            cached: its first tokens, which are computed.
            fetches: what comes from outside the device first.
        """
        seq.computed = cached
        if self.reuse is None:
            return
        if self.offload is not None:
            self.offload.expect_no_more(seq)
        rows = self.cache.table.rows_of(seq.id)
        self.reuse.begin(seq, rows, cached // self.cache.page_size)
        if self.offload is not None and fetches is not None:
            coming = fetches.names(seq.names)
            pages = [rows[name.group].item(at) for at, name in coming]
            self.offload.fetch(seq, [name for _, name in coming], pages)

    def fetched(self) -> Iterator[tuple[Seq, int]]:
        """The sequences whose pages came back, and how many tokens they need not compute: all up to
        the last border at which each group of layers has what it needs."""
        if self.offload is None or self.reuse is None:
            return
        for seq, lost in self.offload.poll():
            table, size = self.cache.table, self.cache.page_size
            rows = [row.copy() for row in table.rows_of(seq.id)]
            for group, page in lost:
                rows[group][rows[group] == page] = 0
            border = last_border(table.groups, rows, len(rows[0]))
            tokens = border * size - seq.computed
            seq.computed += tokens
            self.commit(table.truncate(seq.id, seq.computed))
            self.computed([seq])
            yield seq, tokens

    def measured(self, tokens: int, context: int, seconds: float) -> None:
        """A step computed so many tokens, in contexts of so many on average."""
        if self.reuse is not None and tokens >= _PREFILL_TOKENS:
            self.reuse.cost.computed(tokens, context, seconds)

    def computed(self, seqs: Iterable[Seq]) -> None:
        """A step computed tokens of the sequences."""
        if self.reuse is None:
            return
        table = self.cache.table
        named = [self.reuse.computed(seq, table.rows_of(seq.id)) for seq in seqs]
        if any(named):
            own = zip(*filter(None, named), strict=True)
            pages = tuple(tuple(itertools.chain(*pages)) for pages in own)
            self.commit(table.name(pages))
            if self.offload is not None and self.offload.shares:
                self.offload.share(self.reuse.leaving(pages))

    def doubt(self, seq: Seq) -> None:
        """What the sequence computed may be wrong: of its pages, those that no other sequence has
        are found no more, neither here nor outside, nor what comes after them."""
        table = self.cache.table
        if self.reuse is None or seq.id not in table:
            return
        names, pages = self.reuse.only_of(seq, table)
        if self.offload is not None:
            self.offload.remove(names)
        self.forget(pages)
        seq.named, seq.shares = 0, False

    def forget(self, pages: Pages) -> None:
        """Pages of each group that have names are found no more, and not saved either."""
        if self.reuse is not None:
            self.reuse.dropped(pages)
            self.commit(self.cache.table.forget(pages))

    def end(self, seq: Seq, step: int) -> None:
        """The sequence ends, with step number `step` at the latest. It may have no pages."""
        table = self.cache.table
        if self.offload is not None:
            self.offload.cancel(seq)
        if seq.id not in table:
            return
        if self.reuse is not None and seq.shares:
            self.reuse.end(seq)
            if self.offload is not None and self.offload.write_through:
                rows = (row[: seq.named] for row in table.rows_of(seq.id))
                named = tuple(tuple(row[row > 0].tolist()) for row in rows)
                self.offload.save(self.reuse.leaving(named))
        self.commit(table.free(seq.id, after=step))

    def close(self) -> None:
        """Close the stores. Whoever made the cache closes that."""
        if self.offload is not None:
            self.offload.close()

    # --- giving back -------------------------------------------------------------------------

    def heed(self, coming: int = 0, *, idle: bool = False) -> None:
        """Keep to what others of the machine leave, and other tenants of the device, and tell these
        what would be of use.

        Args:
            coming: bytes that sequences will need beside the pages in use.
            idle: it waits afterwards, until they ring.
        """
        self._due = self._tenants_leave(coming, idle=idle)
        self._keep_to_limits(at_once=False)

    def heed_now(self) -> bool:
        """The device has just refused memory. Returns whether it is the machine's that runs short,
        and it is to be planned again: with less, or with what may come."""
        self._keep_to_limits(at_once=True)
        limit = self.cache.table.limit
        if self.later is None:
            return False
        return limit <= self.cache.held_bytes // self.cache.chunk_bytes or limit < self.later

    def may_come(self, nbytes: int) -> bool:
        """Whether the machine may yet have so many bytes that it had not; 0: nobody knows."""
        return nbytes > 0 and self.pressure is not None and self.pressure.may_come(nbytes)

    def _keep_to_limits(self, *, at_once: bool) -> None:
        """The limit is what tenants leave, or the machine, if that is less."""
        cache, left, leave = self.cache, None, self._due
        if self.pressure is not None:
            if at_once or self.pressure.due:
                sizes = cache.held_bytes, cache.min_bytes, cache.asked_bytes
                missing = self.pressure.look(*sizes)
                if missing and self.offload is not None:  # it is of the same machine
                    self.offload.stores.host.give_back(missing)
            left = self.pressure.left
        if left is None or (leave is not None and leave <= left.now):
            self.later = None
            cache.leave(leave)
            return
        most = min(left.most, cache.asked_bytes if leave is None else leave)
        self.later = most // cache.chunk_bytes
        cache.leave(left.now)

    def _tenants_leave(self, coming: int, *, idle: bool) -> int | None:
        """Bytes; None: all. See `heed`."""
        if self.tenant is None:
            return None
        self.tenant.waits(idle)
        table, weights = self.cache.table, self._weights(self.tenant)
        # By whole chunks, so that it does not change in each step, and nobody has to look anew.
        chunk = self.cache.chunk_bytes
        used = table.packed_chunks * chunk - table.idle_bytes
        self.tenant.wants(weights + -(-max(0, used + coming) // chunk) * chunk)
        return self.tenant.allowance() - weights

    def _weights(self, tenant: Tenant) -> int:
        """What else the tenant holds."""
        return tenant.held - self.cache.held_bytes

    def make_room(self, *, hurry: bool = False) -> None:
        """No step is in flight: what waits for one is free, so that nobody has to stop for want of
        it; nor, after the limit was lowered, for want of what is only cached, or lies apart.

        Args:
            hurry: all pages move that have to, else so many that no step waits long for it.
        """
        self.cache.reclaim()
        if not self.cache.bytes_over_limit:
            return
        coming = [] if self.offload is None else [seq.id for seq in self.offload.fetching]
        cached = (NoReuse() if self.reuse is None else self.reuse).in_order()
        change, _ = keep_to_limit(self.cache.table, cached, coming)
        self.commit(change)
        table = self.cache.table
        over = table.chunks_over_limit
        self.commit(pack(table, over if hurry else min(over, _EMPTIED_AT_ONCE), coming))
        self.cache.give_beyond_limit()

    def clear(self, seqs: Iterable[Seq]) -> None:
        """Take the pages of those sequences, and all that are only cached, off the device, and give
        the memory back. No step may be in flight."""
        for seq in seqs:
            self.commit(self.cache.table.free(seq.id))
        if self.reuse is not None:
            table = self.cache.table
            self.commit(table.forget(self.reuse.in_order().take(table, table.idle_bytes)))
        self.cache.give_spare()

    def rest(self) -> float | None:
        """Nothing runs or waits: give back memory that is not needed, and not worth keeping.

        Returns:
            Seconds after which to ask again, since more will be given back then; None: never.
        """
        patience = None
        self.heed(idle=True)
        self.make_room(hurry=True)
        if self.reuse is not None:
            expired, patience = self.reuse.expire(self.cache.table)
            self.commit(expired)
        if (writing := self.rest_parked()) is not None:
            patience = min(writing, patience or writing)
        self.cache.idle()
        watches = self.tenant is not None or self.pressure is not None
        gives = self.cache.held_bytes > self.cache.min_bytes
        if (watches and gives) or self.later is not None:
            patience = min(_WATCHING_S, patience or _WATCHING_S)
        return None if patience is None else min(patience, _LONGEST_REST_S)

    def rest_parked(self) -> float | None:
        """As `rest`, where all was given back; but pages may be on their way to disk."""
        if self.offload is None or not self.offload.busy:
            return None
        self.offload.poll()
        return _WRITING_S
