"""Pages that come to host memory before the request that needs them has its turn."""

from collections import deque
from collections.abc import Hashable, Iterable

from kvrt.kv.tiers.host import HostPage
from kvrt.kv.tiers.names import PageName, StoredName
from kvrt.kv.tiers.stores import Read, Stores

_AT_ONCE = 8
"""Reads for requests that only wait: enough to keep a disk busy, few beside those that are due."""


class ReadAhead:
    """What is wanted, by whom, and what is being read. Belongs to the engine's thread.

    It remembers no more pages than host memory has room for: what comes after them would push out
    what came before.

    Args:
        stores: where pages are, and come to.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._wanted: dict[Hashable, deque[StoredName]] = {}
        self._bytes = 0  # of host memory that they will take
        self._reading: list[tuple[HostPage, Read]] = []

    def __len__(self) -> int:
        """Pages whose reading has not begun."""
        return sum(map(len, self._wanted.values()))

    @property
    def busy(self) -> bool:
        """Whether a read will end, and leave its slot."""
        return bool(self._reading)

    def want(self, owner: Hashable, names: Iterable[StoredName]) -> None:
        """Someone will need these pages, as far as they are not in host memory; once for each."""
        host = self._stores.host
        wanted = deque[StoredName]()
        for name in names:
            if name not in host:
                if self._bytes + (share := host.share(name.group)) > host.capacity:
                    break
                wanted.append(name)
                self._bytes += share
        if wanted:
            self._wanted[owner] = wanted

    def forget(self, owner: Hashable) -> None:
        """It needs them no more, or reads them itself now."""
        for name in self._wanted.pop(owner, ()):
            self._bytes -= self._stores.host.share(name.group)

    def poll(self) -> None:
        """Take in what was read, and read on."""
        for entry in self._reading[:]:
            page, read = entry
            if read.done() or read.overdue():
                self._reading.remove(entry)
                if read.ok:
                    self._stores.host.commit(page)
                else:
                    self._stores.abandon(page, read)
        while self._wanted and len(self._reading) < _AT_ONCE:
            name = self._next()
            store = self._stores.behind(name)
            host = self._stores.reserve(name, 0.0) if store is not None else None
            if store is not None and host is not None:
                self._reading.append((host, store.fetch(name, host.data)))

    def remove(self, pages: set[PageName]) -> None:
        """These pages, of any group, are to be found no more."""
        for entry in [entry for entry in self._reading if entry[0].name.page in pages]:
            self._reading.remove(entry)
            self._stores.abandon(*entry)

    def _next(self) -> StoredName:
        owner, names = next(iter(self._wanted.items()))
        name = names.popleft()
        self._bytes -= self._stores.host.share(name.group)
        if not names:
            del self._wanted[owner]
        return name
