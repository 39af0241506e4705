"""Versions of sets, by what is in them, with what is in them and where they come from.

STORE/objects/ab/abcdef....jsonl    a set, by the SHA-256 of its bytes, which is there once
STORE/versions/0001-abcdef12.json   a version: its set, a name, a note, statistics, how it was made

A file is there whole or not at all, and none is ever changed: who reads needs no lock. Two who
write at once get different numbers.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvrt.data.reading import Reader, sha256_of
from kvrt.data.stats import statistics_of
from kvrt.data.writing import made_of, whole
from kvrt.errors import ConfigError, RequestError

SHORT = 8


@dataclass(frozen=True, slots=True)
class Version:
    """One version.

    Args:
        number: from 1, in the order in which they came.
        sha256: of the set.
        name: of the file that was added.
        note: what somebody said of it.
        at: when, in UTC.
        parents: versions whose sets it was made of, by their numbers, as far as they are here.
        made: how, as `kvrt.data.writing.Made`; None: nothing is known of that.
        stats: as `kvrt.data.stats.Statistics`.
    """

    number: int
    sha256: str
    name: str
    note: str
    at: str
    parents: Sequence[int] = ()
    made: dict[str, Any] | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.number:04d}-{self.sha256[:SHORT]}"


class Versions:
    """Those of one folder, which is made if it is not there.

    Raises:
        ConfigError: it cannot be.
    """

    def __init__(self, folder: Path) -> None:
        self._objects, self._list = folder / "objects", folder / "versions"
        try:
            self._objects.mkdir(parents=True, exist_ok=True)
            self._list.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be a store: {error.strerror}") from None

    def all(self) -> list[Version]:
        """By their numbers.

        Raises:
            ConfigError: one is damaged.
        """
        return [_read(path) for path in sorted(self._list.glob("*.json"))]

    def get(self, name: str) -> Version:
        """The one of a number, or whose set's SHA-256 begins so; of several, the last.

        Raises:
            RequestError: there is none.
        """
        known = self.all()
        for version in reversed(known):
            if name in (version.id, str(version.number)):
                return version
        if len(name) >= SHORT:
            for version in reversed(known):
                if version.sha256.startswith(name.lower()):
                    return version
        listed = ", ".join(version.id for version in known[-5:]) or "none yet"
        raise RequestError("there is no such version", param="version", fix=f"the last: {listed}")

    def add(self, path: Path, note: str = "") -> Version:
        """A file as a version. A set that is the last version already is not added again.

        Raises:
            RequestError: it has lines that are no rows, or cannot be read or kept.
        """
        with Reader(path) as reader:
            stats = statistics_of(reader).as_json()
        sha256 = self._keep(path)
        known = self.all()
        if known and known[-1].sha256 == sha256:
            return known[-1]
        made = made_of(path, sha256)
        sources = {each.sha256 for each in made.inputs} if made is not None else set()
        parents = {version.sha256: version.number for version in known if version.sha256 in sources}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        number = known[-1].number + 1 if known else 1
        while True:
            version = Version(
                number, sha256, path.name, note, at, sorted(parents.values()),
                None if made is None else made.as_json(), stats,
            )  # fmt: skip
            if self._list_new(version):
                return version
            number += 1

    def path(self, version: Version) -> Path:
        """Where its set is. Nobody is to change it."""
        return self._objects / version.sha256[:2] / f"{version.sha256}.jsonl"

    def damaged(self, version: Version) -> bool:
        """Whether its set is missing, or not what it was."""
        path = self.path(version)
        return not path.is_file() or sha256_of(path) != version.sha256

    def lineage(self, version: Version) -> list[Version]:
        """It, and what it was made of, back to where that begins."""
        known = {each.number: each for each in self.all()}
        found: dict[int, Version] = {}
        left = [version.number]
        while left:
            number = left.pop()
            if number in known and number not in found:
                found[number] = known[number]
                left += known[number].parents
        return [found[number] for number in sorted(found, reverse=True)]

    def _keep(self, path: Path) -> str:
        sha256 = sha256_of(path)
        there = self._objects / sha256[:2] / f"{sha256}.jsonl"
        if not there.exists():
            there.parent.mkdir(exist_ok=True)
            with path.open("rb") as source, whole(there) as copy:
                while data := source.read(1 << 20):
                    copy.write(data)
            if copy.content("").sha256 != sha256:
                there.unlink()
                raise RequestError(f"{path} was changed meanwhile", param="set", fix="add it again")
            there.chmod(0o444)
        return sha256

    def _list_new(self, version: Version) -> bool:
        """False: another has the number."""
        if any(self._list.glob(f"{version.number:04d}-*.json")):
            return False
        path = self._list / f"{version.id}.json"
        # A lock for the number alone, so that two sets cannot have the same one.
        lock = self._list / f".{version.number:04d}"
        try:
            lock.mkdir()
        except FileExistsError:
            return False
        try:
            with whole(path) as file:
                file.write(json.dumps(asdict(version), indent=2).encode() + b"\n")
        finally:
            lock.rmdir()
        return True


def write_out(source: Path, output: Path) -> None:
    """A copy of a version's set.

    Raises:
        RequestError: the system cannot write it.
    """
    with source.open("rb") as data, whole(output) as file:
        while piece := data.read(1 << 20):
            file.write(piece)
    shutil.copymode(source, output)
    os.chmod(output, output.stat().st_mode | 0o200)


def changed(before: Path, after: Path) -> dict[str, int]:
    """How many rows two sets have in common, by what they say, and how many only one has.

    What each says is held as 16 bytes: about 100 bytes of memory a row.
    """
    one, other = _names(before), _names(after)
    return {
        "kept": len(one & other),
        "gone": len(one - other),
        "new": len(other - one),
    }


def _names(path: Path) -> set[bytes]:
    from kvrt.data.duplicates import name_of

    with Reader(path) as reader:
        return {name_of(row, "all") for row in reader}


def _read(path: Path) -> Version:
    try:
        found = json.loads(path.read_bytes())
        return Version(**found)
    except (ValueError, TypeError):
        raise ConfigError(f"{path} is damaged", fix="delete it: its set is kept") from None
