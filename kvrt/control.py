"""The part of `kvrt.Runtime` that is about cached prefixes, and whose they are."""

import threading
from pathlib import Path

from kvrt.checks import Checks, Folder, Maybe, Whole, check_options
from kvrt.engine.pictures import Media
from kvrt.engine.prompts import Prompt, read_prompt, root_of
from kvrt.engine.worker import Worker
from kvrt.kv.index.events import CacheEvent
from kvrt.kv.index.shares import LARGEST_SHARE

SAVING: Checks = {"folder": Folder(), "compress": Maybe(Whole(-100, 22))}
SHARE: Checks = {"weight": Maybe(Whole(1, LARGEST_SHARE))}
"""Of each argument, what it may be."""

_SETTING = threading.Lock()
"""Shares are set one at a time."""


class CacheControl:
    """What to keep of what was computed, to forget, to save, and to load.

    Every method waits for the engine, which does it between two steps; of saving and loading, only
    what is no matter of the disk, and a little at a time.
    """

    _worker: Worker

    def pin(self, prompt: Prompt, *, cache_salt: str = "") -> int:
        """Keep the pages that are cached of a prompt, until `unpin`, whatever else needs memory.

        Returns:
            How many of the prompt's tokens that is: whole pages, of what was computed before.
        """
        root, (tokens, media) = self._root(cache_salt), self._read(prompt)
        return self._worker.call(lambda: self._worker.prefixes.pin(root, tokens, media))

    def unpin(self, prompt: Prompt, *, cache_salt: str = "") -> int:
        """End all pins on pages of a prompt. Returns how many there were."""
        root, (tokens, media) = self._root(cache_salt), self._read(prompt)
        return self._worker.call(lambda: self._worker.prefixes.unpin(root, tokens, media))

    @property
    def pinned_pages(self) -> int:
        """Pages that pins keep, of all groups of layers, each counted once. Does not wait."""
        return self._worker.prefixes.pinned_pages

    def invalidate(self, prompt: Prompt | None = None, *, cache_salt: str | None = None) -> int:
        """Forget cached pages, on the device and in every tier. Running requests keep theirs.

        Args:
            prompt: forget what begins with its full pages; None: everything.
            cache_salt: of the tenant; None: without a prompt, of all tenants.

        Returns:
            How many pages were forgotten.
        """
        if prompt is None and cache_salt is None:
            return self._worker.call(lambda: self._worker.prefixes.forget(None))
        root = self._root(cache_salt or "")
        tokens, media = ([], ()) if prompt is None else self._read(prompt)
        return self._worker.call(lambda: self._worker.prefixes.forget(root, tokens, media))

    def set_share(self, cache_salt: str, weight: int | None) -> None:
        """How much of the KV memory a tenant is due where it is short: its weight's part of the
        weights of all tenants that want some. Does not wait.

        What a tenant does not need, others have. Once any tenant was given a weight, what was lent
        comes back as soon as it is needed: requests of tenants that have more than they are due
        give their pages, and wait. See `kvrt.sched.giving`.

        Args:
            cache_salt: of the tenant.
            weight: 1 to 1000; None: it was given none, which counts as 1.

        Raises:
            ConfigError: the weight cannot be.
            RequestError: the salt is none.
        """
        checked = check_options(SHARE, weight=weight)["weight"]
        root = self._root(cache_salt)
        with _SETTING:
            self._worker.engine.set_share(cache_salt, root, checked)

    def save_cache(
        self,
        folder: str | Path,
        prompt: Prompt | None = None,
        *,
        cache_salt: str = "",
        compress: int | None = None,
    ) -> int:
        """Write cached pages to a folder, so that they outlive this process.

        What is there is not written again. A process that dies meanwhile leaves whole pages only.

        Args:
            folder: made if need be, for its owner alone: pages tell what prompts said.
            prompt: only its pages; None: all.
            cache_salt: the prompt's tenant.
            compress: zstd's level; None: pages as they are, which load faster.

        Returns:
            How many pages were written.

        Raises:
            StoreError: the folder cannot be used, or holds something else.
            OSError: the disk failed or is full; what was written before that is there.
            KvrtError: the runtime was closed meanwhile; the same.
        """
        given = check_options(SAVING, folder=folder, compress=compress)
        where, level = given["folder"], given["compress"]
        root = None if prompt is None else self._root(cache_salt)
        tokens, media = ([], ()) if prompt is None else self._read(prompt)
        return self._worker.snapshots.save(where, root, tokens, level, media)

    def load_cache(self, folder: str | Path) -> int:
        """Use the pages that `save_cache` wrote: each is read when a request needs it.

        Damaged pages are computed instead.

        Returns:
            How many pages there are.

        Raises:
            StoreError: it holds no pages of this model, KV format and version of kvrt.
        """
        where = check_options(SAVING, folder=folder)["folder"]
        return self._worker.snapshots.load(where)

    def cache_events(self, since: int = 0) -> tuple[CacheEvent, ...]:
        """What became of cached pages after event number `since`; see `EventLog.since`."""
        since = check_options({"since": Whole(0, 2**63 - 1)}, since=since)["since"]
        reuse = self._worker.engine.memory.reuse
        return () if reuse is None else reuse.events.since(since)

    def page_root(self, *, cache_salt: str = "") -> bytes:
        """What the names of a prompt's pages begin with: see `kvrt.kv.tiers.names.chain`."""
        return self._root(cache_salt)

    def _read(self, prompt: Prompt) -> tuple[list[int], Media]:
        return read_prompt(prompt, self._worker.model)

    def _root(self, salt: str) -> bytes:
        return root_of(self._worker.fingerprint, salt)
