"""Which page holds which tokens: finds the pages of a prefix that was computed before."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kvrt.kv.index.ends import Ends, InOrder
from kvrt.kv.index.eviction import CachedPage, Eviction
from kvrt.kv.pages.holders import Row
from kvrt.kv.tiers.names import PageName


class PrefixIndex:
    """The named pages of a page table: full, computed, and not to be written again.

        names    (root, t0..t15)   (k0, t16..t31)        page 9 is found by its key k1 only after
                       |                  |              page 4 was found by k0: a key of SHA-256
        pages          4  <---parent----  9              is not trusted, tokens and parent are seen

    The index is a holder of its pages beside the sequences that have them, and the table says which
    those are (`PageTable.name`). So its owner keeps the two in step: `add` when a page is computed,
    `forget` when it is given up.

    Args:
        policy: says what a page is worth when memory is needed.
    """

    def __init__(self, policy: Eviction) -> None:
        self._policy = policy
        self._by_key: dict[bytes, CachedPage] = {}
        self._by_page: dict[int, CachedPage] = {}
        self._ends = Ends()

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
        before: CachedPage | None = None
        for name in names:
            found = self._by_key.get(name.key)
            if found is None or found.before is not before or found.name != name:
                break
            before = found
            row.append(found.page)
        return np.fromiter(row, np.int32, len(row))

    def add(self, name: PageName, page: int, parent: int, depth: int, now: float) -> bool:
        """`page`, which comes after the page `parent`, holds `name` now. False: another page does,
        or another name has this key."""
        if name.key in self._by_key:
            return False
        before = self._by_page.get(parent)
        entry = CachedPage(name, page, before, depth, now)
        entry.worth = self._policy.worth(entry)
        self._by_key[name.key] = self._by_page[page] = entry
        self._ends.add(entry)
        if before is not None:
            before.after += 1
            self._ends.discard(before)
        return True

    def touch(self, pages: Iterable[int], now: float, *, hit: bool = False) -> None:
        """Pages are used now; `hit`: by somebody who did not compute them."""
        for page in pages:
            entry = self._by_page.get(page)
            if entry is not None:
                entry.used = now
                entry.hits += hit
                entry.worth = self._policy.worth(entry)
                if not entry.after:
                    self._ends.add(entry)

    def forget(self, pages: Iterable[int]) -> list[PageName]:
        """Pages hold no longer what they held. Returns the names that are lost."""
        lost = []
        for page in pages:
            entry = self._by_page.pop(page, None)
            if entry is not None:
                del self._by_key[entry.name.key]
                self._ends.discard(entry)
                before = entry.before
                if before is not None:
                    before.after -= 1
                    if not before.after and self._by_page.get(before.page) is before:
                        self._ends.add(before)
                self._policy.evicted(entry)
                lost.append(entry.name)
        return lost

    def and_after(self, pages: Iterable[int]) -> set[CachedPage]:
        """Those of the pages that have names, and all that come after them. Looks at all pages."""
        found = {entry for page in pages if (entry := self._by_page.get(page)) is not None}
        for entry in sorted(self, key=lambda entry: entry.depth):
            if entry.before in found:
                found.add(entry)
        return found

    def in_order(self) -> InOrder:
        """The pages to give up first, for as long as the index stays as it is."""
        return self._ends.in_order()
