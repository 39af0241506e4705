"""What a store of pages keeps: in memory up to a budget, or in page files.

A shelf has the pages of one model, of all its groups of layers. Its methods may wait for a disk,
and any thread may call them.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from kvrt.errors import StoreError
from kvrt.kv.tiers.folder import own_folder
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.names import PageName, StoredName, tenant_of
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.kv.tiers.remote.frames import Scope, Seals, id_of

log = logging.getLogger(__name__)

MOST_MODELS = 64
"""That a store has shelves for."""


class Shelf(Protocol):
    """Pages of one model."""

    def ids(self) -> list[bytes]:
        """Of all pages; see `frames.id_of`."""

    def put(self, name: StoredName, body: bytes, seal: bytes) -> bool:
        """Keep a page; whether it can be found now."""

    def get(self, id: bytes) -> tuple[bytes, bytes] | None:
        """A page and its seal."""

    def remove(self, ids: list[bytes]) -> None:
        """Find them no more."""

    def names(self) -> list[tuple[bytes, PageName]]:
        """Of all pages, with their ids."""

    def gone(self) -> list[bytes]:
        """Pages that cannot be found any more since the last call; some of them may be again."""

    def close(self) -> None: ...


class Shelves(Protocol):
    """All that a store keeps."""

    def of(self, form: PageFormat, seals: Seals) -> Shelf:
        """Of a model.

        Raises:
            StoreError: there are too many, or its folder cannot be used.
        """

    def close(self) -> None: ...


def chosen(shelf: Shelf, scope: Scope, tenant: int, key: bytes) -> list[bytes]:
    """The pages that are meant by a `Kind.FORGET`."""
    named = shelf.names()
    if scope is Scope.ALL:
        return [id for id, _ in named]
    if scope is Scope.TENANT:
        return [id for id, name in named if name.tenant == tenant]
    own = [(id, name) for id, name in named if name.tenant == tenant]
    after: dict[bytes, set[bytes]] = {}
    for _, name in own:
        after.setdefault(name.parent, set()).add(name.key)
    # Of a page that has lost those before it, nobody can tell whether it comes after that one.
    roots = [parent for parent in after if tenant_of(parent) == tenant]
    kept = _reached(roots, after) - _reached([key], after) - {key}
    return [id for id, name in own if name.key not in kept]


def _reached(starts: list[bytes], after: dict[bytes, set[bytes]]) -> set[bytes]:
    """The pages that come after some."""
    found, queue = set[bytes](), list(starts)
    while queue:
        new = after.get(queue.pop(), set()) - found
        found |= new
        queue += new
    return found


@dataclass(slots=True)
class _Kept:
    name: PageName
    body: bytes
    seal: bytes


class MemoryShelves:
    """Pages in memory, those of all models up to one budget; the least recently used make room.

    Args:
        budget: bytes of pages.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._mutex = threading.Lock()
        self._pages: OrderedDict[tuple[PageFormat, bytes], _Kept] = OrderedDict()
        self._shelves: dict[PageFormat, MemoryShelf] = {}

    def of(self, form: PageFormat, seals: Seals) -> Shelf:
        with self._mutex:
            if form not in self._shelves:
                _check_room(len(self._shelves))
                self._shelves[form] = MemoryShelf(self, form)
            return self._shelves[form]

    def ids(self, form: PageFormat) -> list[bytes]:
        with self._mutex:
            return [id for own, id in self._pages if own == form]

    def names(self, form: PageFormat) -> list[tuple[bytes, PageName]]:
        with self._mutex:
            return [(id, kept.name) for (own, id), kept in self._pages.items() if own == form]

    def put(self, form: PageFormat, id: bytes, kept: _Kept) -> bool:
        if len(kept.body) > self._budget:
            return False
        with self._mutex:
            self._drop(form, id)
            while self._used + len(kept.body) > self._budget:
                oldest, old = next(iter(self._pages))
                self._drop(oldest, old)
                self._shelves[oldest].lost.append(old)
            self._pages[form, id] = kept
            self._used += len(kept.body)
        return True

    def get(self, form: PageFormat, id: bytes) -> _Kept | None:
        with self._mutex:
            kept = self._pages.get((form, id))
            if kept is not None:
                self._pages.move_to_end((form, id))
            return kept

    def remove(self, form: PageFormat, ids: list[bytes]) -> None:
        with self._mutex:
            for id in ids:
                if self._drop(form, id):
                    self._shelves[form].lost.append(id)

    def gone(self, form: PageFormat) -> list[bytes]:
        with self._mutex:
            shelf = self._shelves[form]
            lost, shelf.lost = shelf.lost, []
            return [id for id in lost if (form, id) not in self._pages]

    def _drop(self, form: PageFormat, id: bytes) -> bool:
        kept = self._pages.pop((form, id), None)
        self._used -= 0 if kept is None else len(kept.body)
        return kept is not None

    def close(self) -> None:
        with self._mutex:
            self._pages.clear()


class MemoryShelf:
    """One model's of `MemoryShelves`."""

    def __init__(self, all: MemoryShelves, form: PageFormat) -> None:
        self._all, self._form = all, form
        self.lost: list[bytes] = []

    def ids(self) -> list[bytes]:
        return self._all.ids(self._form)

    def names(self) -> list[tuple[bytes, PageName]]:
        return self._all.names(self._form)

    def put(self, name: StoredName, body: bytes, seal: bytes) -> bool:
        return self._all.put(self._form, id_of(name), _Kept(name.page, body, seal))

    def get(self, id: bytes) -> tuple[bytes, bytes] | None:
        kept = self._all.get(self._form, id)
        return None if kept is None else (kept.body, kept.seal)

    def remove(self, ids: list[bytes]) -> None:
        self._all.remove(self._form, ids)

    def gone(self) -> list[bytes]:
        return self._all.gone(self._form)

    def close(self) -> None: ...


class FolderShelves:
    """Pages in page files, one in a folder of its own for each model.

    Args:
        folder: where these folders are.
        budget: bytes on disk of each.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder, self._budget = folder, budget
        self._mutex = threading.Lock()
        self._shelves: dict[PageFormat, FolderShelf] = {}

    def of(self, form: PageFormat, seals: Seals) -> Shelf:
        with self._mutex:
            if form not in self._shelves:
                _check_room(len(self._shelves))
                folder = own_folder(self._folder, form.fingerprint)
                file = PageFile.open(folder, form, budget=self._budget)
                self._shelves[form] = FolderShelf(file, seals)
            return self._shelves[form]

    def close(self) -> None:
        for shelf in self._shelves.values():
            shelf.close()


class FolderShelf:
    """Pages of one model on disk. What the disk fails to give is missing.

    Args:
        file: opened for writing; the shelf closes it.
        seals: of its pages. A page file has checksums of its own, so these are made anew.
    """

    def __init__(self, file: PageFile, seals: Seals) -> None:
        self._file, self._seals = file, seals
        self._mutex = threading.Lock()
        self._names = {id_of(name): name for name in file.names()}
        self._lost: list[bytes] = []
        self._evicted = file.evicted

    def ids(self) -> list[bytes]:
        with self._mutex:
            return list(self._names)

    def names(self) -> list[tuple[bytes, PageName]]:
        with self._mutex:
            return [(id, name.page) for id, name in self._names.items()]

    def put(self, name: StoredName, body: bytes, seal: bytes) -> bool:
        written = self._attempt(lambda: self._file.write(name, np.frombuffer(body, np.uint8)))
        if written:
            with self._mutex:
                self._names[id_of(name)] = name
        return written

    def get(self, id: bytes) -> tuple[bytes, bytes] | None:
        with self._mutex:
            name = self._names.get(id)
        if name is None:
            return None
        into = np.empty(self._file.form.sizes[name.group], np.uint8)
        if not self._attempt(lambda: self._file.read(name, into)):
            self.remove([id])
            return None
        body = into.tobytes()
        return body, self._seals.of(name, body)

    def remove(self, ids: list[bytes]) -> None:
        with self._mutex:
            found = [name for id in ids if (name := self._names.pop(id, None)) is not None]
            self._lost += map(id_of, found)
        for name in found:
            self._file.forget(name)
        self._attempt(self._sweep)

    def gone(self) -> list[bytes]:
        with self._mutex:
            if self._file.evicted != self._evicted:
                self._evicted = self._file.evicted
                evicted = [id for id, name in self._names.items() if name not in self._file]
                for id in evicted:
                    del self._names[id]
                self._lost += evicted
            lost, self._lost = self._lost, []
            return [id for id in lost if id not in self._names]

    def _sweep(self) -> bool:
        self._file.sweep()
        return True

    def _attempt(self, work: Callable[[], bool]) -> bool:
        try:
            return work()
        except OSError as error:
            log.warning("a KV page in %s is lost: %s", self._file.folder, error)
            return False

    def close(self) -> None:
        self._file.close()


def _check_room(shelves: int) -> None:
    if shelves >= MOST_MODELS:
        raise StoreError(f"{MOST_MODELS} models have pages here already", reason="failed")
