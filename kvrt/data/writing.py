"""Files that are there once they are whole, and how they were made.

SET.jsonl            the set
SET.jsonl.made.json  what command made it, of which files, by their SHA-256
SET.jsonl.part       what there is of it before, where a command goes on where it was
SET.jsonl.part.json  ... and what of
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from kvrt.errors import ConfigError, RequestError

MADE = ".made.json"
PART = ".part"


@dataclass(frozen=True, slots=True)
class Content:
    """A file by what is in it.

    Args:
        name: as it is called; it may be called otherwise elsewhere.
        sha256: of its bytes.
    """

    name: str
    sha256: str
    rows: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Made:
    """How a set came to be.

    Args:
        command: of ``kvrt data``.
        options: that say what it did.
        inputs: what it was made of.
        output: itself.
        counts: what the command has to tell.
        at: when, in UTC.
        program: what made it.
    """

    command: str
    options: Mapping[str, Any]
    inputs: Sequence[Content]
    output: Content
    counts: Mapping[str, Any] = field(default_factory=dict)
    at: str = ""
    program: str = "kvrt"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def made_of(path: Path, sha256: str) -> Made | None:
    """How a file was made; None: nothing says so, or of another content.

    Raises:
        ConfigError: what says so is damaged.
    """
    beside = path.with_name(path.name + MADE)
    try:
        found = json.loads(beside.read_bytes())
        made = Made(**{**found, "inputs": [Content(**each) for each in found["inputs"]],
                       "output": Content(**found["output"])})  # fmt: skip
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, OSError):
        raise ConfigError(f"{beside} is damaged", fix="delete it") from None
    return made if made.output.sha256 == sha256 else None


def note_made(path: Path, made: Made) -> None:
    """Write beside a file how it was made."""
    at = made.at or datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({**made.as_json(), "at": at}, indent=2)
    with whole(path.with_name(path.name + MADE)) as file:
        file.write(text.encode() + b"\n")


class Counted:
    """A file that is written, and what is in it so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.rows = self.nbytes = 0

    def add(self, line: bytes) -> None:
        """One row."""
        self.write(line + b"\n")
        self.rows += 1

    def write(self, data: bytes) -> None:
        """Bytes that are no rows."""
        self._file.write(data)
        self._digest.update(data)
        self.nbytes += len(data)

    def content(self, name: str) -> Content:
        return Content(name, self._digest.hexdigest(), self.rows, self.nbytes)


@contextmanager
def whole(path: Path) -> Iterator[Counted]:
    """A file that replaces what is there once it is whole, and leaves nothing if it is not.

    Raises:
        RequestError: the system cannot write it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield Counted(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


class Part:
    """Rows of a file that are kept as they come, so that the same command goes on behind them.

    Args:
        path: of the file that is to be.
        of: what it is made of, and how: rows of anything else are not gone on with.

    Raises:
        RequestError: there is a part of something else, or it cannot be written.
    """

    def __init__(self, path: Path, of: Mapping[str, Any]) -> None:
        self.path = path
        self._part = path.with_name(path.name + PART)
        self._notes = path.with_name(path.name + PART + ".json")
        try:
            self._begin(json.loads(json.dumps(of)))
        except OSError as error:
            raise cannot_write(self._part, error) from None

    def _begin(self, of: object) -> None:
        known = self._notes.exists()
        if known and _json_of(self._notes) != of:
            raise RequestError(
                f"{self._part} has rows of another set, or was begun with other options",
                param="output",
                fix="delete it to begin anew, or use another output",
            )
        if not known:
            self._part.unlink(missing_ok=True)
            self._notes.write_text(json.dumps(of))
        self._file = self._part.open("a+b")
        # A kill may have cut the last row short.
        self._file.seek(0)
        self.rows = end = 0
        for line in self._file:
            if line.endswith(b"\n"):
                self.rows, end = self.rows + 1, end + len(line)
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def add(self, lines: Sequence[bytes]) -> None:
        """Some rows more: they are kept, whatever comes."""
        try:
            self._file.write(b"".join(line + b"\n" for line in lines))
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._part, error) from None
        self.rows += len(lines)

    def finish(self) -> Content:
        """It is whole, and there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        nbytes = self._file.tell()
        self.close()
        self._part.replace(self.path)
        self._notes.unlink(missing_ok=True)
        _sync_folder(self.path.parent)
        return Content(self.path.name, digest, self.rows, nbytes)

    def close(self) -> None:
        """What there is stays."""
        self._file.close()


def cannot_write(path: Path, error: OSError) -> RequestError:
    """What to say where the system does not let a file be written."""
    return RequestError(f"{path} cannot be written: {error.strerror}", param="output")


def _json_of(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
