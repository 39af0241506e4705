"""Files of clients and of batches: a row in the database, and the bytes beside it."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvrt.batches.database import Database
from kvrt.batches.words import File

SHARED_S = 86_400

COLUMNS = "id, owner, purpose, name, nbytes, created, expires"


class Files:
    """All files. Not for several threads at once.

    Args:
        database: where they are listed.
        clock: seconds since the epoch.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._sql = database.sql
        self._clock = clock
        self.folder = database.folder / "files"
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, id: str) -> Path:
        """Where the bytes are."""
        return self.folder / id

    def add(
        self, id: str, owner: str, purpose: str, name: str, nbytes: int, seconds: int | None = None
    ) -> File:
        """List a file whose bytes are there; within a transaction or not.

        Args:
            seconds: after so many it is deleted.
        """
        now = int(self._clock())
        expires = None if seconds is None else now + seconds
        self._sql.execute(
            f"INSERT INTO files ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id)"
            " DO UPDATE SET nbytes = excluded.nbytes, expires = excluded.expires",
            (id, owner, purpose, name, nbytes, now, expires),
        )
        return File(id, owner, purpose, name, nbytes, now, expires)

    def get(self, id: str, owner: str) -> File | None:
        """One of an owner's."""
        rows = self._sql.execute(
            f"SELECT {COLUMNS} FROM files WHERE id = ? AND owner = ?", (id, owner)
        ).fetchall()
        found = [File(*row) for row in rows]
        return found[0] if found and self._there(found[0]) else None

    def page(
        self, owner: str, purpose: str | None, after: str | None, limit: int, *, ascending: bool
    ) -> list[File]:
        """An owner's, by when they came.

        Args:
            purpose: of those alone.
            after: the one before the first; unknown: there are none.
        """
        where: list[Any] = [owner, int(self._clock())]
        words = "owner = ? AND (expires IS NULL OR expires > ?)"
        if purpose is not None:
            words += " AND purpose = ?"
            where.append(purpose)
        if after is not None:
            sign = ">" if ascending else "<"
            words += f" AND num {sign} (SELECT num FROM files WHERE id = ? AND owner = ?)"
            where += [after, owner]
        order = "ASC" if ascending else "DESC"
        rows = self._sql.execute(
            f"SELECT {COLUMNS} FROM files WHERE {words} ORDER BY num {order} LIMIT ?",
            (*where, limit),
        )
        return [File(*row) for row in rows]

    def used(self, owner: str) -> int:
        """Bytes of an owner's files."""
        (found,) = self._sql.execute(
            "SELECT COALESCE(SUM(nbytes), 0) FROM files WHERE owner = ?", (owner,)
        ).fetchone()
        return int(found)

    def delete(self, id: str) -> None:
        """The row first: a kill in between leaves bytes that `sweep` finds."""
        self._sql.execute("DELETE FROM files WHERE id = ?", (id,))
        self.path(id).unlink(missing_ok=True)

    def expired(self) -> list[str]:
        """Those whose time is over."""
        rows = self._sql.execute("SELECT id FROM files WHERE expires <= ?", (int(self._clock()),))
        return [id for (id,) in rows]

    def sweep(self, kept: Sequence[str] = ()) -> None:
        """Delete bytes that no row knows of, which a kill may have left; where there are other
        workers, only those that nobody has written to for a day, as they may be coming just now.

        Args:
            kept: names of files that are to be listed yet.
        """
        before = self._clock() - (SHARED_S if self._database.worker else 0)
        known = {id for (id,) in self._sql.execute("SELECT id FROM files")} | set(kept)
        for name in os.listdir(self.folder):
            with suppress(FileNotFoundError):  # another worker sweeps, too
                if name not in known and self.path(name).stat().st_mtime <= before:
                    self.path(name).unlink()

    def _there(self, file: File) -> bool:
        return file.expires is None or file.expires > self._clock()
