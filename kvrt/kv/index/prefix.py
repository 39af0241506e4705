"""Which pages hold which tokens: finds the pages of a prefix that was computed before."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from kvrt.kv.index.eviction import CachedPage, Eviction
from kvrt.kv.index.tenants import TenantEnds, TenantsInOrder
from kvrt.kv.pages.group import Group, last_border
from kvrt.kv.pages.lanes import Pages, Rows
from kvrt.kv.tiers.names import PageName


class PrefixIndex:
    """The named pages of a page table: full, computed, and not to be written again.

        names    (root, t0..t15)   (k0, t16..t31)        page 9 is found by its key k1 only after
                       |                  |              page 4 was found by k0: a key of SHA-256
        group 0        4  <---before----  9              is not trusted, tokens and page before are
        group 1        0                  2              seen; of group 1, page 4's tokens are gone

    A sequence resumes at a *border* between pages, where each group has all that it needs
    (`Group.kept`): one that sees everything needs all pages before it, one with a window the last
    ones. So groups with a window may give up any page, the others only one after which none comes.

    The index is a holder of its pages beside the sequences that have them, and the table says which
    those are (`PageTable.name`). So its owner keeps the two in step: `add` and `fill` when a page
    is computed, `forget` when it is given up.

    Args:
        policy: says what a page is worth when memory is needed.
        groups: of layers.
    """

    def __init__(self, policy: Eviction, groups: Sequence[Group]) -> None:
        self._policy = policy
        self._groups = tuple(groups)
        self._full = [at for at, group in enumerate(groups) if not group.window]
        self.windowed = [at for at, group in enumerate(groups) if group.window]
        """The groups whose layers have a window."""
        self.deciding = self._full[:1] or self.windowed
        """The groups that have pages of all that can be found; one is enough of those that see
        everything, since they have the same."""
        self._by_key: dict[bytes, CachedPage] = {}
        self._by_page: list[dict[int, CachedPage]] = [{} for _ in groups]
        self._ends = TenantEnds(next(iter(self._full), None))

    def __len__(self) -> int:
        """Pages of all groups."""
        return sum(map(len, self._by_page))

    def __iter__(self) -> Iterator[CachedPage]:
        """Also those that are but links."""
        return iter(self._by_key.values())

    # --- looking -----------------------------------------------------------------------------

    def at(self, page: int, group: int = 0) -> CachedPage | None:
        """The entry of a page, if it has a name."""
        return self._by_page[group].get(page)

    def find(self, name: PageName) -> CachedPage | None:
        """The entry with a name; whether it comes after the right ones is not seen."""
        found = self._by_key.get(name.key)
        return found if found is not None and found.name == name else None

    def chain(self, names: Iterable[PageName]) -> list[CachedPage]:
        """The entries of the longest beginning of `names` that is here."""
        entries: list[CachedPage] = []
        before: CachedPage | None = None
        for name in names:
            found = self._by_key.get(name.key)
            if found is None or found.before is not before or found.name != name:
                break
            before = found
            entries.append(found)
        return entries

    def last(self, rows: Rows) -> CachedPage | None:
        """The entry of the last page of each of `rows`, if one of them has a name."""
        if not rows or not len(rows[0]):
            return None
        pages = enumerate(row.item(-1) for row in rows)
        return next((at for group, page in pages if (at := self.at(page, group))), None)

    def match(self, names: Sequence[PageName], without: Pages = ()) -> Rows:
        """The pages that a sequence can begin with: a row for each group up to the last border at
        which all groups can resume, 0 where a group needs none.

        Args:
            names: of its own pages.
            without: of each group, pages that are as if they were not here.
        """
        rows = self.there(names, without)
        border = last_border(self._groups, rows, len(rows[0]))
        for group in self.windowed:
            first, window = self._groups[group].kept(border * self._groups[0].geometry.page_size)
            rows[group][first.stop : window.start] = 0
        return tuple(row[:border] for row in rows)

    def there(self, names: Sequence[PageName], without: Pages = ()) -> Rows:
        """Of each group, the pages that are here of the longest beginning of `names` that has
        entries; 0 where there is none. The arguments are those of `match`."""
        entries = self.chain(names)
        rows = tuple(
            np.fromiter([entry.pages[group] for entry in entries], np.int32, len(entries))
            for group in range(len(self._groups))
        )
        for row, gone in zip(rows, without, strict=False):
            if gone:
                row[np.isin(row, gone)] = 0
        return rows

    def resumed_near(self, entry: CachedPage, group: int) -> bool:
        """Whether a sequence would need this page at a border where one is likely to resume: where
        one did, a prompt ended, a row ends, or several go on differently."""
        layers = self._groups[group]
        pages_for = layers.geometry.pages_for
        if not layers.window or entry.depth < pages_for(layers.sinks):
            return True
        last = entry
        for _ in range(pages_for(layers.window - 1)):
            if last.resumed or last.after != 1 or last.next is None:
                return True
            last = last.next
        return False

    def entries_of(self, pages: Pages) -> Iterator[tuple[CachedPage, int]]:
        """Of pages of each group, the entries of those that have a name, and the group."""
        for group, own in enumerate(pages):
            for page in own:
                if (entry := self.at(page, group)) is not None:
                    yield entry, group

    def pages_of(self, entries: Iterable[CachedPage]) -> Pages:
        """Of each group, the pages of some entries."""
        columns = zip(*(entry.pages for entry in entries), strict=True)
        pages = tuple(tuple(filter(None, column)) for column in columns)
        return pages or ((),) * len(self._groups)

    def has_before(self, entry: CachedPage | None, pages: Sequence[int]) -> bool:
        """Whether a page may follow `entry` that is in a row with `pages` before it.

        In groups without a window it must be the same row: else pages could only be given up after
        those that somebody else holds.
        """
        return entry is None or all(entry.pages[group] == pages[group] for group in self._full)

    def and_after(self, entries: Iterable[CachedPage]) -> set[CachedPage]:
        """Those, and all that come after them. Looks at all entries."""
        found = {*entries}
        for entry in sorted(self, key=lambda entry: entry.depth):
            if entry.before in found:
                found.add(entry)
        return found

    def in_order(self) -> TenantsInOrder:
        """The pages to give up first, for as long as the index stays as it is."""
        return self._ends.in_order()

    def set_share(self, tenant: int, weight: int | None) -> None:
        """How much of what is cached a tenant is due; see `Shares.having`. From any thread, one at
        a time."""
        self._ends.shares = self._ends.shares.having(tenant, weight)

    # --- changing ----------------------------------------------------------------------------

    def add(
        self,
        name: PageName,
        pages: Sequence[int],
        before: CachedPage | None,
        depth: int,
        now: float,
    ) -> CachedPage | None:
        """`pages`, of each group one, which come after an entry, hold `name` now. None: another
        entry has this key."""
        if name.key in self._by_key:
            return None
        entry = CachedPage(name, (0,) * len(pages), before, depth, now)
        entry.worth = self._policy.worth(entry)
        self._by_key[name.key] = entry
        self._ends.came(entry)
        if before is not None:
            before.after += 1
            before.next = entry
            self._ends.discard(before)
        self._put(entry, pages)
        self._ends.add(entry)
        return entry

    def fill(self, entry: CachedPage, pages: Sequence[int]) -> tuple[int, ...]:
        """Of `pages`, of each group one, which hold what the entry does, take those of groups with
        a window that have given it up. Returns them, 0 where none was taken."""
        taken = [0] * len(pages)
        for group in self.windowed:
            if not entry.pages[group]:
                taken[group] = pages[group]
        self._put(entry, taken)
        return tuple(taken)

    def _put(self, entry: CachedPage, pages: Sequence[int]) -> None:
        entry.pages = tuple(map(max, entry.pages, pages))
        for group, page in enumerate(pages):
            if page:
                self._by_page[group][page] = entry

    def moved(self, moved: Sequence[Mapping[int, int]]) -> None:
        """Of each group, pages are elsewhere now."""
        for group, pages in enumerate(moved):
            by_page = self._by_page[group]
            entries = [(to, by_page.pop(page)) for page, to in pages.items() if page in by_page]
            for to, entry in entries:
                entry.pages = (*entry.pages[:group], to, *entry.pages[group + 1 :])
            by_page.update(entries)

    def touch(self, last: CachedPage | None, now: float, *, hit: bool = False) -> None:
        """The entries up to `last` are used now; `hit`: by somebody who did not compute them."""
        while last is not None and self.find(last.name) is not last:
            last = last.before  # it was forgotten
        entry = last
        while entry is not None:
            self._use(entry, now, hit=hit)
            entry = entry.before
        if last is not None and not last.after:
            self._ends.add(last)

    def hold(self, rows: Rows) -> None:
        """A sequence has these pages: those of groups with a window are not to be given up."""
        for group in self.windowed:
            for entry in map(self._by_page[group].get, rows[group].tolist()):
                if entry is not None:
                    self._ends.discard(entry, group)

    def idle(self, pages: Pages, now: float) -> None:
        """No sequence has these pages any more, of each group with a window."""
        for entry, group in self.entries_of(pages):
            self._use(entry, now)
            self._ends.add(entry, group)

    def _use(self, entry: CachedPage, now: float, *, hit: bool = False) -> None:
        entry.used = now
        entry.hits += hit
        self._ends.used[entry.name.tenant] = now
        entry.worth = self._policy.worth(entry)

    def forget(self, pages: Pages) -> list[PageName]:
        """Pages of each group hold no longer what they held. Returns the names of which no group
        has a page now."""
        lost = []
        for group, own in enumerate(pages):
            for page in own:
                entry = self._by_page[group].pop(page, None)
                if entry is None:
                    continue
                entry.pages = (*entry.pages[:group], 0, *entry.pages[group + 1 :])
                self._ends.discard(entry, group)
                if not any(entry.pages):
                    self._policy.evicted(entry)
                    lost.append(entry.name)
                    self.drop_links(entry)
        return lost

    def drop_links(self, entry: CachedPage | None) -> None:
        """An entry that links nothing goes, and so do those before it."""
        while entry is not None and not entry.after:
            if any(entry.pages):
                self._ends.add(entry)
                return
            del self._by_key[entry.name.key]
            self._ends.discard(entry)
            self._ends.went(entry)
            gone, entry = entry, entry.before
            if entry is not None:
                entry.after -= 1
                entry.next = None if entry.next is gone else entry.next
