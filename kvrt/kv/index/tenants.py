"""Whose cached pages are given up: those of the tenant that has most for its share, by their worth.

So nobody's long prompts push out all that another has. A tenant that has used nothing for
`PROTECTED_S` is not protected so: what it has goes first, or pages of many who never come again
would be kept from the one who is there.
"""

import math
from collections import Counter
from collections.abc import Iterable

from kvrt.kv.index.ends import CHOICE, Ends, InOrder
from kvrt.kv.index.eviction import CachedPage
from kvrt.kv.index.shares import EVEN, Shares
from kvrt.kv.pages.lanes import Pages
from kvrt.kv.pages.table import PageTable

PROTECTED_S = 60.0


class TenantEnds:
    """The `Ends` of each tenant.

    Args:
        full: see `Ends`.
    """

    def __init__(self, full: int | None = None) -> None:
        self._full = full
        self.parts: dict[int, Ends] = {}
        self.held = Counter[int]()
        """Entries of each, those of running sequences included."""
        self.used: dict[int, float] = {}
        """When each has used one last, by the index's clock."""
        self.shares: Shares[int] = EVEN
        """Of tenants, as names have them. From any thread."""

    def came(self, entry: CachedPage) -> None:
        """A new one."""
        tenant = entry.name.tenant
        if tenant not in self.parts:
            self.parts[tenant] = Ends(self._full)
        self.held[tenant] += 1
        self.used[tenant] = entry.used

    def went(self, entry: CachedPage) -> None:
        """It is gone for good."""
        tenant = entry.name.tenant
        self.held[tenant] -= 1
        if not self.held[tenant]:
            del self.parts[tenant], self.held[tenant], self.used[tenant]

    def add(self, entry: CachedPage, group: int | None = None) -> None:
        """See `Ends.add`."""
        self.parts[entry.name.tenant].add(entry, group)

    def discard(self, entry: CachedPage, group: int | None = None) -> None:
        """See `Ends.discard`."""
        self.parts[entry.name.tenant].discard(entry, group)

    def in_order(self) -> "TenantsInOrder":
        """To take from, as long as the index stays as it is. Changes nothing here."""
        return TenantsInOrder(self)


class TenantsInOrder:
    """What a plan gives up of an index; see `InOrder`."""

    def __init__(self, ends: TenantEnds) -> None:
        self._ends = ends
        self._shares = ends.shares
        self._orders: dict[int, InOrder] = {}
        self._gone = Counter[int]()
        self._none_left: set[int] = set()

    def take(self, table: PageTable, nbytes: int, choice: int = CHOICE) -> Pages:
        """See `InOrder.take`."""
        if len(self._ends.parts) == 1:
            return self._of(*self._ends.parts).take(table, nbytes, choice)
        page_bytes = [lane.geometry.page_bytes for lane in table.lanes]
        taken: list[list[int]] = [[] for _ in table.lanes]
        found = 0
        while found < nbytes and (most := self._most()) is not None:
            tenant, ahead = most
            wanted = min(nbytes - found, ahead * sum(page_bytes))
            pages = self._of(tenant).take(table, wanted, choice)
            if not any(pages):
                self._none_left.add(tenant)
            self._gone[tenant] += max(map(len, pages), default=0)
            for group, own in enumerate(pages):
                taken[group] += own
                idle = sum(map(table.lanes[group].holders.idle, own))
                found += idle * page_bytes[group]
        return tuple(map(tuple, taken))

    def look_again(self, idled: Iterable[tuple[CachedPage, int]]) -> None:
        """See `InOrder.look_again`."""
        self._none_left.clear()
        by_tenant: dict[int, list[tuple[CachedPage, int]]] = {each: [] for each in self._orders}
        for entry, group in idled:
            by_tenant.setdefault(entry.name.tenant, []).append((entry, group))
        for tenant, own in by_tenant.items():
            self._of(tenant).look_again(own)

    def _most(self) -> tuple[int, int] | None:
        """Who gives up next, and how many pages before it is another's turn; None: nobody."""
        ends = self._ends
        left = ends.parts.keys() - self._none_left
        if not left:
            return None
        now = max(ends.used.values())
        stale = [tenant for tenant in left if now - ends.used[tenant] > PROTECTED_S]
        if stale:
            return min(stale, key=ends.used.__getitem__), ends.held.total()
        held = {tenant: ends.held[tenant] - self._gone[tenant] for tenant in left}
        parts = {tenant: self._shares.part(tenant, held[tenant]) for tenant in left}
        first = max(left, key=lambda tenant: (parts[tenant], tenant))
        others = max((parts[tenant] for tenant in left if tenant != first), default=0.0)
        return first, max(1, held[first] - math.ceil(others * self._shares.of(first)))

    def _of(self, tenant: int) -> InOrder:
        if tenant not in self._orders:
            self._orders[tenant] = self._ends.parts[tenant].in_order()
        return self._orders[tenant]
