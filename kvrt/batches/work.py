"""The lines of a batch: which are left, and where the answers to the others are.

    journal   | answers ... | answers ... | what a kill left |
                                          ^ the database knows of what is before

Answers are written, then synced, then committed. What is beyond the last commit is written over.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvrt.batches.database import Database
from kvrt.batches.lines import Found
from kvrt.batches.words import Answered, Batch, Kind, Line

WAITING, GOOD, BAD = 0, 1, 2
"""States of a line."""

AT_ONCE = 1024
"""Rows that are read at once."""


class Result(NamedTuple):
    """A line, and what has become of it.

    Args:
        number: in the input.
        journal: the number of the journal that has its answer.
        record_at, record_size: place and bytes of the answer there.
        at, size: place and bytes of the line in the input.
    """

    number: int
    state: int
    journal: int
    record_at: int
    record_size: int
    at: int
    size: int


class Work:
    """The lines of all batches, of which one process has each. Not for several threads at once.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = database.sql
        self._folder = database.folder / "journals"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._open: dict[tuple[int, int], int] = {}

    def add(self, batch: Batch, kinds: dict[tuple[str, str], int], lines: Sequence[Found]) -> int:
        """Lines of the input, in its order.

        Args:
            kinds: the number of each url and model; new ones are added.

        Returns:
            The number of the first whose name another had before; 0: there is none.
        """
        rows: list[tuple[Any, ...]] = []
        with self._database.transaction():
            for line in lines:
                pair = (line.url, line.model)
                if pair not in kinds:
                    kinds[pair] = len(kinds)
                    row = (batch.num, kinds[pair], *pair)
                    self._sql.execute("INSERT INTO kinds VALUES (?, ?, ?, ?)", row)
                rows.append(
                    (batch.num, kinds[pair], line.key, line.number, line.name, line.at, line.size)
                )
            added = self._sql.executemany(
                "INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0)"
                " ON CONFLICT DO NOTHING",
                rows,
            )
            return 0 if added.rowcount == len(lines) else self._twice(batch, lines)

    def _twice(self, batch: Batch, lines: Sequence[Found]) -> int:
        """The number of the first line whose name another has that is there."""
        for line in lines:
            (first,) = self._sql.execute(
                "SELECT number FROM lines WHERE batch = ? AND name = ?", (batch.num, line.name)
            ).fetchone()
            if first != line.number:
                return line.number
        raise AssertionError("one of them was not added")

    def kinds(self, batch: Batch) -> list[Kind]:
        """Those that have lines which wait, in order of work."""
        rows = self._sql.execute(
            "SELECT number, url, model FROM kinds WHERE batch = ? AND EXISTS (SELECT 1 FROM lines"
            " WHERE batch = kinds.batch AND kind = kinds.number AND state = 0 AND worker = 0)"
            " ORDER BY model, url",
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

    def let_go(self, batch: Batch) -> None:
        """What `waiting` gave and has no answer, others may ask."""

    def elsewhere(self, batch: Batch) -> bool:
        """Whether others ask lines of it now."""
        return False

    def record(self, batch: Batch, answers: Sequence[Answered]) -> None:
        """Keep answers, for good when this returns: of lines that are this worker's to answer.

        Raises:
            OSError, sqlite3.Error: they cannot be kept; it is as if nothing had been done.
        """
        number = self._database.worker
        journal, end = self._journal(batch, number), self._end(batch)
        _write(journal, b"".join(each.record for each in answers), end)
        os.fdatasync(journal)
        with self._database.transaction():
            ours = self._ours(batch, answers)
            rows, kept = [], []
            for each in answers:
                line, size = each.line, len(each.record)
                if line.number in ours:
                    state = GOOD if each.good else BAD
                    rows.append(
                        (state, number, end, size, batch.num, line.kind, line.key, line.number)
                    )
                    kept.append(each)
                end += size
            self._sql.executemany(
                "UPDATE lines SET state = ?, journal = ?, record_at = ?, record_size = ?"
                " WHERE batch = ? AND kind = ? AND key = ? AND number = ?",
                rows,
            )
            good = sum(each.good for each in kept)
            self._sql.execute(
                "UPDATE batches SET done = done + ?, failed = failed + ?, journal_end = ?,"
                " prompt_tokens = prompt_tokens + ?, cached_tokens = cached_tokens + ?,"
                " said_tokens = said_tokens + ? WHERE num = ?",
                (
                    good, len(kept) - good, end,
                    sum(each.tokens.prompt for each in kept),
                    sum(each.tokens.cached for each in kept),
                    sum(each.tokens.said for each in kept), batch.num,
                ),
            )  # fmt: skip

    def _ours(self, batch: Batch, answers: Sequence[Answered]) -> set[int]:
        """Within a transaction: the numbers of lines that wait for this worker's answer. One that
        it was thought to have left is another's."""
        marks = ", ".join("?" * len(answers))
        rows = self._sql.execute(
            "SELECT number FROM lines WHERE batch = ? AND state = 0 AND worker = ?"
            f" AND number IN ({marks})",
            (batch.num, self._database.worker, *(each.line.number for each in answers)),
        )
        return {number for (number,) in rows}

    def _end(self, batch: Batch) -> int:
        """Where the next answer goes in the journal."""
        (end,) = self._sql.execute(
            "SELECT journal_end FROM batches WHERE num = ?", (batch.num,)
        ).fetchone()
        return int(end)

    def results(self, batch: Batch, after: int) -> list[Result]:
        """The next lines by number."""
        rows = self._sql.execute(
            "SELECT number, state, journal, record_at, record_size, at, size FROM lines"
            " WHERE batch = ? AND number > ? ORDER BY number LIMIT ?",
            (batch.num, after, AT_ONCE),
        )
        return [Result(*row) for row in rows]

    def bad(self, batch: Batch, after: int, most: int, *, unasked: bool) -> list[Result]:
        """As `results`, of lines that failed, and if `unasked` of those that wait."""
        rows = self._sql.execute(
            "SELECT number, state, journal, record_at, record_size, at, size FROM lines"
            " WHERE batch = ? AND number > ? AND state IN (?, ?) ORDER BY number LIMIT ?",
            (batch.num, after, BAD, WAITING if unasked else BAD, most),
        )
        return [Result(*row) for row in rows]

    def said(self, batch: Batch, result: Result) -> bytes:
        """The answer to a line."""
        return os.pread(self._journal(batch, result.journal), result.record_size, result.record_at)

    @property
    def mark(self) -> str:
        """Of this worker, in names of files that are no other's."""
        number = self._database.worker
        return f".{number}" if number else ""

    def close_journal(self, batch: Batch) -> None:
        """It is not needed for now."""
        for key in [each for each in self._open if each[0] == batch.num]:
            os.close(self._open.pop(key))

    def drop_journal(self, batch: Batch) -> None:
        """It is not needed any more."""
        self.close_journal(batch)
        for path in self._folder.glob(f"{batch.id}*"):
            path.unlink(missing_ok=True)

    def sweep(self, kept: Callable[[], Sequence[Batch]]) -> None:
        """Delete the journals of all others, which a kill may have left.

        Args:
            kept: tells whose are needed; asked once it is known which there are.
        """
        there = [*self._folder.iterdir()]
        ids = {batch.id for batch in kept()}
        for path in there:
            if path.name.partition(".")[0] not in ids:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()

    def _path(self, batch: Batch, number: int) -> Path:
        return self._folder / (f"{batch.id}.{number}" if number else batch.id)

    def _journal(self, batch: Batch, number: int) -> int:
        key = (batch.num, number)
        if key not in self._open:
            handle = os.open(self._path(batch, number), os.O_RDWR | os.O_CREAT, 0o600)
            self._open[key] = handle
            sync_folder(self._folder)
        return self._open[key]


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
