"""The lines of batches that several workers share: each claims some, and answers these alone.

    worker  0  0  0  3  3  5  5        0: nobody has claimed it
    state   0  0  0  0  1  0  1        0: it waits, or is being asked

A claim holds as long as its worker lives. `record` looks for it in the transaction that keeps an
answer, so an answer of somebody who was given up is nobody's, and the line is asked again.
"""

import os
from collections.abc import Sequence

from kvrt.batches.words import Batch, Kind, Line
from kvrt.batches.work import Work

AT_ONCE = 64
"""Lines that a worker claims at once."""

LEFT = 2
"""It claims a part of what is left: one of so many for each worker. So all end at about the same
time, however fast they are (guided self-scheduling: Polychronopoulos and Kuck, 1987)."""


class SharedWork(Work):
    """As `Work`, for one of several workers."""

    def kinds(self, batch: Batch) -> list[Kind]:
        with self._database.transaction():
            self._free(batch)
            return super().kinds(batch)

    def waiting(self, batch: Batch, kind: int, after: Line | None, most: int) -> list[Line]:
        """Claim the next lines that nobody has, in order of work."""
        with self._database.transaction():
            found = self._sql.execute(
                "SELECT total - done - failed, status FROM batches WHERE num = ?", (batch.num,)
            ).fetchone()
            if found is None or found[1] != "in_progress":
                return []
            living = self._free(batch)
            most = max(1, min(most, AT_ONCE, found[0] // (LEFT * len(living))))
            rows = self._sql.execute(
                "UPDATE lines SET worker = ? WHERE batch = ? AND number IN (SELECT number FROM"
                " lines WHERE batch = ? AND kind = ? AND state = 0 AND worker = 0"
                " ORDER BY key, number LIMIT ?) RETURNING kind, key, number, at, size",
                (self._database.worker, batch.num, batch.num, kind, most),
            ).fetchall()
        return sorted((Line(*row) for row in rows), key=lambda line: (line.key, line.number))

    def let_go(self, batch: Batch) -> None:
        self._sql.execute(
            "UPDATE lines SET worker = 0 WHERE batch = ? AND state = 0 AND worker = ?",
            (batch.num, self._database.worker),
        )

    def elsewhere(self, batch: Batch) -> bool:
        with self._database.transaction():
            self._free(batch)
            found = self._sql.execute(
                "SELECT 1 FROM lines WHERE batch = ? AND state = 0 AND worker <> 0 AND worker <> ?"
                " LIMIT 1",
                (batch.num, self._database.worker),
            ).fetchone()
        return found is not None

    def _free(self, batch: Batch) -> Sequence[int]:
        """Within a transaction: what workers had claimed who are gone, anybody may. Who lives."""
        living = self._database.living()
        marks = ", ".join("?" * len(living))
        self._sql.execute(
            "UPDATE lines SET worker = 0 WHERE batch = ? AND state = 0 AND worker <> 0"
            f" AND worker NOT IN ({marks})",
            (batch.num, *living),
        )
        return living

    def _end(self, batch: Batch) -> int:
        """A journal is one worker's, who adds to it; what was not committed is never looked at."""
        return os.fstat(self._journal(batch, self._database.worker)).st_size
