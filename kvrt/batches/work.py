"""The lines of a batch: which are left, and where the answers to the others are.

    journal   | answers ... | answers ... | what a kill left |
                                          ^ the database knows of what is before

Answers are written, then synced, then committed. What is beyond the last commit is written over.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from kvrt.batches.database import Database
from kvrt.batches.lines import Found
from kvrt.batches.words import Answered, Batch, Kind, Line

WAITING, GOOD, BAD = 0, 1, 2
"""States of a line."""

AT_ONCE = 1024
"""Rows that are read at once."""


class Work:
    """The lines of all batches. Not for several threads at once.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = database.sql
        self._folder = database.folder / "journals"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._open: dict[int, int] = {}

    def add(self, batch: Batch, kinds: dict[tuple[str, str], int], lines: Sequence[Found]) -> int:
        """Lines of the input, in its order.

        Args:
            kinds: the number of each url and model; new ones are added.

        Returns:
            The number of the first whose name another had before; 0: there is none.
        """
        with self._database.transaction():
            for line in lines:
                pair = (line.url, line.model)
                if pair not in kinds:
                    kinds[pair] = len(kinds)
                    row = (batch.num, kinds[pair], *pair)
                    self._sql.execute("INSERT INTO kinds VALUES (?, ?, ?, ?)", row)
                added = self._sql.execute(
                    "INSERT OR IGNORE INTO lines VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0)",
                    (batch.num, kinds[pair], line.key, line.number, line.name, line.at, line.size),
                )
                if not added.rowcount:
                    return line.number
        return 0

    def kinds(self, batch: Batch) -> list[Kind]:
        """Those that have lines which wait, in order of work."""
        rows = self._sql.execute(
            "SELECT number, url, model FROM kinds WHERE batch = ?1 AND EXISTS (SELECT 1 FROM lines"
            " WHERE batch = ?1 AND kind = kinds.number AND state = 0) ORDER BY model, url",
            (batch.num,),
        )
        return [Kind(*row) for row in rows]

    def waiting(self, batch: Batch, kind: int, after: Line | None, most: int) -> list[Line]:
        """The next lines that wait, in order of work."""
        key, number = (b"", 0) if after is None else (after.key, after.number)
        rows = self._sql.execute(
            "SELECT kind, key, number, at, size FROM lines WHERE batch = ? AND kind = ?"
            " AND (key, number) > (?, ?) AND state = 0 ORDER BY key, number LIMIT ?",
            (batch.num, kind, key, number, most),
        )
        return [Line(*row) for row in rows]

    def record(self, batch: Batch, answers: Sequence[Answered]) -> None:
        """Keep answers, for good when this returns.

        Raises:
            OSError, sqlite3.Error: they cannot be kept; it is as if nothing had been done.
        """
        (end,) = self._sql.execute(
            "SELECT journal_end FROM batches WHERE num = ?", (batch.num,)
        ).fetchone()
        journal = self._journal(batch)
        _write(journal, b"".join(each.record for each in answers), end)
        os.fdatasync(journal)
        rows = []
        for each in answers:
            line, size = each.line, len(each.record)
            state = GOOD if each.good else BAD
            rows.append((state, end, size, batch.num, line.kind, line.key, line.number))
            end += size
        good = sum(each.good for each in answers)
        with self._database.transaction():
            self._sql.executemany(
                "UPDATE lines SET state = ?, record_at = ?, record_size = ? WHERE batch = ?"
                " AND kind = ? AND key = ? AND number = ? AND state = 0",
                rows,
            )
            self._sql.execute(
                "UPDATE batches SET done = done + ?, failed = failed + ?, journal_end = ?,"
                " prompt_tokens = prompt_tokens + ?, cached_tokens = cached_tokens + ?,"
                " said_tokens = said_tokens + ? WHERE num = ?",
                (
                    good, len(answers) - good, end,
                    sum(each.tokens.prompt for each in answers),
                    sum(each.tokens.cached for each in answers),
                    sum(each.tokens.said for each in answers), batch.num,
                ),
            )  # fmt: skip

    def results(self, batch: Batch, after: int) -> list[tuple[int, int, int, int, int, int]]:
        """Of the next lines by number: number, state, place and size in the journal, and in the
        input."""
        return self._sql.execute(
            "SELECT number, state, record_at, record_size, at, size FROM lines"
            " WHERE batch = ? AND number > ? ORDER BY number LIMIT ?",
            (batch.num, after, AT_ONCE),
        ).fetchall()

    def bad(
        self, batch: Batch, after: int, most: int, *, unasked: bool
    ) -> list[tuple[int, int, int, int, int, int]]:
        """As `results`, of lines that failed, and if `unasked` of those that wait."""
        return self._sql.execute(
            "SELECT number, state, record_at, record_size, at, size FROM lines"
            " WHERE batch = ? AND number > ? AND state IN (?, ?) ORDER BY number LIMIT ?",
            (batch.num, after, BAD, WAITING if unasked else BAD, most),
        ).fetchall()

    def said(self, batch: Batch, at: int, size: int) -> bytes:
        """Bytes of the journal."""
        return os.pread(self._journal(batch), size, at)

    def close_journal(self, batch: Batch) -> None:
        """It is not needed for now."""
        if (handle := self._open.pop(batch.num, None)) is not None:
            os.close(handle)

    def drop_journal(self, batch: Batch) -> None:
        """It is not needed any more."""
        self.close_journal(batch)
        self._path(batch).unlink(missing_ok=True)

    def sweep(self, kept: Sequence[Batch]) -> None:
        """Delete the journals of all others, which a kill may have left."""
        names = {self._path(batch).name for batch in kept}
        for path in self._folder.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()

    def _path(self, batch: Batch) -> Path:
        return self._folder / batch.id

    def _journal(self, batch: Batch) -> int:
        if batch.num not in self._open:
            handle = os.open(self._path(batch), os.O_RDWR | os.O_CREAT, 0o600)
            self._open[batch.num] = handle
            sync_folder(self._folder)
        return self._open[batch.num]


def _write(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written


def sync_folder(path: Path) -> None:
    """What was made or renamed in a folder survives a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
