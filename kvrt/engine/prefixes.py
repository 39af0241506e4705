"""What users of a runtime can do with its cached prefixes. Runs on the engine's thread."""

import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from kvrt.engine.engine import Engine
from kvrt.engine.fingerprint import page_format
from kvrt.errors import ConfigError, StoreError
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.offload import Offload
from kvrt.kv.pages.eviction import evict
from kvrt.kv.tiers.disk import DiskStore
from kvrt.kv.tiers.host import HostStore
from kvrt.kv.tiers.names import PageName, chain, tenant_of
from kvrt.kv.tiers.pagefile import PageFile

log = logging.getLogger(__name__)


class Prefixes:
    """Pins, forgets, saves and loads cached pages.

    Args:
        engine: whose pages.
        fingerprint: of all of them; see `kvrt.engine.fingerprint.page_fingerprint`.
    """

    def __init__(self, engine: Engine, fingerprint: bytes) -> None:
        self._memory = engine.memory
        self._device = engine.device
        self._fingerprint = fingerprint
        self._pinned: dict[bytes, object] = {}  # by the last page's key: its key in the page table
        self._stop_saving = threading.Event()

    @property
    def _reuse(self) -> PrefixReuse:
        if self._memory.reuse is None:
            raise ConfigError("prefix_cache is off, so nothing is cached", fix="leave it on")
        return self._memory.reuse

    # --- pins --------------------------------------------------------------------------------

    def pin(self, root: bytes, tokens: Sequence[int]) -> int:
        """Keep what is cached of a prompt until `unpin`. Returns how many tokens that is."""
        cache = self._memory.cache
        names = list(chain(root, tokens, cache.geometry.page_size))
        row = self._reuse.index.match(names)
        if row:
            key = names[len(row) - 1].key
            holder = ("pin", key)
            if key not in self._pinned:
                self._pinned[key] = holder
                self._memory.commit(cache.table.attach(holder, row))
        return len(row) * cache.geometry.page_size

    def unpin(self, root: bytes, tokens: Sequence[int]) -> int:
        """Let it be evicted again. Returns how many pins on the prompt's pages there were."""
        cache = self._memory.cache
        names = chain(root, tokens, cache.geometry.page_size)
        holders = [self._pinned.pop(name.key) for name in names if name.key in self._pinned]
        for holder in holders:
            row = cache.table.pages(holder)
            self._reuse.end(row)
            self._memory.commit(cache.table.keep(holder, len(row)), save=False)
        return len(holders)

    # --- forgetting --------------------------------------------------------------------------

    def forget(self, root: bytes | None, tokens: Sequence[int] = ()) -> int:
        """Forget cached pages, here and in every tier, and the pins on them; running requests keep
        theirs.

        Args:
            root: of the tenant; None: of all.
            tokens: only what begins with the full pages of this prompt, or may do so: of a page
                in a tier that has lost those before it, nobody can tell.

        Returns:
            How many different pages were forgotten.
        """
        reuse, offload, cache = self._reuse, self._memory.offload, self._memory.cache
        outside = offload.stores.names() if offload is not None else []
        known = {*(entry.name for entry in reuse.index), *outside}
        doomed = known
        if root is not None:
            doomed = {name for name in known if name.tenant == tenant_of(root)}
            if names := list(chain(root, tokens, cache.geometry.page_size)):
                doomed -= _after(doomed, root)
                doomed |= ({names[-1]} & known) | _after(known, names[-1].key)
        if offload is not None:
            offload.remove(doomed)
        pages = [entry.page for entry in reuse.index if entry.name in doomed]
        if root is None:
            reuse.clear()
        else:
            reuse.dropped(pages)
        for key, holder in list(self._pinned.items()):
            row = cache.table.pages(holder)
            if reuse.index.at(row[-1]) is None:
                del self._pinned[key]
                kept = sum(reuse.index.at(page) is not None for page in row)
                self._memory.commit(cache.table.keep(holder, kept), save=False)
        idle = cache.table.referrers.idle
        nameless = [page for page in _bits(idle) if reuse.index.at(page) is None]
        self._memory.commit(evict(cache.table, len(nameless), reuse.worth, choice=1), save=False)
        return len(doomed)

    # --- snapshots ---------------------------------------------------------------------------

    def save(
        self, folder: Path, root: bytes | None, tokens: Sequence[int], compress: int | None
    ) -> int:
        """Write cached pages to a folder, those that are not there. Returns how many are new.

        Args:
            root: None: all pages; else those of the prompt `tokens`.

        Raises:
            StoreError: the folder cannot be used; or `stop_saving` was called, and what was written
                before is there.
            OSError: the disk failed, or is full; the same.
        """
        form = page_format(self._fingerprint, self._memory.cache.geometry)
        wanted = None
        if root is not None:
            wanted = set(chain(root, tokens, self._memory.cache.geometry.page_size))
        file = PageFile.open(folder, form, compress=compress)
        try:
            written = self._write_all(file, wanted)
            file.sync()
        finally:
            file.close()
        return written

    def stop_saving(self) -> None:
        """From any thread: save no more pages, now and later."""
        self._stop_saving.set()

    def load(self, folder: Path) -> int:
        """Use the pages in a folder from now on, when requests ask for them. Returns how many. Of a
        folder that is in use already, find what was added.

        Raises:
            StoreError: the folder holds no pages of this model, format and version.
        """
        form = page_format(self._fingerprint, self._memory.cache.geometry)
        reuse, memory = self._reuse, self._memory
        store = memory.offload.stores.opened(folder) if memory.offload is not None else None
        if store is not None:
            store.refresh()
            return len(store)
        store = DiskStore(PageFile.open(folder, form, writable=False))
        if memory.offload is None:
            page_bytes = memory.cache.geometry.page_bytes
            host = HostStore.staging(self._device.copier, page_bytes)
            memory.offload = reuse.tiers = Offload(self._device, memory.cache, host, reuse.cost)
        memory.offload.stores.read_from(store)
        return len(store)

    def load_if_there(self, folder: Path) -> None:
        """As `load`; what cannot be used is as if it was not there, and said once."""
        try:
            log.info("%d cached pages are in %s", self.load(folder), folder)
        except StoreError as error:
            if error.reason != "missing":
                log.warning("cached pages are not used: %s", error)

    def save_what_can_be(self, folder: Path) -> None:
        """As `save`, of all pages; what cannot be written is lost, and said once."""
        try:
            log.info("%d cached pages were added in %s", self.save(folder, None, (), None), folder)
        except (StoreError, OSError) as error:
            log.warning("cached pages are not all saved in %s: %s", folder, error)

    def _write_all(self, file: PageFile, wanted: set[PageName] | None) -> int:
        cache, offload = self._memory.cache, self._memory.offload
        buffer = self._device.copier.host_buffer(cache.geometry.page_bytes)
        written = 0

        def put(name: PageName, data: torch.Tensor) -> None:
            nonlocal written
            if self._stop_saving.is_set():
                raise StoreError(
                    f"closing interrupted it after {written} pages, which are there",
                    reason="interrupted",
                    fix="give it more time, or save at another moment",
                )
            written += file.write(name, data.numpy())

        for entry in sorted(self._reuse.index, key=lambda entry: entry.depth):
            if entry.name not in file and (wanted is None or entry.name in wanted):
                source, after = cache.page(entry.page), self._device.fence()
                self._device.copier.to_host(buffer, source, after).wait()
                put(entry.name, buffer)
        for name in offload.stores.names() if offload is not None else ():
            if name not in file and (wanted is None or name in wanted):
                assert offload is not None
                if offload.stores.read(name, buffer):
                    put(name, buffer)
                else:
                    buffer = self._device.copier.host_buffer(cache.geometry.page_bytes)
        return written


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


def _bits(numbers: int) -> Iterable[int]:
    while numbers:
        low = numbers & -numbers
        yield low.bit_length() - 1
        numbers ^= low
