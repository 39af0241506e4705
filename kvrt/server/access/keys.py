"""Who may ask: keys in a file, as hashes.

    # name  role   SHA-256 of the key                                                limits
    alice   user   9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  requests=60
    bob     user   60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752  in=acme

    # workspaces: what all keys in them may take together, and their share of the KV memory
    workspace acme share=3 daily_tokens=1000000

Keys are random, so that a plain hash tells nothing of them. Keys of one workspace share what they
have: files, batches, cached pages, kept answers. A key that is in none is one by itself, of its own
name. The workspace's name is the salt of what it has in the KV cache: nobody shares pages with
somebody else's.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from kvrt.errors import ConfigError
from kvrt.kv.index.shares import LARGEST_SHARE
from kvrt.server.access.limits import UNLIMITED, Limits

Role = Literal["admin", "user", "metrics"]
"""``metrics`` sees only how the server does; ``user`` asks; ``admin`` does both."""

log = logging.getLogger(__name__)

NAME = r"[\w.@-]{1,64}"
LIMITS = r"((?:\s+\w+=\d+)*)"
LINE = re.compile(rf"({NAME})\s+(\w+)\s+([0-9a-f]{{64}})(?:\s+in=({NAME}))?{LIMITS}", re.ASCII)
WORKSPACE = re.compile(rf"workspace\s+({NAME}){LIMITS}", re.ASCII)
PREFIX = "kvrt-"
SHARE = "share"
"""A word of a workspace's line that is no limit; see `kvrt.Runtime.set_share`."""

LOOK_S = 1.0
"""How often the file is looked at."""

Told = Callable[[Mapping[str, int]], None]
"""Is told the shares of workspaces."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a key is.

    Args:
        workspace: that it is in; empty: one by itself.
    """

    name: str
    role: Role
    limits: Limits = UNLIMITED
    workspace: str = ""

    @property
    def tenant(self) -> str:
        """With whom it shares what it has."""
        return self.workspace or self.name

    @property
    def rules(self) -> bool:
        """Whether it is for the whole server: of an admin who is in no workspace."""
        return self.role == "admin" and not self.workspace

    def sees(self, tenant: str) -> bool:
        """Whether all that a workspace has is its business: of an admin in it, or in none."""
        return self.role == "admin" and self.workspace in ("", tenant)


@dataclass(frozen=True, slots=True)
class Known:
    """What a file says.

    Args:
        owners: each with the hash of its key.
        workspaces: the limits of those that have a line.
        shares: of those that have one, of the KV memory.
    """

    owners: Sequence[tuple[bytes, Owner]]
    workspaces: Mapping[str, Limits]
    shares: Mapping[str, int]


class Keys:
    """The keys of a file.

    Args:
        lasting: limits of a day and of a month can be kept to.

    Raises:
        ConfigError: it cannot be read, has none, or a line is not as it should be.
    """

    def __init__(self, path: Path, *, lasting: bool = True) -> None:
        self._path = path
        self._lasting = lasting
        self._seen = _state(path)
        self._followers: list[Told] = []
        self._known = self._read()

    def _read(self) -> Known:
        known = _read(self._path)
        if not known.owners:
            raise ConfigError(f"{self._path} has no keys", fix="add one with --new-key NAME")
        limits = [*known.workspaces.values(), *(owner.limits for _, owner in known.owners)]
        if not self._lasting and any(each.lasting for each in limits):
            raise ConfigError(
                f"{self._path} has limits of days or months, and nothing keeps what was taken",
                fix="give --usage FILE",
            )
        return known

    async def keep_fresh(self) -> None:
        """Read the file again whenever it is another, until this is cancelled. One that is not as
        it should be changes nothing."""
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read the file if it is another than before."""
        seen = _state(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._known = self._read()
        except ConfigError as error:
            log.warning("the keys of before are used on: %s", error)
        else:
            log.info("%s: keys were read again", self._path)
            for tell in [*self._followers]:
                tell(self._known.shares)

    def follow(self, tell: Told) -> None:
        """Tell the shares of workspaces, now and whenever they may have changed."""
        self._followers.append(tell)
        tell(self._known.shares)

    def leave(self, tell: Told) -> None:
        """Tell it no more."""
        self._followers.remove(tell)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def owners(self) -> list[Owner]:
        """Of all keys, in the file's order."""
        return [owner for _, owner in self._known.owners]

    @property
    def workspaces(self) -> Mapping[str, Limits]:
        """Those that have a line: what all keys in each may take together."""
        return self._known.workspaces

    def limits_of(self, name: str) -> Limits:
        """A key's own, by its owner's name."""
        return next((own.limits for _, own in self._known.owners if own.name == name), UNLIMITED)

    def owner(self, given: Sequence[str]) -> Owner | None:
        """Whose key a request brings; None: nobody's, or it brings several different ones."""
        if len(set(given)) != 1:
            return None
        hashed = hashlib.sha256(given[0].encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, owner in self._known.owners:  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, hashed):
                found = owner
        return found


def _state(path: Path) -> tuple[int, ...] | None:
    """What tells a file from what it was; None: it is not there."""
    with contextlib.suppress(OSError):
        told = path.stat()
        return told.st_ino, told.st_size, told.st_mtime_ns
    return None


def _read(path: Path) -> Known:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: keys cannot be read: {type(error).__name__}") from None
    owners: list[tuple[bytes, Owner]] = []
    workspaces: dict[str, Limits] = {}
    shares: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        try:
            if (match := WORKSPACE.fullmatch(line)) is None:
                owners.append(_owner(line))
            elif match[1] in workspaces:
                raise ConfigError("the workspace has a line already")
            else:
                words = match[2].split()
                workspaces[match[1]] = Limits.read(tuple(w for w in words if not _shares(w)))
                for word in filter(_shares, words):
                    shares[match[1]] = _share(word, shares.get(match[1]))
        except ConfigError as error:
            raise ConfigError(f"{path}: line {number}: {error}", fix=error.fix) from None
    return Known(owners, workspaces, shares)


def _shares(word: str) -> bool:
    return word.partition("=")[0] == SHARE


def _share(word: str, before: int | None) -> int:
    number = int(word.partition("=")[2][:20])
    if before is not None or not 1 <= number <= LARGEST_SHARE:
        raise ConfigError(f"a share is a number from 1 to {LARGEST_SHARE}, once")
    return number


def _owner(line: str) -> tuple[bytes, Owner]:
    """The hash of a key, and whose it is."""
    match = LINE.fullmatch(line)
    role = next((role for role in get_args(Role) if match and match[2] == role), None)
    if match is None or role is None:
        raise ConfigError(
            "it is not NAME ROLE HASH [in=WORKSPACE] [LIMIT=NUMBER...]",
            fix=f"ROLE is one of {', '.join(get_args(Role))}; --new-key NAME adds a line",
        )
    limits = Limits.read(tuple(match[5].split()))
    return bytes.fromhex(match[3]), Owner(match[1], role, limits, match[4] or "")


def add_key(
    path: Path,
    name: str,
    role: Role = "user",
    limits: Limits = UNLIMITED,
    workspace: str = "",
) -> str:
    """Add a line to a file of keys, which is made for its owner alone, and return the key.

    Raises:
        ConfigError: the name cannot be, or the file is none of keys, or cannot be written.
    """
    if path.exists():  # nothing is added to a file of something else
        if not path.is_file():
            raise ConfigError(f"{path} is no file")
        _read(path)
    key = PREFIX + secrets.token_urlsafe(32)
    hashed = hashlib.sha256(key.encode()).hexdigest()
    place = [f"in={workspace}"] if workspace else []
    line = " ".join([name, role, hashed, *place, str(limits)]).strip()
    if not LINE.fullmatch(line):
        raise ConfigError("the name of a key or a workspace has 1 to 64 letters, digits or . @ _ -")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(handle, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return key


def drop_key(path: Path, name: str, workspace: str | None) -> int:
    """Make comments of the lines of a key: one byte of each is another then, so that whatever
    happens meanwhile, and whoever adds a line, no other key is lost. Returns how many there were.

    Args:
        workspace: that it is in; None: whichever.

    Raises:
        ConfigError: the file cannot be written.
    """
    dropped = 0
    try:
        with path.open("r+b") as file:
            at = 0
            for line in file.read().splitlines(keepends=True):
                match = LINE.fullmatch(line.decode("utf-8", "replace").strip())
                if match and match[1] == name and workspace in (None, match[4] or ""):
                    file.seek(at)
                    file.write(b"#")
                    dropped += 1
                at += len(line)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return dropped
