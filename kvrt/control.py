"""Parts of `kvrt.Runtime`: what is kept of cached prefixes, and whose they are; the model, its
adapters and its sleep."""

import threading
from collections.abc import Mapping
from pathlib import Path

from kvrt.checks import Checks, Flag, Folder, Maybe, Text, Whole, check_options
from kvrt.engine.pictures import Media
from kvrt.engine.prompts import Prompt, read_prompt, root_of
from kvrt.engine.worker import Worker
from kvrt.kv.index.events import CacheEvent
from kvrt.kv.index.shares import LARGEST_SHARE

SAVING: Checks = {"folder": Folder(), "compress": Maybe(Whole(-100, 22))}
SHARE: Checks = {"weight": Maybe(Whole(1, LARGEST_SHARE))}
SLEEP: Checks = {"level": Whole(1, 2), "wake_on_request": Flag()}
ADAPTER: Checks = {"name": Text(256), "path": Folder()}
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


class ModelControl:
    """What the model answers with, and whether it is there."""

    _worker: Worker

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Load an adapter of low rank (LoRA) while requests run.

        Requests of several adapters, and of none, are computed in the same steps. What is cached
        for one is found by its content: never by another's of the same name. Its memory comes on
        top of `memory_limit`.

        Args:
            name: for requests.
            path: a folder that PEFT has saved it to, or a GGUF file.

        Raises:
            ConfigError: an adapter of that name is loaded.
            ModelError: it is missing, damaged, not supported, or of another model.
            CapacityError: it does not fit in the device's free memory.
        """
        checked = check_options(ADAPTER, name=name, path=path)
        self._worker.adapters.load(checked["name"], Path(checked["path"]))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Requests that have it go on; then its memory goes back.

        Raises:
            ConfigError: there is none of that name.
        """
        self._worker.adapters.unload(check_options(ADAPTER, name=name)["name"])

    @property
    def adapters(self) -> Mapping[str, int]:
        """The names of the adapters that are loaded, and their bytes."""
        return self._worker.adapters.sizes

    def sleep(self, level: int = 1, *, wake_on_request: bool = True) -> None:
        """Give memory back until it is woken, and keep everything else: what was loaded, the
        addresses, recorded steps. Requests that have not ended wait, and go on with the same text.

        1. KV memory, but for a page. Cached pages go to tiers, where there are any (`offload`), or
           are forgotten; those that are pinned stay.
        2. The weights as well, on devices whose memory is host memory. They are read again from
           their files, which must be there; quantised ones are quicker with `quantized_dir`.

        Returns when the memory has gone. Asleep already, it sleeps as deep as the deeper of both.

        Args:
            level: see above.
            wake_on_request: the next request wakes it, and waits meanwhile. False: it is refused.

        Raises:
            ConfigError: `level` is none of these, or the device's weights cannot leave it.
        """
        given = check_options(SLEEP, level=level, wake_on_request=wake_on_request)
        self._worker.sleep(given["level"], wake_on_request=given["wake_on_request"])

    def wake(self) -> None:
        """Take back what `sleep` gave, and go on. Awake, nothing happens.

        Raises:
            CapacityError: other tenants of the device have the memory, or others do; it sleeps on.
            ModelError: the model's files have gone, or hold another model; it sleeps on.
        """
        self._worker.wake()

    @property
    def asleep(self) -> int:
        """The level of its sleep; 0: it is awake."""
        return self._worker.sleeper.level
