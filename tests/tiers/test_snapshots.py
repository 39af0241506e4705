"""Snapshots of models with several groups of layers: one folder has the pages of all."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvrt.engine.snapshots import Snapshots
from kvrt.errors import StoreError
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.files import INDEX
from kvrt.kv.tiers.names import fingerprint
from kvrt.spi import Device
from tests.pages.life import ROOT, Life
from tests.pages.shapes import SIZE

from .pages import FINGERPRINT
from .test_life import KINDS

PAGES = 10
PROMPT = [random.Random(n).randrange(3) for n in range(PAGES * SIZE + 1)]

Make = Callable[..., tuple[Life, Snapshots]]


@pytest.fixture
def make(null_device: Device) -> Iterator[Make]:
    """A runtime without a model, that has computed nothing yet."""
    lives: list[Life] = []

    def one(kind: str, name: bytes = FINGERPRINT) -> tuple[Life, Snapshots]:
        life = Life(null_device, kind, random.Random(0))
        lives.append(life)
        engine = SimpleNamespace(memory=life.memory, executor=life.pages)
        return life, Snapshots(engine, name, lambda function: function())  # type: ignore[arg-type]

    yield one
    for life in lives:
        life.memory.close()
        life.cache.close()


def told(life: Life, prompt: list[int]) -> int:
    """Of a sequence from its beginning to its end, the tokens that were not computed."""
    before = life.seen["tokens back"]
    life.ids += 1
    seq = Seq(life.ids, [*prompt], len(prompt), len(prompt) + 1, arrival=life.ids, root=ROOT)
    life.waiting.append(seq)
    while seq in life.waiting or seq in life.fetching or seq in life.running:
        life.go_on()
        if life.memory.offload is not None:
            life.memory.offload.wait()
    life.check_bytes()
    return life.seen["tokens back"] - before


@pytest.mark.promise("P10")
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_goes_on_from_the_pages_of_all_groups(
    make: Make, kind: str, tmp_path: Path
) -> None:
    life, snapshots = make(kind)
    assert told(life, PROMPT) == 0
    written = snapshots.save(tmp_path, None, (), None)
    assert written == len(life.reuse.index)
    assert snapshots.save(tmp_path, None, (), None) == 0, "it is all there"
    other, loads = make(kind)
    assert loads.load(tmp_path) == written
    assert told(other, PROMPT) == PAGES * SIZE


def test_of_one_prompt_the_pages_of_all_groups_are_saved(make: Make, tmp_path: Path) -> None:
    kind = "straddling+many in a chunk 9 0"
    life, snapshots = make(kind)
    others = [2 - token for token in PROMPT]
    told(life, others)
    told(life, PROMPT)
    written = snapshots.save(tmp_path, ROOT, PROMPT, None)
    assert 0 < written < len(life.reuse.index)
    other, loads = make(kind)
    assert loads.load(tmp_path) == written
    assert told(other, PROMPT) == PAGES * SIZE
    assert told(other, others) == 0


@pytest.mark.promise("P21")
def test_a_snapshot_of_a_model_with_other_groups_is_refused(make: Make, tmp_path: Path) -> None:
    life, snapshots = make("straddling+many in a chunk 9 0")
    told(life, PROMPT)
    snapshots.save(tmp_path, None, (), None)
    before = (tmp_path / INDEX).read_bytes()
    for kind in ("straddling", "many in a chunk+straddling 9 0", "straddling+one chunk 9 0"):
        _, other = make(kind)
        with pytest.raises(StoreError, match="has pages of 4 tokens in 40960 and 8192 bytes"):
            other.load(tmp_path)
        with pytest.raises(StoreError, match="has pages of 4 tokens in 40960 and 8192 bytes"):
            other.save(tmp_path, None, (), None)
    _, other = make("straddling", fingerprint(b"another", "", ""))
    said = "2 groups of layers keep memory alike there, and 1 here"
    with pytest.raises(StoreError, match=f"another model or KV format: {said}"):
        other.load(tmp_path)
    assert (tmp_path / INDEX).read_bytes() == before
