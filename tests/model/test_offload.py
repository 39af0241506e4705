"""Experts that are read when a token chooses them: the same bits, in bounded memory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvrt.errors import ConfigError, WeightsUnreadable
from kvrt.model.loader import Model, load_model
from kvrt.model.offload import residency
from kvrt.model.offload.residency import Residency
from kvrt.spi import Device
from tests.model.checkpoints import FAMILIES, make_model, save_model
from tests.model.ggufs import keys_of, pack, save_gguf, tensors_of, write_gguf
from tests.model.stepping import stepping
from tests.model.test_experts import save_gpt_oss

WIDE = {"intermediate_size": 64, "moe_intermediate_size": 64}
FEW = ("mixtral", "gpt-oss", "llama-4", "granite-moe", "gemma-4-moe", "qwen-3-next")
"""Those that differ in what stands around experts, and in how files have them."""
MIXTURES = [
    pytest.param(family, marks=() if family in FEW else pytest.mark.extra)
    for family, fields in FAMILIES.items()
    if any("experts" in name and number for name, number in fields.items())
]
TOKENS = [5, 250, 17, 88, 3, 199, 120, 40, 41, 9, 77, 160]
LONG = torch.randint(0, 256, (90,), generator=torch.Generator().manual_seed(5)).tolist()


def fewest(place: Path, device: Device, **options: Any) -> int:
    """Bytes of the fewest experts that a model runs with."""
    with pytest.raises(ConfigError, match="experts that a token has") as refused:
        load_model(place, device, offload_experts=1, **options)
    return int(refused.value.fix.split()[3].rstrip(";"))


def logits_of(model: Model, device: Device) -> Tensor:
    """Of steps of one token, of several, and of so many that they need all experts of a layer."""
    with stepping(model, device, texts=2, longest=len(LONG) + len(TOKENS)) as stepper:
        text, long = stepper.add(TOKENS), stepper.add(LONG)
        for count in (1, 1, 3, 1):
            stepper.step([(text, count)])
        stepper.step([(text, 2), (long, 80)])
        for _ in range(4):
            stepper.step([(long, 1), (text, 1)])
    return torch.stack(text.logits + long.logits)


def assert_same(place: Path, device: Device, **options: Any) -> Model:
    """The logits of a model are those without, with the fewest experts there may be, and more.

    Returns:
        The model with the fewest.
    """
    least = fewest(place, device, **options)
    want = logits_of(load_model(place, device, **options), device)
    more = load_model(place, device, offload_experts=least * 3 // 2, **options)
    assert torch.equal(logits_of(more, device), want)
    model = load_model(place, device, offload_experts=least, **options)
    assert torch.equal(logits_of(model, device), want)
    assert model.pool is not None
    model.pool.check_integrity()
    stats = model.pool.stats()
    assert stats.held == stats.places
    assert stats.misses
    return model


@pytest.mark.parametrize("family", MIXTURES)
def test_every_mixture_has_the_same_bits_with_few_of_its_experts(
    tmp_path: Path, family: str, cpu: Device
) -> None:
    folder = save_model(make_model(family), tmp_path, dtype=torch.bfloat16)
    whole = load_model(folder, cpu)
    model = assert_same(folder, cpu)
    assert model.weight_bytes < whole.weight_bytes
    assert model.fingerprint == whole.fingerprint, "pages of one serve the other"


@pytest.mark.parametrize("kind", ["F16", "Q4_0"])
def test_experts_of_a_gguf_file_are_read_from_it(tmp_path: Path, kind: str, cpu: Device) -> None:
    folder = save_model(make_model("qwen-3-moe", **WIDE), tmp_path)
    assert_same(save_gguf(folder, tmp_path / "model.gguf", kind), cpu)


def test_layers_whose_experts_are_other_codes_have_places_of_their_own(
    tmp_path: Path, cpu: Device
) -> None:
    """As in files of mixed types: Q4_K_M has matrices of Q6_K in some layers."""
    folder = save_model(make_model("olmoe", **WIDE), tmp_path)
    tensors = {
        name: pack(tensor, "F32" if "exps" not in name else "Q8_0" if "blk.1" in name else "Q4_0")
        for name, tensor in tensors_of(folder).items()
    }
    model = assert_same(write_gguf(tmp_path / "x.gguf", keys_of(folder), tensors), cpu)
    assert model.pool is not None
    assert [model.pool.experts(layer) is model.pool.experts(0) for layer in range(3)] == [
        True, False, True,
    ]  # fmt: skip


def test_experts_of_codes_are_read_as_a_method_keeps_them(
    tmp_path: Path, exact_cpu: Device
) -> None:
    """In several tensors each, which hold those of all experts."""
    save_gpt_oss(tmp_path)
    assert_same(tmp_path, exact_cpu)


def test_a_device_without_operators_of_its_own_has_the_same_bits(
    tmp_path: Path, plain: Device
) -> None:
    folder = save_model(make_model("gpt-oss"), tmp_path)
    assert_same(folder, plain)


def test_the_thread_that_computes_reads_where_a_device_goes_on_by_itself(
    tmp_path: Path, cpu: Device
) -> None:
    """What it brings has to come behind what still reads the place."""
    folder = save_model(make_model("mixtral"), tmp_path, dtype=torch.bfloat16)
    want = logits_of(load_model(folder, cpu), cpu)
    model = load_model(folder, cpu, offload_experts=fewest(folder, cpu))
    assert model.pool is not None
    assert model.pool._threads is not None
    model.pool._threads.shutdown()
    model.pool._threads = None
    assert torch.equal(logits_of(model, cpu), want)
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(WeightsUnreadable):
        logits_of(model, cpu)
    model.pool.check_integrity()


# --- what is read again, and fails ----------------------------------------------------------------


@pytest.fixture
def offloaded(tmp_path: Path, cpu: Device) -> tuple[Path, Model, Tensor]:
    """A model with few of its experts in memory, its file, and the logits it should have."""
    folder = save_model(make_model("mixtral"), tmp_path, dtype=torch.bfloat16)
    model = load_model(folder, cpu, offload_experts=fewest(folder, cpu))
    return folder / "model.safetensors", model, logits_of(load_model(folder, cpu), cpu)


def cut_short(file: Path) -> None:
    os.truncate(file, 5000)


def overwrite(file: Path) -> None:
    with open(file, "r+b") as opened:
        opened.seek(5000)
        opened.write(bytes(file.stat().st_size - 5000))


@pytest.mark.parametrize(
    ("damage", "why"),
    [(cut_short, "was cut short"), (overwrite, "holds other weights now")],
)
def test_a_file_that_is_damaged_while_it_runs_is_an_error_and_serves_again_when_it_is_back(
    offloaded: tuple[Path, Model, Tensor], cpu: Device, damage: Callable[[Path], None], why: str
) -> None:
    file, model, want = offloaded
    content = file.read_bytes()
    damage(file)
    with pytest.raises(WeightsUnreadable, match=f"{file}.*experts.*{why}") as refused:
        logits_of(model, cpu)
    assert refused.value.fix
    assert model.pool is not None
    model.pool.check_integrity()
    with open(file, "r+b") as opened:
        opened.write(content)
    assert torch.equal(logits_of(model, cpu), want)


def test_an_expert_that_could_not_be_read_is_not_taken_for_there(
    offloaded: tuple[Path, Model, Tensor], cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several that are read at once, each in turn fails."""
    _, model, want = offloaded
    read = os.preadv
    calls = failing = 0

    def preadv(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(5, "Input/output error")
        return read(*arguments)

    monkeypatch.setattr(os, "preadv", preadv)
    for failing in range(7, 60, 4):  # noqa: B007
        calls = 0
        with pytest.raises(WeightsUnreadable, match="Input/output error"):
            logits_of(model, cpu)
        assert model.pool is not None
        model.pool.check_integrity()
    failing = 0
    assert torch.equal(logits_of(model, cpu), want)


def test_places_are_empty_when_memory_has_gone_and_come_back(
    offloaded: tuple[Path, Model, Tensor], cpu: Device
) -> None:
    _, model, want = offloaded
    logits_of(model, cpu)
    model.resident.drop()
    assert model.pool is not None
    assert model.pool.stats().held == 0
    model.resident.bring_back()
    assert torch.equal(logits_of(model, cpu), want)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama-3", {}, "has no experts"),
        ("mixtral", {"load_format": "dummy"}, "load_format dummy"),
        ("mixtral", {"quantize": "int8"}, "quantize int8"),
        ("mixtral", {"model_impl": "transformers"}, "model_impl transformers"),
    ],
)
def test_what_has_no_experts_in_its_files_is_refused(
    tmp_path: Path, cpu: Device, family: str, options: dict[str, Any], message: str
) -> None:
    folder = save_model(make_model(family), tmp_path)
    with pytest.raises(ConfigError, match=message) as refused:
        load_model(folder, cpu, offload_experts=1 << 20, **options)
    assert refused.value.fix


# --- which stay -----------------------------------------------------------------------------------


class Plain:
    """The same as `Residency`, slowly."""

    def __init__(self, places: int) -> None:
        self.there: list[int | None] = [None] * places
        self.worth: dict[int, float] = {}
        self.used: dict[int, int] = {}
        self.calls = 0

    def take(self, experts: list[int], half_after: int) -> list[int]:
        self.calls += 1
        if self.calls % half_after == 0:
            self.worth = {each: worth / 2 for each, worth in self.worth.items()}
        for expert in experts:
            self.worth[expert] = self.worth.get(expert, 0.0) + 1
            self.used[expert] = self.calls
        missing = [at for at, expert in enumerate(experts) if expert not in self.there]
        for at in missing:
            free = [p for p, held in enumerate(self.there) if held is None]
            others = [p for p, held in enumerate(self.there) if held not in experts]
            others.sort(key=lambda p: (self.worth[self.there[p]], self.used[self.there[p]])  # type: ignore[index]
                        if self.there[p] is not None else (-1, 0))  # fmt: skip
            self.there[(free or others)[0]] = experts[at]
        return missing


@given(
    places=st.integers(3, 9),
    calls=st.lists(
        st.tuples(st.lists(st.integers(0, 15), min_size=1, max_size=3, unique=True), st.booleans()),
        max_size=60,
    ),
)
def test_which_experts_stay_is_as_in_a_plain_model(
    places: int, calls: list[tuple[list[int], bool]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residency, "HALF_LIFE", 4)
        given_, plain = Residency(16, places, 2), Plain(places)
        for experts, fails in calls:
            taken = given_.take(np.array(experts))
            assert taken.missing == plain.take(experts, 8)
            assert taken.places.tolist() == [plain.there.index(each) for each in experts]
            if fails and taken.missing:
                given_.forget(experts[taken.missing[0]])
                plain.there[plain.there.index(experts[taken.missing[0]])] = None
            given_.check_integrity()
            assert given_.held == sum(each is not None for each in plain.there)


def test_an_expert_that_is_always_needed_is_not_displaced_by_others_that_are_needed_once() -> None:
    """Where what was not used for longest went first, it would be."""
    held = Residency(100, 4, 64)
    for _ in range(3):
        held.take(np.array([0, 1]))
    missing = 0
    for other in range(2, 80, 4):
        for one in range(other, other + 4):
            held.take(np.array([one]))
        missing += len(held.take(np.array([0, 1])).missing)
    assert missing == 0


def test_what_was_needed_long_ago_goes_in_the_end() -> None:
    held = Residency(8, 2, 1)
    for _ in range(1000):
        held.take(np.array([0]))
    for _ in range(4 * residency.HALF_LIFE):
        held.take(np.array([1]))
        held.take(np.array([2]))
    assert held.resident(np.array([0, 1, 2])).tolist() == [False, True, True]
