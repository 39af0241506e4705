"""What keeps batches, as the rest of the package sees it.

    sqlite     one process has a folder
    postgres   several workers, on one machine or on many, have a folder that all of them see

Both speak the same SQL. Write transactions are one at a time, whoever begins them, so that what one
has read is so until it ends.
"""

import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from kvrt.errors import ConfigError

SQLITE = "batches.db"
POSTGRES = "kvrt-schema"
"""Which of these files a folder has says what keeps its rows."""


class Rows(Protocol):
    """What a statement has found.

    Args:
        rowcount: rows that it has changed, where it changes some.
    """

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Sql(Protocol):
    """Carries statements out. Values stand for question marks."""

    def execute(self, statement: str, values: Sequence[Any] = ..., /) -> Rows: ...

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]], /) -> Rows: ...


class Database(ABC):
    """Rows, and a folder for what stands beside them. Not for several threads at once."""

    folder: Path

    @property
    @abstractmethod
    def sql(self) -> Sql:
        """A statement outside of `transaction` is kept by itself."""

    @property
    @abstractmethod
    def worker(self) -> int:
        """The number of this process among those that work on the folder, which none had before;
        0: it has the folder alone. It is another after the connection was lost."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """All of it, or nothing; what is committed survives a kill, and a loss of power."""

    @abstractmethod
    def take(self, name: str) -> bool:
        """Be the one worker that does something, until `give`, or the end of the process. False:
        another is. True again if this one is already."""

    @abstractmethod
    def give(self, name: str) -> None:
        """Safe if it was not taken."""

    @abstractmethod
    def living(self) -> Sequence[int]:
        """The numbers of all workers that are there, of this one too."""

    @abstractmethod
    def close(self) -> None:
        """Safe to call twice."""


class Folder:
    """A folder of batches, made for its owner alone, which a process has from now on.

    Args:
        path: of it.
        alone: no other process has it meanwhile; else, no process has it alone.

    Raises:
        ConfigError: it cannot be used, or others have it.
    """

    def __init__(self, path: Path, *, alone: bool) -> None:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"{path}: no folder for batches: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise ConfigError(
                f"{path}: another process works on these batches",
                fix="wait until it ends, or name another folder",
            ) from None

    def close(self) -> None:
        """Safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
