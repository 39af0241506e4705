"""Rows that say what a row before them says. The first stays, so the order does, too.

A row is compared with those alone that have stayed, so what stays has no duplicates, and asking
again takes nothing more. What is known of them is in a temporary database on disk, and what they
say is read again where it has to be compared: memory does not grow with the set.
"""

import hashlib
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from kvrt.data.reading import Lines
from kvrt.data.rows import Part, Row
from kvrt.data.shingles import Hashes, bands_for, jaccard, shingles

Why = Literal["same", "near", "meaning"]

MOST_IN_BAND = 32
"""Rows that are looked at for agreeing in one band: a beginning that all rows share is no reason to
compare each with each."""

REMEMBERED = 256
"""Sets of runs that are not computed again when their row is compared with another."""

SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -65536;
CREATE TABLE same (name BLOB PRIMARY KEY, line INTEGER) WITHOUT ROWID;
CREATE TABLE stayed (line INTEGER PRIMARY KEY, at INTEGER);
CREATE TABLE bands (key INTEGER, line INTEGER, PRIMARY KEY (key, line)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A row that says what another says.

    Args:
        line: its number.
        of: that of the row that stays.
        why: every character is the same, or runs of words, or what it means.
        similarity: from 0 to 1.
    """

    line: int
    of: int
    why: Why
    similarity: float


class Finder(Protocol):
    """One way to be a duplicate."""

    def find(self, row: Row) -> Duplicate | None:
        """What a row is a duplicate of; None: of nothing that has stayed."""

    def keep(self, row: Row) -> None:
        """The row that was asked of last stays."""


class Same:
    """Rows that say the very same: who says what, and the answer, character for character."""

    def __init__(self, sql: sqlite3.Connection, part: Part) -> None:
        self._sql = sql
        self._part = part
        self._name = b""

    def find(self, row: Row) -> Duplicate | None:
        self._name = name_of(row, self._part)
        found = self._sql.execute("SELECT line FROM same WHERE name = ?", (self._name,)).fetchone()
        return None if found is None else Duplicate(row.number, found[0], "same", 1.0)

    def keep(self, row: Row) -> None:
        self._sql.execute("INSERT INTO same VALUES (?, ?)", (self._name, row.number))


class Near:
    """Rows whose runs of five words have that much in common, by Jaccard's measure, or more.

    Rows that may are found by bands of their signatures (see `kvrt.data.shingles`), and compared
    by the runs themselves: none is dropped that is not so near.
    """

    def __init__(self, sql: sqlite3.Connection, part: Part, near: float, lines: Lines) -> None:
        self._sql = sql
        self._part = part
        self._near = near
        self._lines = lines
        self._bands = bands_for(near)
        self._known: OrderedDict[int, Hashes] = OrderedDict()
        self._members: Hashes = np.empty(0, np.uint64)
        self._keys: list[int] = []

    @property
    def found(self) -> float:
        """Of pairs that are just so near, the part that is found."""
        return self._bands.found(self._near)

    def find(self, row: Row) -> Duplicate | None:
        self._members = shingles(row.text(self._part))
        self._keys = self._bands.keys(self._members)
        shared: dict[int, int] = {}
        for key in self._keys:
            for (line,) in self._sql.execute(
                "SELECT line FROM bands WHERE key = ? LIMIT ?", (key, MOST_IN_BAND)
            ):
                shared[line] = shared.get(line, 0) + 1
        for line in sorted(shared, key=lambda line: (-shared[line], line)):
            similarity = jaccard(self._members, self._of(line))
            if similarity >= self._near:
                return Duplicate(row.number, line, "near", similarity)
        return None

    def keep(self, row: Row) -> None:
        self._sql.execute("INSERT INTO stayed VALUES (?, ?)", (row.number, row.at))
        pairs = [(key, row.number) for key in self._keys]
        self._sql.executemany("INSERT INTO bands VALUES (?, ?)", pairs)

    def _of(self, line: int) -> Hashes:
        """The runs of a row that has stayed."""
        if line not in self._known:
            (at,) = self._sql.execute("SELECT at FROM stayed WHERE line = ?", (line,)).fetchone()
            self._known[line] = shingles(self._lines.at(at).text(self._part))
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(line)
        return self._known[line]


class Duplicates:
    """Finds duplicates of rows that come one after the other; opened by `duplicates`."""

    def __init__(self, finders: list[Finder]) -> None:
        self._finders = finders

    def find(self, row: Row) -> Duplicate | None:
        """What a row is a duplicate of; if it is of nothing, it stays."""
        for finder in self._finders:
            if (found := finder.find(row)) is not None:
                return found
        for finder in self._finders:
            finder.keep(row)
        return None


@contextmanager
def duplicates(
    path: Path, part: Part = "all", near: float | None = None, *further: Finder
) -> Iterator[Duplicates]:
    """Finds those among the rows of a file.

    Args:
        part: what is compared.
        near: how much runs of words have in common, at least; None: that is no reason.
        further: other ways to be a duplicate, which are tried last.
    """
    # A file without a name: the system deletes it, also after a kill.
    sql = sqlite3.connect("", isolation_level=None)
    lines = Lines(path)
    try:
        sql.executescript(SCHEMA)
        sql.execute("BEGIN")
        finders: list[Finder] = [Same(sql, part)]
        if near is not None:
            finders.append(Near(sql, part, near, lines))
        yield Duplicates([*finders, *further])
    finally:
        lines.close()
        sql.close()


def name_of(row: Row, part: Part) -> bytes:
    """What a row says, as 16 bytes that no other has."""
    said = [] if part == "answer" else [(each.role, each.text) for each in row.prompt]
    if part != "prompt" and row.answer is not None:
        said.append(("answer", row.answer))
    texts = [text.encode("utf-8", "surrogatepass") for text in chain.from_iterable(said)]
    marked = b"".join(len(text).to_bytes(8, "little") + text for text in texts)
    return hashlib.blake2b(marked, digest_size=16).digest()
