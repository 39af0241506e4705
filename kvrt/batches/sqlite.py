"""Batches in SQLite: a database in their folder, which one process has at a time."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvrt.batches.database import POSTGRES, SQLITE, Database, Folder
from kvrt.batches.schema import VERSION, statements
from kvrt.errors import ConfigError


class Sqlite(Database):
    """See the module; an fsync for each commit.

    Raises:
        ConfigError: the folder cannot be used, or another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held = Folder(folder, alone=True)
        try:
            self._open()
        except BaseException:
            self._held.close()
            raise

    def _open(self) -> None:
        if (self.folder / POSTGRES).exists():
            raise ConfigError(
                f"{self.folder} is of batches that PostgreSQL keeps",
                fix="name the database, or another folder",
            )
        try:
            self._sql = sqlite3.connect(
                self.folder / SQLITE, isolation_level=None, check_same_thread=False
            )
            self._sql.execute("PRAGMA journal_mode = WAL")
            self._sql.execute("PRAGMA synchronous = FULL")
            self._sql.execute("PRAGMA cache_size = -4096")
            (version,) = self._sql.execute("PRAGMA user_version").fetchone()
            if not version:
                with self.transaction():
                    self._make()
            elif version != VERSION:
                raise ConfigError(
                    f"{self.folder} is of another version of kvrt ({version}, not {VERSION})",
                    fix="name another folder",
                )
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{self.folder}: the database cannot be used: {error}") from None

    def _make(self) -> None:
        made = statements(
            number="INTEGER PRIMARY KEY AUTOINCREMENT", bytes="BLOB", packed=" WITHOUT ROWID"
        )
        for statement in made:
            self._sql.execute(statement)
        self._sql.execute(f"PRAGMA user_version = {VERSION}")

    @property
    def sql(self) -> sqlite3.Connection:
        return self._sql

    @property
    def worker(self) -> int:
        return 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:
            self._sql.rollback()
            raise

    def take(self, name: str) -> bool:
        return True

    def give(self, name: str) -> None:
        pass

    def living(self) -> Sequence[int]:
        return (0,)

    def close(self) -> None:
        self._sql.close()
        self._held.close()
