"""Where another process is, and the key that it is guarded by."""

import ipaddress
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from kvrt.errors import ConfigError

FORM = "write it as HOST:PORT, as in 10.0.0.7:7707 or [fd00::7]:7707"
LEAST_KEY, MOST_KEY = 16, 4096
"""Bytes of a key."""


@dataclass(frozen=True, slots=True)
class Address:
    """Of a store of pages, or of rank 0.

    Args:
        host: a name or a number.
        port: from 0 on; 0 is any that is free, to listen at.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a name or number."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT``.

    Raises:
        ConfigError: it has another form.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    plain = host.isascii() and host.isprintable() and 0 < len(host) <= 253 and " " not in host
    if not (colon and plain and port.isascii() and port.isdigit() and int(port[:6]) <= 65535):
        raise ConfigError(f"{text!r:.100} is not an address", fix=FORM)
    return Address(host, int(port))


def read_key(path: Path | None, address: Address, *, danger: str) -> bytes:
    """The key in a file, without the white space around it; nothing, if there is no file.

    Args:
        address: at which it is asked for. One that other machines reach needs a key.
        danger: what could happen without one.

    Raises:
        ConfigError: there has to be one, or the file has none.
    """
    if path is None:
        if not address.is_loopback:
            raise ConfigError(
                f"{address} is reached from other machines, and no key guards it: {danger}",
                fix="make a key for all of them, and name its file:"
                " head -c 32 /dev/urandom | base64 > kvrt.key",
            )
        return b""
    try:
        with open(path, "rb", opener=_opener) as file:
            status = os.fstat(file.fileno())
            key = file.read(MOST_KEY + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{str(path)!r} is not a path") from None
    key = key.strip()
    if not LEAST_KEY <= len(key) <= MOST_KEY:
        raise ConfigError(
            f"{path} holds no key: it must have from {LEAST_KEY} to {MOST_KEY} bytes",
            fix="head -c 32 /dev/urandom | base64 > kvrt.key",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path} can be written to by other users", fix=f"chmod 600 {path}")
    return key


def _opener(path: str, flags: int) -> int:
    """Does not wait for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
