"""The database of a folder of batches, which one process has at a time."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvrt.errors import ConfigError

VERSION = 1
NAME = "batches.db"
SCHEMA = """
CREATE TABLE files (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    name TEXT NOT NULL,
    nbytes INTEGER NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER
);
CREATE INDEX files_of ON files (owner, num);
CREATE TABLE batches (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input TEXT NOT NULL,
    output TEXT NOT NULL,
    errors TEXT NOT NULL,
    period TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER,
    status TEXT NOT NULL,
    end TEXT,
    times TEXT NOT NULL,
    metadata TEXT,
    problems TEXT NOT NULL,
    total INTEGER NOT NULL,
    done INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    said_tokens INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    files_expire INTEGER,
    journal_end INTEGER NOT NULL
);
CREATE INDEX batches_of ON batches (owner, num);
CREATE TABLE kinds (
    batch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    url TEXT NOT NULL,
    model TEXT NOT NULL,
    PRIMARY KEY (batch, number)
) WITHOUT ROWID;
CREATE TABLE lines (
    batch INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    key BLOB NOT NULL,
    number INTEGER NOT NULL,
    name BLOB NOT NULL,
    at INTEGER NOT NULL,
    size INTEGER NOT NULL,
    state INTEGER NOT NULL,
    record_at INTEGER NOT NULL,
    record_size INTEGER NOT NULL,
    PRIMARY KEY (batch, kind, key, number)
) WITHOUT ROWID;
CREATE UNIQUE INDEX line_names ON lines (batch, name);
CREATE UNIQUE INDEX line_numbers ON lines (batch, number);
CREATE TABLE deliveries (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL,
    created INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    due INTEGER
);
"""


class Database:
    """SQLite in a folder, which is made for its owner alone. Not for several threads at once.

    What is committed survives a kill, and a loss of power (WAL, an fsync for each commit).

    Raises:
        ConfigError: the folder cannot be used, or another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"{folder}: no folder for batches: {error.strerror}") from None
        try:
            self._take_lock()
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{self.folder}: another process works on these batches",
                fix="wait until it ends, or name another folder",
            ) from None

    def _open(self) -> None:
        try:
            self.sql = sqlite3.connect(
                self.folder / NAME, isolation_level=None, check_same_thread=False
            )
            self.sql.execute("PRAGMA journal_mode = WAL")
            self.sql.execute("PRAGMA synchronous = FULL")
            self.sql.execute("PRAGMA cache_size = -4096")
            (version,) = self.sql.execute("PRAGMA user_version").fetchone()
            if not version:
                with self.transaction():
                    for statement in SCHEMA.split(";"):
                        self.sql.execute(statement)
                    self.sql.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise ConfigError(
                    f"{self.folder} is of another version of kvrt ({version}, not {VERSION})",
                    fix="name another folder",
                )
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{self.folder}: the database cannot be used: {error}") from None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it, or nothing."""
        self.sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.sql.execute("COMMIT")
        except BaseException:
            self.sql.rollback()
            raise

    def close(self) -> None:
        """Safe to call twice."""
        self.sql.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
