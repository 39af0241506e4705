"""What others are to be told of batches: kept with what it tells of, until they have been told.

A delivery that fails is due again, later each time, and is a dead letter in the end, which stays
until somebody has it delivered again, or forgets it.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvrt.batches.database import SQLITE, Sql
from kvrt.batches.postgres import Postgres
from kvrt.errors import ConfigError

DELAYS_S = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
"""After each try that fails, how long until the next; after the last, the letter is dead."""

COLUMNS = "num, id, body, created, tries, due"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One.

    Args:
        num: its place in the database.
        id: of the event.
        body: JSON.
        created: when, in seconds since the epoch.
        tries: that have failed.
        due: when it is to be tried; None: it is dead.
    """

    num: int
    id: str
    body: bytes
    created: int
    tries: int
    due: int | None


class Deliveries:
    """All of them. Not for several threads at once.

    Args:
        sql: the database.
        clock: seconds since the epoch.
    """

    def __init__(self, sql: Sql, clock: Callable[[], float] = time.time) -> None:
        self._sql = sql
        self._clock = clock

    def add(self, kind: str, batch: str) -> None:
        """An event of a batch; within the transaction that it tells of.

        Args:
            kind: such as ``batch.completed``.
        """
        now, id = int(self._clock()), f"evt_{secrets.token_hex(12)}"
        event = {
            "id": id,
            "object": "event",
            "created_at": now,
            "type": kind,
            "data": {"id": batch},
        }
        self._sql.execute(
            "INSERT INTO deliveries (id, body, created, tries, due) VALUES (?, ?, ?, 0, ?)",
            (id, json.dumps(event).encode(), now, now),
        )

    def due(self, most: int) -> list[Delivery]:
        """Those to be tried now, the longest overdue first."""
        rows = self._sql.execute(
            f"SELECT {COLUMNS} FROM deliveries WHERE due <= ? ORDER BY due LIMIT ?",
            (int(self._clock()), most),
        )
        return [Delivery(*row) for row in rows]

    def delivered(self, delivery: Delivery) -> None:
        self._sql.execute("DELETE FROM deliveries WHERE num = ?", (delivery.num,))

    def failed(self, delivery: Delivery) -> bool:
        """A try. True: it was the last."""
        dead = delivery.tries >= len(DELAYS_S)
        due = None if dead else int(self._clock()) + DELAYS_S[delivery.tries]
        self._sql.execute(
            "UPDATE deliveries SET tries = tries + 1, due = ? WHERE num = ?", (due, delivery.num)
        )
        return dead

    def dead(self) -> list[Delivery]:
        rows = self._sql.execute(f"SELECT {COLUMNS} FROM deliveries WHERE due IS NULL ORDER BY num")
        return [Delivery(*row) for row in rows]

    def again(self, letters: Sequence[Delivery]) -> None:
        """Try dead ones as if they were new."""
        now = int(self._clock())
        self._sql.executemany(
            "UPDATE deliveries SET tries = 0, due = ? WHERE num = ? AND due IS NULL",
            [(now, each.num) for each in letters],
        )


@contextmanager
def deliveries_of(folder: Path, url: str | None = None) -> Iterator[Deliveries]:
    """Those of a folder of batches, of which a server may be at work.

    Args:
        url: of the database that has its rows; None: SQLite has.

    Raises:
        ConfigError: it is none.
    """
    if url is not None:
        with closing(Postgres(folder, url)) as database:
            yield Deliveries(database.sql)
        return
    path = folder / SQLITE
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as sql:
            yield Deliveries(sql)
            sql.commit()
    except sqlite3.Error as error:
        raise ConfigError(f"{folder} is no folder of batches, or cannot be used: {error}") from None
