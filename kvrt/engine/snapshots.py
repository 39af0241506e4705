"""Cached pages in folders. Whoever asks waits for the disk; the engine only copies in between.

caller's thread     what is there?          | write    | write   | flush
engine's thread        | step | copy a few | step | copy a few | step | step ...
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from kvrt.engine.engine import Engine
from kvrt.engine.fingerprint import page_format
from kvrt.engine.prefixes import reuse_of
from kvrt.errors import StoreError
from kvrt.executor.interface import Save
from kvrt.kv.index.eviction import CachedPage
from kvrt.kv.offload import Offload
from kvrt.kv.tiers.disk import DiskStore
from kvrt.kv.tiers.host import HostStore
from kvrt.kv.tiers.media import Medium
from kvrt.kv.tiers.names import StoredName, chain
from kvrt.kv.tiers.pagefile import PageFile

log = logging.getLogger(__name__)
T = TypeVar("T")

PIECE_S = 0.002
"""Between two steps, so long pages are copied: those that run do not wait for all of them."""

PIECE_BYTES, PIECE_PAGES = 16 << 20, 64
"""Of host memory for them, at most; one page in any case."""


class Ask(Protocol):
    """Has something done on the engine's thread, between two steps, and waits for it."""

    def __call__(self, function: Callable[[], T]) -> T: ...


class Snapshots:
    """Saves and loads cached pages, one folder at a time. Any thread may call.

    Args:
        engine: whose pages.
        fingerprint: of all of them; see `kvrt.engine.fingerprint.page_fingerprint`.
        ask: reaches the engine's thread.
    """

    def __init__(self, engine: Engine, fingerprint: bytes, ask: Ask) -> None:
        self._memory = engine.memory
        self._executor = engine.executor
        self._form = page_format(fingerprint, engine.executor)
        self._ask = ask
        self._turn = threading.Lock()
        self._stop_saving = threading.Event()

    # --- saving ------------------------------------------------------------------------------

    def save(
        self,
        folder: Path,
        root: bytes | None,
        tokens: Sequence[int],
        compress: int | None,
        media: Sequence[Medium] = (),
    ) -> int:
        """Write cached pages to a folder, those that are not there. Returns how many are new.

        Pages that are evicted meanwhile, and in no tier, may be missing.

        Args:
            root: None: all pages; else those of the prompt `tokens`, with these images.

        Raises:
            StoreError: the folder cannot be used; or `stop_saving` was called, and what was written
                before is there.
            OSError: the disk failed, or is full; the same.
            KvrtError: the engine has ended; the same.
        """
        held, outside = self._ask(self._there)
        held.sort(key=lambda entry: entry.depth)  # none before the one that it follows
        here = (
            StoredName(entry.name, group)
            for entry in held
            for group, page in enumerate(entry.pages)
            if page
        )
        names = dict.fromkeys((*here, *outside))
        if root is not None:
            wanted = set(chain(root, tokens, self._memory.cache.page_size, media))
            names = {name: None for name in names if name.page in wanted}
        with self._turn:
            file = PageFile.open(folder, self._form, compress=compress)
            try:
                written = self._write_all(file, deque(name for name in names if name not in file))
                file.sync()
            finally:
                file.close()
        return written

    def save_what_can_be(self, folder: Path) -> None:
        """As `save`, of all pages; what cannot be written is lost, and said once."""
        try:
            log.info("%d cached pages were added in %s", self.save(folder, None, (), None), folder)
        except (StoreError, OSError) as error:
            log.warning("cached pages are not all saved in %s: %s", folder, error)

    def stop_saving(self) -> None:
        """Save no more pages, now and later."""
        self._stop_saving.set()

    def _write_all(self, file: PageFile, names: deque[StoredName]) -> int:
        most = min(PIECE_PAGES, PIECE_BYTES // max(self._form.sizes), len(names))
        buffers = self._ask(lambda: [self._buffer() for _ in range(max(1, most))])
        written = 0
        while names:
            for name, data in self._ask(lambda: self._copy(names, buffers)):
                if self._stop_saving.is_set():
                    raise StoreError(
                        f"closing interrupted it after {written} pages, which are there",
                        reason="interrupted",
                        fix="give it more time, or save at another moment",
                    )
                written += file.write(name, data.numpy())
        return written

    # --- on the engine's thread --------------------------------------------------------------

    def _there(self) -> tuple[list[CachedPage], list[StoredName]]:
        """The cached pages on the device, and those in tiers."""
        offload = self._memory.offload
        return [*reuse_of(self._memory).index], [] if offload is None else offload.stores.names()

    def _buffer(self) -> torch.Tensor:
        return self._executor.host_buffer(max(self._form.sizes))

    def _copy(
        self, names: deque[StoredName], buffers: list[torch.Tensor]
    ) -> list[tuple[StoredName, torch.Tensor]]:
        """Copies of the next few pages, in `buffers`; of those that are still there."""
        begun = time.perf_counter()
        copied: list[tuple[StoredName, torch.Tensor]] = []
        while names and len(copied) < len(buffers) and time.perf_counter() < begun + PIECE_S:
            name = names.popleft()
            page = buffers[len(copied)][: self._form.sizes[name.group]]
            if self._read(name, page):
                copied.append((name, page))
            else:  # a disk may yet write to it
                buffers[len(copied)] = self._buffer()
        return copied

    def _read(self, name: StoredName, into: torch.Tensor) -> bool:
        entry = reuse_of(self._memory).index.find(name.page)
        if entry is not None and (page := entry.pages[name.group]):
            (ticket,) = self._executor.copies([Save(page, into, name.group)])
            ticket.wait()
            return True
        offload = self._memory.offload
        return offload is not None and offload.stores.read(name, into)

    # --- loading -----------------------------------------------------------------------------

    def load(self, folder: Path) -> int:
        """Use the pages in a folder from now on, when requests ask for them. Returns how many. Of a
        folder that is in use already, find what was added.

        Raises:
            StoreError: the folder holds no pages of this model, format and version.
            KvrtError: the engine has ended.
        """
        with self._turn:
            store = self._ask(lambda: self._opened(folder))
            if store is not None:
                store.refresh()
                return len(store)
            store = DiskStore(PageFile.open(folder, self._form, writable=False))
            try:
                self._ask(lambda: self._read_from(store))
            except BaseException:
                store.close(0.0)
                raise
            return len(store)

    def load_if_there(self, folder: Path) -> None:
        """As `load`; what cannot be used is as if it was not there, and said once."""
        try:
            log.info("%d cached pages are in %s", self.load(folder), folder)
        except StoreError as error:
            if error.reason != "missing":
                log.warning("cached pages are not used: %s", error)

    def _opened(self, folder: Path) -> DiskStore | None:
        reuse_of(self._memory)
        offload = self._memory.offload
        return None if offload is None else offload.stores.opened(folder)

    def _read_from(self, store: DiskStore) -> None:
        memory = self._memory
        if memory.offload is None:
            reuse = reuse_of(memory)
            host = HostStore.staging(self._executor, self._form.sizes)
            memory.offload = reuse.tiers = Offload(self._executor, host, reuse.cost)
        memory.offload.stores.read_from(store)
