"""A page's name: the same everywhere, and never mistaken for another's."""

import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from kvrt.kv.tiers import names
from kvrt.kv.tiers.names import PageName, chain, fingerprint, root_key, tenant_of

ROOT = Path(__file__).parents[2]


def test_a_key_is_the_hash_of_the_one_before_and_the_tokens() -> None:
    root = root_key(fingerprint(b"m", "float32", "l"))
    first, second = chain(root, [1, 2, 3, 4, 5], 2)
    assert first.key == hashlib.sha256(root + struct.pack("<2i", 1, 2)).digest()
    assert second == PageName(
        hashlib.sha256(first.key + struct.pack("<2i", 3, 4)).digest(), first.key, (3, 4), 0
    ), "whose it is is no part of what it is"
    assert first.tenant == second.tenant == tenant_of(root) != tenant_of(root_key(root, "a"))


def test_only_full_pages_have_a_name() -> None:
    root = bytes(32)
    assert [len(list(chain(root, list(range(n)), 4))) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


def test_whatever_a_page_depends_on_changes_its_key() -> None:
    kinds = [(b"m", "float32", "l"), (b"n", "float32", "l"), (b"m", "int8", "l")]
    kinds += [(b"m", "float32", "k"), (b"mf", "loat32", "l")]
    roots = {root_key(fingerprint(*kind), salt) for kind in kinds for salt in ("", "a", "b")}
    keys = {next(chain(root, [1, 2], 2)).key for root in roots}
    assert len(keys) == 3 * len(kinds)


@pytest.mark.promise("P31")
def test_every_process_has_the_same_names() -> None:
    code = (
        "from kvrt.kv.tiers.names import *\n"
        "root = root_key(fingerprint(b'm', 'int8', 'l'), 'tenant')\n"
        "print([name.key.hex() for name in chain(root, range(64), 16)])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=dict(os.environ, PYTHONHASHSEED=seed),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "random")
    }
    assert len(seen) == 1
    assert seen.pop().count("'") == 8


def test_names_of_one_key_are_equal_only_if_everything_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "page_key", lambda parent, tokens, mark: bytes(32))
    one, other = (next(chain(bytes(32), tokens, 2)) for tokens in ([1, 2], [2, 1]))
    assert one.key == other.key
    assert hash(one) == hash(other)
    assert one != other
    assert {one: 1, other: 2} == {other: 2, one: 1}
