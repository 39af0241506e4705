"""The key of all who share pages."""

from pathlib import Path

from kvrt.net.address import Address, read_key


def store_key(path: Path | None, address: Address) -> bytes:
    """The key in a file. Raises `ConfigError`, as `read_key` does."""
    return read_key(path, address, danger="whoever can store pages decides what is answered")
