"""The two files of a page file, open, and the right to write to them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kvrt.errors import StoreError
from kvrt.kv.tiers.blockfile import BlockFile
from kvrt.kv.tiers.folder import FolderLock, check_owner, create, prepare, refused

INDEX, DATA = "kvrt-pages.index", "kvrt-pages.data"


@dataclass(frozen=True, slots=True, eq=False)
class PageFiles:
    """See the module.

    Args:
        folder: where they are.
        index: of records.
        data: of bodies.
        lock: the right to write; None: they are only read.
    """

    folder: Path
    index: BlockFile
    data: BlockFile
    lock: FolderLock | None

    @classmethod
    def open(
        cls, folder: Path, head: bytes, *, writable: bool, open_file: Callable[..., BlockFile]
    ) -> Self:
        """Open both; if they are to be written and not there, make them.

        Args:
            head: what a new index begins with.
            open_file: opens one, as `BlockFile` does.

        Raises:
            StoreError: the folder cannot be used; `StoreError.reason` says why.
        """
        prepare(folder, create=writable)
        lock = FolderLock(folder) if writable else None
        files: list[BlockFile] = []
        try:
            with as_store_errors(folder):
                if writable:
                    create(folder / INDEX, folder / DATA, head)
                for name, direct in ((INDEX, False), (DATA, True)):
                    files.append(open_file(folder / name, writable=writable, direct=direct))
                    check_owner(folder / name, files[-1].status)
            return cls(folder, files[0], files[1], lock)
        except BaseException:
            for file in files:
                file.close()
            if lock is not None:
                lock.release()
            raise

    def are_at(self, folder: Path) -> bool:
        """Whether the files in that folder are these."""
        try:
            return all(
                os.path.samestat(file.status, os.stat(folder / name))
                for file, name in ((self.index, INDEX), (self.data, DATA))
            )
        except OSError:
            return False

    def sync(self) -> None:
        """Return when what was written would survive a loss of power.

        Raises:
            OSError: the disk could not do it.
        """
        self.data.sync()
        self.index.sync()

    def close(self) -> None:
        """Let others have the folder. Safe to call twice."""
        self.data.close()
        self.index.close()
        if self.lock is not None:
            self.lock.release()


@contextmanager
def as_store_errors(folder: Path) -> Iterator[None]:
    """What the system says of files in a folder becomes a `StoreError`."""
    try:
        yield
    except FileNotFoundError:
        raise StoreError(
            f"{folder} has no KV pages", reason="missing", fix="save some there first"
        ) from None
    except OSError as error:
        raise refused(folder, error) from None
