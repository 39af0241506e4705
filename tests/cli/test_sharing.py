"""``--share`` and ``kvrt top``."""

import json
from pathlib import Path

import pytest

from kvrt import Runtime, SamplingParams, Share

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
    assert "tokens/s" in text
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


def test_ctl_asks_a_tenant_and_prints_what_came_of_it(kvrt: Kvrt) -> None:
    with Runtime("tiny", keep_warm=0, share=Share(name="lab", size="64MiB")) as runtime:
        assert kvrt("ctl", "limit", "lab", "tiny", "50%").stdout == "applied, revision 1\n"
        assert runtime.stats().cache.asked_bytes == (32 << 20) - runtime.stats().weight_bytes
        late = kvrt("ctl", "limit", "lab.cpu0", "tiny", "9MiB", "--revision", "1", "--json")
        assert json.loads(late.stdout) == {"outcome": "stale", "revision": 1}
        assert kvrt("ctl", "guarantee", "lab", "tiny", "16MiB").exit_code == 0
        assert kvrt("ctl", "sleep", "lab", "tiny").exit_code == 0
        assert runtime.asleep == 2
        assert kvrt("ctl", "wake", "lab", "tiny").exit_code == 0
        assert kvrt("ctl", "reclaim", "lab", "tiny").exit_code == 0
        assert runtime.asleep == 0
        refused = kvrt("ctl", "limit", "lab", "tiny", "1MiB")
        assert refused.exit_code == 1
        assert "cannot limit: a memory limit of 1 MiB is too small" in refused.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("limit", "lab", "tiny"), "takes a SIZE"),
        (("wake", "lab", "tiny", "1MiB"), "takes no SIZE"),
        (("fly", "lab", "tiny"), "fly"),
        (("wake", "lab", "tiny"), "nobody shares lab"),
        (("limit", "lab", "tiny", "much"), "size"),
    ],
)
def test_what_ctl_cannot_ask_is_refused(kvrt: Kvrt, words: tuple[str, ...], why: str) -> None:
    result = kvrt("ctl", *words)
    assert result.exit_code == 2
    assert why in result.stderr


def test_top_shows_what_each_tenant_does(kvrt: Kvrt) -> None:
    with Runtime("tiny", keep_warm=0, share=Share(name="lab", size="64MiB")) as runtime:
        prompt = [*range(1, 65)]
        for _ in range(2):
            runtime.generate([prompt], SamplingParams(max_tokens=8, ignore_eos=True))
        stream = runtime.stream(prompt, SamplingParams(max_tokens=400, ignore_eos=True))
        runtime.sleep(1)
        (shown,) = json.loads(kvrt("top", "--json").stdout)["shares"]
        stats = runtime.stats()
        stream.close()
    (tenant,) = shown["tenants"]
    assert tenant["weights"] == stats.weight_bytes
    assert tenant["mapped"] == stats.cache.mapped_bytes
    assert tenant["weights"] + tenant["mapped"] == tenant["held"]
    assert (tenant["running"], tenant["waiting"], tenant["cached"]) == (0, 1, 0)
    assert tenant["preempted"] <= 1
    assert tenant["tokens"] >= 16
    assert (tenant["prompt"], tenant["reused"]) == (
        stats.reuse.prompt_tokens,
        stats.reuse.cached_tokens,
    )
    assert tenant["reused"] >= 48
