"""Pages of other engines in kvrt's page files (`kvrt.kv.tiers`): what they are called, and whose
they are.

An engine names a page by what stands for all tokens up to it. That says nothing of the model, so
the folder does: it is called by all that the bytes of a page depend on, and the file in it says the
same. Two models that are given one folder never answer each other.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from kvrt.errors import ConfigError
from kvrt.kv.tiers.disk import DiskStats, DiskStore, PageTicket
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.names import PageName, StoredName, fingerprint
from kvrt.kv.tiers.pagefile import PageFile

_NO_PARENT = bytes(32)

_GLANCE_S = 0.1
"""Between two looks at whether a disk hangs."""


def stored_name(key: bytes, group: int = 0) -> StoredName:
    """What a page is called here that another engine calls `key`."""
    return StoredName(PageName(hashlib.sha256(key).digest(), _NO_PARENT, (0,), 0), group)


def model_identity(model: str, identity: str | None) -> bytes:
    """32 bytes that change with the weights of a model.

    Args:
        model: as the engine was given it. Of a folder, the names, sizes and times of its files
            count: so a copy of a model is another one, and one that is written anew is, too.
        identity: what the user says that the weights are; counts instead.

    Raises:
        ConfigError: `model` is no folder, and nobody says what the weights are.
    """
    folder = Path(model)
    if identity is not None:
        parts = [identity]
    elif folder.is_dir():
        found = sorted((each.name, each.stat()) for each in folder.iterdir() if each.is_file())
        parts = [f"{name} {at.st_size} {at.st_mtime_ns}" for name, at in found]
    else:
        raise ConfigError(
            f"the model {model!r} is not a folder: what weights kept pages belong to is not known",
            fix="say what it is, as in identity: MODEL@COMMIT, or give its folder",
        )
    return hashlib.sha256("\n".join(parts).encode()).digest()


def open_pages(
    folder: Path,
    model: bytes,
    layout: tuple[object, ...],
    sizes: tuple[int, ...],
    *,
    budget: int | None = None,
    compress: int | None = None,
) -> DiskStore:
    """The pages of one model, kept in one way, in a folder that many may share.

    Args:
        model: `model_identity`.
        layout: of values whose text says the same in every process: what the bytes of a page depend
            on beside the model and its tokens.
        sizes: of each group of layers, bytes of a page.
        budget: bytes on disk; None: no limit.
        compress: zstd's level; None: as they are.

    Raises:
        StoreError: the folder cannot be used, or another process writes to it.
        ConfigError: `compress` is given and zstandard is not installed.
    """
    whose = fingerprint(model, "foreign", repr(layout))
    form = PageFormat(whose, sizes, page_size=1)
    own = folder.expanduser() / whose.hex()[:16]
    return DiskStore(PageFile.open(own, form, budget=budget, compress=compress))


class KeptPages:
    """Pages on disk for an engine that waits for them, on threads of its own: see `DiskStore`.

    Whatever is wrong with the disk, pages are missing and nothing else; one that does not answer is
    as if it held nothing.

    Args:
        disk: where they are; closed with this.
    """

    def __init__(self, disk: DiskStore) -> None:
        self._disk = disk

    def has(self, key: bytes) -> bool:
        return stored_name(key) in self._disk

    def put(self, pages: Iterable[tuple[bytes, Tensor]]) -> list[bool]:
        """Keep these. Returns of each whether it is there now.

        Args:
            pages: contiguous and in host memory, of the size of a page.
        """
        tickets = [self._disk.store(stored_name(key), page) for key, page in pages]
        return [self._wait(ticket) for ticket in tickets]

    def get(self, into: Iterable[tuple[bytes, Tensor]]) -> list[bool]:
        """Read pages. Returns of each whether it is in its tensor; if not, that may hold anything,
        and is of no more use.

        Args:
            into: as in `put`.
        """
        tickets = [self._disk.fetch(stored_name(key), page) for key, page in into]
        return [self._wait(ticket) for ticket in tickets]

    def remove(self, key: bytes) -> bool:
        """Drop a page. Returns whether it was there."""
        return self._disk.remove(stored_name(key))

    def clear(self) -> None:
        """Drop all of them."""
        for name in self._disk.names():
            self._disk.remove(name)

    def stats(self) -> DiskStats:
        return self._disk.stats()

    def close(self) -> None:
        """Finish what is queued."""
        self._disk.close()

    def _wait(self, ticket: PageTicket) -> bool:
        while not ticket.wait(_GLANCE_S) and not self._disk.hangs():
            pass
        return ticket.ok
