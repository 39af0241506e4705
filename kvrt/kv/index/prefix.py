"""Which page holds which tokens: finds the pages of a prefix that was computed before."""

from collections.abc import Iterable, Iterator, Sequence

from kvrt.kv.index.eviction import CachedPage, Eviction, Worth
from kvrt.kv.pages.referrers import Row
from kvrt.kv.tiers.names import PageName

_WORTHLESS: Worth = (float("-inf"), 0.0)


class PrefixIndex:
    """The named pages of a page table: full, computed, and not to be written again.

        names    (root, t0..t15)   (k0, t16..t31)        page 9 is found by its key k1 only after
                       |                  |              page 4 was found by k0: a key of SHA-256
        pages          4  <---parent----  9              is not trusted, tokens and parent are seen

    The owner says what becomes of pages: `add` when one is computed, `forget` when it is dropped.

    Args:
        policy: says what a page is worth when memory is needed.
    """

    def __init__(self, policy: Eviction) -> None:
        self._policy = policy
        self._by_key: dict[bytes, CachedPage] = {}
        self._by_page: dict[int, CachedPage] = {}

    def __len__(self) -> int:
        return len(self._by_page)

    def __iter__(self) -> Iterator[CachedPage]:
        return iter(self._by_page.values())

    def at(self, page: int) -> CachedPage | None:
        """The entry of a page, if it has a name."""
        return self._by_page.get(page)

    def find(self, name: PageName) -> CachedPage | None:
        """The entry of the page that holds a name."""
        found = self._by_key.get(name.key)
        return found if found is not None and found.name == name else None

    def match(self, names: Sequence[PageName]) -> Row:
        """The pages of the longest beginning of `names` that is here."""
        row: list[int] = []
        parent = 0
        for name in names:
            found = self._by_key.get(name.key)
            if found is None or found.parent != parent or found.name != name:
                break
            parent = found.page
            row.append(parent)
        return tuple(row)

    def add(self, name: PageName, page: int, parent: int, depth: int, now: float) -> bool:
        """`page` holds `name` now. False: another page does, or another name has this key."""
        if name.key in self._by_key:
            return False
        entry = CachedPage(name, page, parent, depth, now)
        entry.worth = self._policy.worth(entry)
        self._by_key[name.key] = self._by_page[page] = entry
        return True

    def touch(self, row: Row, now: float, *, hit: bool = False) -> None:
        """The pages of a row are used now; `hit`: by somebody who did not compute them."""
        for page in row:
            entry = self._by_page.get(page)
            if entry is not None:
                entry.used = now
                entry.hits += hit
                entry.worth = self._policy.worth(entry)

    def forget(self, pages: Iterable[int]) -> list[PageName]:
        """Pages hold no longer what they held. Returns the names that are lost."""
        lost = []
        for page in pages:
            entry = self._by_page.pop(page, None)
            if entry is not None:
                del self._by_key[entry.name.key]
                self._policy.evicted(entry)
                lost.append(entry.name)
        return lost

    def worth(self, page: int) -> Worth:
        """What the policy says; a page without a name is of no use to anyone."""
        entry = self._by_page.get(page)
        return _WORTHLESS if entry is None else entry.worth
