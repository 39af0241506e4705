"""Who has taken what: a line for each request that asked a model, in SQLite.

A thread writes what has come since it wrote last, in one commit, so that no answer waits for the
disk. A server that is killed loses what came in the last `WRITE_S`, or was being answered. Where
the disk takes nothing, lines wait, and beyond `WAITING` of them the oldest are lost and counted.

What was taken in a day is also kept by itself, with which quotas are known at the start.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kvrt.errors import ConfigError

log = logging.getLogger(__name__)

VERSION = 1
SCHEMA = """
CREATE TABLE requests (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    id TEXT NOT NULL,
    workspace TEXT NOT NULL,
    key TEXT NOT NULL,
    route TEXT NOT NULL,
    model TEXT NOT NULL,
    status INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL
);
CREATE INDEX requests_at ON requests (at);
CREATE TABLE days (
    day TEXT NOT NULL,
    workspace TEXT NOT NULL,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    PRIMARY KEY (day, workspace, key, model)
) WITHOUT ROWID;
"""
WAITING = 100_000
WRITE_S = 0.05
AGAIN_S = 1.0
WARN_S = 60.0
SWEEP_S = 3600.0
CLOSE_S = 5.0
MONTH_DAYS = 31
"""Days that are kept at least: quotas are of months."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request that asked a model.

    Args:
        at: when it came, in seconds since the epoch; it counts for that day.
        id: its own; of a line of a batch, none.
        workspace: whose quota it was; a key that is in none is one by itself.
        key: whose; empty: of a batch.
        route: that it came by.
        model: as the request called it.
        status: of the answer.
        prompt_tokens: of it, those that were found in the cache included.
        cached_tokens: of the prompt, not computed.
        generated_tokens: of the answer.
    """

    at: float
    id: str
    workspace: str
    key: str
    route: str
    model: str
    status: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Day:
    """What one key has asked of one model in a day of UTC. See `Line`."""

    day: str
    workspace: str
    key: str
    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be read.

    Args:
        since, until: days as ``2026-11-27``; the second is included. None: without an end.
        workspace: None: all.
        after: of requests, the number of one, and those after it; of days, so many rows are left
            out.
        most: rows.
    """

    since: str | None = None
    until: str | None = None
    workspace: str | None = None
    after: int = 0
    most: int | None = None


def day_of(at: float) -> str:
    """The day of UTC that a time is in."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


class Ledger:
    """See the module.

    Args:
        path: the database, made for its owner alone.
        keep: days after which lines are deleted; None: never.

    Raises:
        ConfigError: it cannot be used.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self._path = path
        self._keep = keep
        self._sql = _opened(path)
        self._lines: deque[Line] = deque()
        self._ready = threading.Condition()
        self._closing = False
        self._warned = -WARN_S
        self._swept = -SWEEP_S
        self.lost = 0
        """Lines that were never written."""
        first = day_of(time.time())[:8] + "01"
        self.month = tuple(days(self._sql, Wanted(since=first)))
        """What was taken in this month before the ledger was opened."""
        self._writer = threading.Thread(target=self._write, name="kvrt-usage", daemon=True)
        self._writer.start()

    def add(self, line: Line) -> None:
        """A request has ended. Does not wait."""
        with self._ready:
            self._lines.append(line)
            if len(self._lines) > WAITING:
                self._lines.popleft()
                self._lose(1)
            self._ready.notify()

    def close(self) -> None:
        """Once what is there was written, or could not be in time. Safe to call twice."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._writer.join(CLOSE_S)

    def _write(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._lines or self._closing, SWEEP_S)
                closing = self._closing
            if not closing:
                time.sleep(WRITE_S)  # more will have come by then
            with self._ready:
                lines = list(self._lines)
                self._lines.clear()
            kept = self._keep_lines(lines)
            if not kept and not closing:
                with self._ready:
                    self._lines.extendleft(reversed(lines))
                    self._ready.wait_for(lambda: self._closing, AGAIN_S)
            elif not kept:
                self._lose(len(lines))
            if closing:
                self._sql.close()
                return

    def _keep_lines(self, lines: Sequence[Line]) -> bool:
        """Whether they are on the disk now."""
        try:
            with _transaction(self._sql):
                self._sql.executemany(
                    f"INSERT INTO requests ({names(Line)}) VALUES ({_marks(Line)})",
                    map(astuple, lines),
                )
                self._sql.executemany(
                    f"INSERT INTO days ({names(Day)}) VALUES ({_marks(Day)})"
                    " ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,"
                    " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
                    " cached_tokens = cached_tokens + excluded.cached_tokens,"
                    " generated_tokens = generated_tokens + excluded.generated_tokens",
                    map(astuple, _by_day(lines)),
                )
                self._sweep()
        except sqlite3.Error as error:
            if time.monotonic() - self._warned >= WARN_S:
                self._warned = time.monotonic()
                log.warning("%s: usage cannot be written now: %s", self._path, error)
            return False
        return True

    def _sweep(self) -> None:
        """Within a transaction: what is older than is kept goes."""
        if self._keep is None or time.monotonic() - self._swept < SWEEP_S:
            return
        self._swept = time.monotonic()
        now = datetime.now(UTC)
        oldest = now - timedelta(days=self._keep)
        self._sql.execute("DELETE FROM requests WHERE at < ?", (oldest.timestamp(),))
        oldest = now - timedelta(days=max(MONTH_DAYS, self._keep))
        self._sql.execute("DELETE FROM days WHERE day < ?", (oldest.strftime("%Y-%m-%d"),))

    def _lose(self, count: int) -> None:
        self.lost += count
        if count:
            log.warning("%s: %d lines of usage are lost", self._path, count)


def _by_day(lines: Sequence[Line]) -> Iterator[Day]:
    """What lines come to."""
    sums: dict[tuple[str, str, str, str], Counter[str]] = {}
    for line in lines:
        own = sums.setdefault((day_of(line.at), line.workspace, line.key, line.model), Counter())
        own["requests"] += 1
        for name in ("prompt_tokens", "cached_tokens", "generated_tokens"):
            own[name] += getattr(line, name)
    for place, own in sums.items():
        counted = (own[each.name] for each in fields(Day)[len(place) :])
        yield Day(*place, *counted)


# --- reading ---------------------------------------------------------------------------------


def read_only(path: Path) -> sqlite3.Connection:
    """Another's database, while that one writes.

    Raises:
        ConfigError: there is none.
    """
    try:
        sql = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        (version,) = sql.execute("PRAGMA user_version").fetchone()
    except (sqlite3.Error, ValueError) as error:
        raise ConfigError(f"{path}: usage cannot be read: {error}") from None
    _check_version(path, version)
    return sql


def days(sql: sqlite3.Connection, wanted: Wanted) -> Iterator[Day]:
    """What was taken, day by day."""
    where, values = _where(wanted, "day")
    order = "day, workspace, key, model LIMIT ? OFFSET ?"
    values = [*values, _most(wanted), wanted.after]
    for row in sql.execute(f"SELECT {names(Day)} FROM days {where} ORDER BY {order}", values):
        yield Day(*row)


def lines(sql: sqlite3.Connection, wanted: Wanted) -> Iterator[tuple[int, Line]]:
    """Each request, the oldest first, with its number."""
    where, values = _where(wanted, "strftime('%Y-%m-%d', at, 'unixepoch')")
    query = f"SELECT num, {names(Line)} FROM requests {where} AND num > ? ORDER BY num LIMIT ?"
    for num, *row in sql.execute(query, [*values, wanted.after, _most(wanted)]):
        yield num, Line(*row)


def _most(wanted: Wanted) -> int:
    return -1 if wanted.most is None else wanted.most


def _where(wanted: Wanted, day: str) -> tuple[str, list[Any]]:
    given = {
        f"{day} >= ?": wanted.since,
        f"{day} <= ?": wanted.until,
        "workspace = ?": wanted.workspace,
    }
    found: Mapping[str, str] = {test: value for test, value in given.items() if value is not None}
    return " AND ".join(["WHERE 1", *found]), list(found.values())


def names(kind: type[Line] | type[Day]) -> str:
    """Its columns."""
    return ", ".join(each.name for each in fields(kind))


def _marks(kind: type[Line] | type[Day]) -> str:
    return ", ".join("?" for _ in fields(kind))


def _opened(path: Path) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            sql.execute("PRAGMA journal_mode = WAL")
            sql.execute("PRAGMA synchronous = FULL")
            (version,) = sql.execute("PRAGMA user_version").fetchone()
            if not version:
                with _transaction(sql):
                    for statement in SCHEMA.split(";"):
                        sql.execute(statement)
                    sql.execute(f"PRAGMA user_version = {VERSION}")
            else:
                _check_version(path, version)
        except BaseException:
            sql.close()
            raise
    except OSError as error:
        raise ConfigError(f"{path}: usage cannot be written: {error.strerror}") from None
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: usage cannot be written: {error}") from None
    return sql


def _check_version(path: Path, version: int) -> None:
    if version != VERSION:
        raise ConfigError(
            f"{path} is no usage of this version of kvrt ({version}, not {VERSION})",
            fix="name another file",
        )


@contextlib.contextmanager
def _transaction(sql: sqlite3.Connection) -> Iterator[None]:
    sql.execute("BEGIN IMMEDIATE")
    try:
        yield
        sql.execute("COMMIT")
    except BaseException:
        sql.rollback()
        raise
