"""Pages on disk for engines that wait for them. `test_sglang.py` and `test_lmcache.py` have the
same behind those engines' own classes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvrt import ConfigError
from kvrt.integrations.pages import KeptPages, open_pages
from kvrt.integrations.tiers import TierOptions
from kvrt.kv.tiers import space
from kvrt.kv.tiers.files import DATA

NBYTES = 8192


def page(number: int) -> Tensor:
    return torch.full((NBYTES // 2,), number, dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def files_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "STEP", 4 * NBYTES)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[KeptPages]:
    pages = opened(tmp_path)
    yield pages
    pages.close()


def opened(folder: Path, layout: str = "a", budget: int | None = None) -> KeptPages:
    return KeptPages(open_pages(folder, bytes(32), (layout,), (NBYTES,), budget=budget))


def test_a_page_is_there_when_put_returns_and_in_its_place_when_get_does(kept: KeptPages) -> None:
    assert kept.put([(b"a", page(1)), (b"b", page(2))]) == [True, True]
    assert kept.has(b"a")
    targets = {key: page(0) for key in (b"a", b"b", b"c")}
    assert kept.get(targets.items()) == [True, True, False]
    assert torch.equal(targets[b"a"], page(1))
    assert torch.equal(targets[b"b"], page(2))


def test_pages_go_one_by_one_or_all_at_once(kept: KeptPages) -> None:
    kept.put([(b"%d" % number, page(number)) for number in range(5)])
    assert kept.remove(b"3")
    assert not kept.remove(b"3")
    assert [kept.has(b"%d" % number) for number in range(5)] == [True] * 3 + [False, True]
    kept.clear()
    assert not any(kept.has(b"%d" % number) for number in range(5))
    assert kept.stats().pages == 0


def test_the_next_process_finds_them_and_a_damaged_one_is_missing(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.put([(b"a", page(1)), (b"b", page(2))])
    first.close()
    (data,) = tmp_path.glob(f"*/{DATA}")
    raw = bytearray(data.read_bytes())
    at = raw.index(bytes(page(2).view(torch.uint8)))
    raw[at + 100] ^= 1
    data.write_bytes(raw)
    second = opened(tmp_path)
    assert second.get([(b"a", page(0)), (b"b", page(0))]) == [True, False]
    assert not second.has(b"b")
    second.close()


def test_what_is_laid_out_differently_is_never_taken_for_the_same(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path, "b")
    first.put([(b"a", page(1))])
    assert not second.has(b"a")
    first.close()
    second.close()


def test_beyond_its_budget_the_oldest_pages_go(tmp_path: Path) -> None:
    kept = opened(tmp_path, budget=64 << 10)
    for number in range(20):
        assert kept.put([(b"%d" % number, page(number))]) == [True]
    assert not kept.has(b"0")
    assert kept.has(b"19")
    assert kept.stats().held_bytes <= 64 << 10
    kept.close()


def test_an_engine_with_host_memory_of_its_own_takes_a_disk_alone() -> None:
    assert TierOptions.read({"tiers": "disk:/kept:2GiB"}).disk_alone == (Path("/kept"), 2 << 30)
    for tiers in ("host:1GiB", "host:1GiB,disk:/kept:2GiB"):
        with pytest.raises(ConfigError, match="by itself"):
            _ = TierOptions.read({"tiers": tiers}).disk_alone
