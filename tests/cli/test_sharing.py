"""``--share`` and ``kvrt top``."""

import json
from pathlib import Path

import pytest

from kvrt import Runtime, Share

from .conftest import Kvrt


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRT_SHARE_DIR", str(tmp_path / "shares"))


def test_top_shows_each_tenant_with_its_terms(kvrt: Kvrt) -> None:
    assert "nothing is shared" in kvrt("top").stdout
    share = Share(name="lab", size="64MiB", guarantee="16MiB", lend=True, weight=2, priority=1)
    with Runtime("tiny", keep_warm=0, share=share) as runtime:
        (shown,) = json.loads(kvrt("top", "--json").stdout)["shares"]
        text = kvrt("top", "--once").stdout
        stats = runtime.stats()
        held = stats.weight_bytes + stats.cache.mapped_bytes + stats.cache.pooled_bytes
    (tenant,) = shown["tenants"]
    assert (shown["share"], shown["device"], shown["size"]) == ("lab", "cpu0", 64 << 20)
    assert tenant["tenant"] == "tiny"
    assert tenant["held"] == held
    assert (tenant["guaranteed"], tenant["lends"]) == (16 << 20, True)
    assert (tenant["weight"], tenant["priority"]) == (2, 1)
    assert "lab on cpu0" in text
    assert "16 MiB lent" in text


def test_run_takes_part_on_the_terms_it_is_given(kvrt: Kvrt) -> None:
    terms = ("--share", "lab:20MiB", "--guarantee", "10MiB", "--weight", "2")
    assert kvrt("run", "tiny", "def f(", "-n", "2", *terms).exit_code == 0
    small = kvrt("run", "tiny", "def f(", "-n", "2", "--share", "lab:8MiB")
    assert small.exit_code == 5
    assert "of 8 MiB, this process holds 0 B; others: nobody" in small.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--guarantee", "1MiB"), "add --share"),
        (("--weight", "2"), "add --share"),
        (("--lend",), "add --share"),
        (("--share", "lab", "--lend"), "add --guarantee"),
        (("--share", "a/b"), "letters"),
        (("--share", "lab:much"), "size"),
    ],
)
def test_terms_that_say_nothing_are_refused(kvrt: Kvrt, options: tuple[str, ...], why: str) -> None:
    result = kvrt("run", "tiny", "x", *options)
    assert result.exit_code == 2
    assert why in result.stderr
