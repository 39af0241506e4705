"""Addresses of other processes, and the keys that guard them."""

import os
from pathlib import Path

import pytest

from kvrt.errors import ConfigError
from kvrt.net.address import Address, parse_address, read_key

KEY = b"a key of which all who meet know"
DANGER = "whoever comes in is at home"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.7:7707", Address("10.0.0.7", 7707)),
        ("pages.internal:1", Address("pages.internal", 1)),
        ("[::1]:80", Address("::1", 80)),
        ("localhost:0", Address("localhost", 0)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", ":7707", "::1:80", "host:x", "host:٣", "host:65536", "a b:1",
             "host:-1", "x" * 300 + ":1", "host:" + "9" * 5000, "\n:1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        parse_address(text)


def test_without_a_key_there_is_only_this_machine(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        assert read_key(None, Address(host, 1), danger=DANGER) == b""
    for host in ("0.0.0.0", "10.0.0.7", "pages.internal", "::"):
        with pytest.raises(ConfigError, match=f"no key guards it: {DANGER}"):
            read_key(None, Address(host, 1), danger=DANGER)
    key = tmp_path / "key"
    key.write_bytes(b"  " + KEY + b"\n")
    assert read_key(key, Address("10.0.0.7", 1), danger=DANGER) == KEY


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    here = Address("127.0.0.1", 1)
    key = tmp_path / "key"
    for content in (b"", b"short", b"x" * 5000):
        key.write_bytes(content)
        with pytest.raises(ConfigError, match="holds no key"):
            read_key(key, here, danger=DANGER)
    key.write_bytes(KEY)
    key.chmod(0o666)
    with pytest.raises(ConfigError, match="written to by other users"):
        read_key(key, here, danger=DANGER)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "none", tmp_path, pipe):
        with pytest.raises(ConfigError):
            read_key(path, here, danger=DANGER)
