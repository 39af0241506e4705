"""Who may ask: keys in a file, as hashes.

    # name  role   SHA-256 of the key                                                limits
    alice   user   9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  requests=60

Keys are random, so that a plain hash tells nothing of them. The owner's name is also the salt of
what they have in the KV cache: nobody shares pages with somebody else.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from kvrt.errors import ConfigError
from kvrt.server.access.limits import UNLIMITED, Limits

Role = Literal["admin", "user", "metrics"]
"""``metrics`` sees only how the server does; ``user`` asks; ``admin`` does both."""

LINE = re.compile(r"([\w.@-]{1,64})\s+(\w+)\s+([0-9a-f]{64})((?:\s+\w+=\d+)*)", re.ASCII)
PREFIX = "kvrt-"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a key is."""

    name: str
    role: Role
    limits: Limits = UNLIMITED


class Keys:
    """The keys of a file.

    Raises:
        ConfigError: it cannot be read, has none, or a line is not as it should be.
    """

    def __init__(self, path: Path) -> None:
        self._owners = _read(path)
        if not self._owners:
            raise ConfigError(f"{path} has no keys", fix="add one with --new-key NAME")

    def owner(self, given: Sequence[str]) -> Owner | None:
        """Whose key a request brings; None: nobody's, or it brings several different ones."""
        if len(set(given)) != 1:
            return None
        hashed = hashlib.sha256(given[0].encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, owner in self._owners:  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, hashed):
                found = owner
        return found


def _read(path: Path) -> list[tuple[bytes, Owner]]:
    """Hashes, and whose they are."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: keys cannot be read: {type(error).__name__}") from None
    owners = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        role = next((role for role in get_args(Role) if match and match[2] == role), None)
        if match is None or role is None:
            raise ConfigError(
                f"{path}: line {number} is not NAME ROLE HASH [LIMIT=NUMBER...]",
                fix=f"ROLE is one of {', '.join(get_args(Role))}; --new-key NAME adds a line",
            )
        try:
            limits = Limits.read(tuple(match[4].split()))
        except ConfigError as error:
            raise ConfigError(f"{path}: line {number}: {error}", fix=error.fix) from None
        owners.append((bytes.fromhex(match[3]), Owner(match[1], role, limits)))
    return owners


def add_key(path: Path, name: str, role: Role = "user", limits: Limits = UNLIMITED) -> str:
    """Add a line to a file of keys, which is made for its owner alone, and return the key.

    Raises:
        ConfigError: the name cannot be, or the file is none of keys, or cannot be written.
    """
    if path.exists():  # nothing is added to a file of something else
        if not path.is_file():
            raise ConfigError(f"{path} is no file")
        _read(path)
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {role} {hashlib.sha256(key.encode()).hexdigest()} {limits}".strip()
    if not LINE.fullmatch(line):
        raise ConfigError("the name of a key's owner has 1 to 64 letters, digits or one of . @ _ -")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(handle, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return key
