"""Cached prefixes that users pin and forget. Runs on the engine's thread."""

from collections.abc import Sequence

from kvrt.engine.engine import Engine
from kvrt.errors import ConfigError
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.memory import Memory
from kvrt.kv.pages.lanes import SeqId
from kvrt.kv.tiers.media import Medium
from kvrt.kv.tiers.names import PageName, chain, tenant_of


def reuse_of(memory: Memory) -> PrefixReuse:
    """What finds cached pages; an error if there is no cache."""
    if memory.reuse is None:
        raise ConfigError("prefix_cache is off, so nothing is cached", fix="leave it on")
    return memory.reuse


class Prefixes:
    """Pins and forgets cached pages.

    Args:
        engine: whose pages.
    """

    def __init__(self, engine: Engine) -> None:
        self._memory = engine.memory
        self._pinned: dict[PageName, SeqId] = {}  # by the last page: its key in the page table
        self.pinned_pages = 0
        """Pages, of all groups, that pins keep, each counted once. From any thread."""

    @property
    def _reuse(self) -> PrefixReuse:
        return reuse_of(self._memory)

    # --- pins --------------------------------------------------------------------------------

    def pin(self, root: bytes, tokens: Sequence[int], media: Sequence[Medium] = ()) -> int:
        """Keep what is cached of a prompt until `unpin`. Returns how many tokens that is."""
        cache = self._memory.cache
        names = list(chain(root, tokens, cache.page_size, media))
        rows = self._reuse.index.match(names)
        pages = len(rows[0])
        if pages and (last := names[pages - 1]) not in self._pinned:
            holder = self._pinned[last] = ("pin", last.key)
            self._memory.commit(cache.table.attach(holder, rows))
            self._count()
        return pages * cache.page_size

    def unpin(self, root: bytes, tokens: Sequence[int], media: Sequence[Medium] = ()) -> int:
        """Let it be evicted again. Returns how many pins on the prompt's pages there were."""
        cache = self._memory.cache
        names = list(chain(root, tokens, cache.page_size, media))
        pinned = [pages for pages, last in enumerate(names, 1) if last in self._pinned]
        for pages in pinned:
            holder = self._pinned.pop(names[pages - 1])
            self._reuse.unpinned(cache.table.rows_of(holder))
            self._memory.commit(cache.table.free(holder))
        self._count()
        return len(pinned)

    def _count(self) -> None:
        table = self._memory.cache.table
        rows = (enumerate(table.rows_of(holder)) for holder in self._pinned.values())
        pages = ((group, page) for of in rows for group, row in of for page in row.tolist())
        self.pinned_pages = len({found for found in pages if found[1]})

    # --- forgetting --------------------------------------------------------------------------

    def forget(
        self, root: bytes | None, tokens: Sequence[int] = (), media: Sequence[Medium] = ()
    ) -> int:
        """Forget cached pages, here and in every tier, and the pins on them; running requests keep
        theirs.

        Args:
            root: of the tenant; None: of all.
            tokens: only what begins with the full pages of this prompt, or may do so: of a page
                in a tier that has lost those before it, nobody can tell.
            media: its images.

        Returns:
            How many different pages were forgotten, beside those in a store elsewhere.
        """
        reuse, offload, cache = self._reuse, self._memory.offload, self._memory.cache
        outside = {name.page for name in offload.stores.names()} if offload is not None else set()
        known = {*(entry.name for entry in reuse.index), *outside}
        doomed, names = known, list[PageName]()
        if root is not None:
            doomed = {name for name in known if name.tenant == tenant_of(root)}
            if names := list(chain(root, tokens, cache.page_size, media)):
                doomed -= _after(doomed, root)
                doomed |= ({names[-1]} & known) | _after(known, names[-1].key)
        if offload is not None:
            offload.remove(doomed)
            offload.forget_elsewhere(root, names)
        entries = [entry for entry in reuse.index if entry.name in doomed]
        links = {entry.name for entry in entries if not any(entry.pages)}.difference(outside)
        pages = reuse.index.pages_of(entries)
        if root is None:
            reuse.clear()
        self._memory.forget(pages)
        for last, holder in list(self._pinned.items()):
            if reuse.index.find(last) is None:
                del self._pinned[last]
                self._memory.commit(cache.table.free(holder))
        self._count()
        return len(doomed - links)


def _after(known: set[PageName], key: bytes) -> set[PageName]:
    """Of the known pages, those that come after the one with this key, with none missing between;
    after a root, if it is that."""
    after: dict[bytes, list[PageName]] = {}
    for name in known:
        after.setdefault(name.parent, []).append(name)
    found: set[PageName] = set()
    queue = [key]
    while queue:
        for name in after.pop(queue.pop(), ()):
            found.add(name)
            queue.append(name.key)
    return found
