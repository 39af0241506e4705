"""All rows of a file, one at a time, however many there are."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

from kvrt.data.rows import Row, Unreadable, read_row
from kvrt.errors import RequestError

LONGEST = 64 << 20
"""Bytes of a line."""


class Reader:
    """The rows of a file. Blank lines are passed over.

    Args:
        path: the file; UTF-8, a JSON object a line.
        rejected: takes lines that are no rows; None: such a line is an error.
        skip: rows that are not read again: their bytes count, and what they say is not looked at.

    Attributes:
        rows, bad: so far.
        done: bytes, so far; size: of all.
    """

    def __init__(self, path: Path, rejected: BinaryIO | None = None, skip: int = 0) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}", param="set") from None
        self.size = path.stat().st_size
        self.rows = self.bad = self.done = 0
        self._rejected = rejected
        self._skip = skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Row]:
        """Those after the ones that are skipped.

        Raises:
            RequestError: a line is no row, and nothing takes it.
        """
        number = 0
        while data := self._file.readline(LONGEST + 1):
            number += 1
            at, self.done = self.done, self.done + len(data)
            line = data.removesuffix(b"\n").removesuffix(b"\r")
            if not line.strip():
                continue
            try:
                if len(line) > LONGEST:
                    raise Unreadable(f"it is longer than {LONGEST} bytes")
                row = read_row(line, number, at)
            except Unreadable as problem:
                self._refuse(line, number, problem)
                continue
            self.rows += 1
            if self.rows > self._skip:
                yield row

    def _refuse(self, line: bytes, number: int, problem: Unreadable) -> None:
        self.bad += 1
        if self._rejected is None:
            raise RequestError(
                f"{self.path}, line {number}: {problem}",
                param="set",
                fix="mend it, or have such lines written elsewhere: --rejected FILE",
            )
        self._rejected.write(line + b"\n")


class Lines:
    """Rows of a file again, by where they are."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def close(self) -> None:
        self._file.close()

    def at(self, place: int) -> Row:
        """The row whose first byte is there."""
        self._file.seek(place)
        line = self._file.readline(LONGEST + 1)
        return read_row(line.removesuffix(b"\n").removesuffix(b"\r"), at=place)


def sha256_of(path: Path, tell: Callable[[int], object] = lambda done: None) -> str:
    """Of all bytes of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
            tell(len(data))
    return digest.hexdigest()
