"""What the chaos wrapper does, so that a test that survives it means something."""

from collections.abc import Iterator

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError, OutOfMemory
from kvrt.spi import Device
from kvrt.testing.chaos import PATIENCE, Chaos, Copies

MODES: list[Copies] = ["early", "late", "mixed"]


@pytest.fixture
def null() -> Iterator[Device]:
    device = registry.load("null").open()
    yield device
    device.close()


def tensors(count: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of a target of zeros and a source of ones."""
    return [
        (torch.zeros(100, dtype=torch.uint8), torch.ones(100, dtype=torch.uint8))
        for _ in range(count)
    ]


def copied(target: torch.Tensor) -> bool:
    return bool((target == 1).all())


def test_the_chosen_call_fails_and_no_other(null: Device) -> None:
    chaos = Chaos(null, fail={("memory.create", 3): OutOfMemory("chosen")})
    chaos.memory.create()
    chaos.memory.create()
    before = null.memory.info()
    with pytest.raises(OutOfMemory, match="chosen"):
        chaos.memory.create()
    assert null.memory.info() == before, "the device was not called"
    chaos.memory.create()
    assert chaos.calls["memory.create"] == 4


def test_an_early_copy_runs_when_it_is_submitted(null: Device) -> None:
    [(target, source)] = tensors()
    ticket = Chaos(null, copies="early").copier.to_host(target, source)
    assert copied(target)
    assert ticket.done()


def test_a_late_copy_runs_when_it_is_waited_for_and_not_before(null: Device) -> None:
    chaos = Chaos(null, copies="late")
    [(target, source), (other, more)] = tensors(2)
    ticket = chaos.copier.to_host(target, source)
    chaos.copier.to_host(other, more)
    chaos.memory.info()
    assert not target.any()
    assert ticket.wait()
    assert copied(target)
    assert not other.any(), "only the one that was waited for"
    chaos.synchronize()
    assert copied(other)


def test_a_late_copy_shows_a_source_that_was_reused_too_soon(null: Device) -> None:
    [(target, source)] = tensors()
    ticket = Chaos(null, copies="late").copier.to_host(target, source)
    source.fill_(9)
    ticket.wait()
    assert (target == 9).all()


@pytest.mark.parametrize("copies", MODES)
def test_a_ticket_comes_true_for_one_who_only_polls(null: Device, copies: Copies) -> None:
    [(target, source)] = tensors()
    ticket = Chaos(null, copies=copies).copier.to_host(target, source)
    assert any(ticket.done() for _ in range(PATIENCE + 1))
    assert copied(target)


class Promised:
    """A ticket that comes true when the test says so."""

    def __init__(self) -> None:
        self.kept = False

    def done(self) -> bool:
        return self.kept

    def wait(self, timeout: float | None = None) -> bool:
        return self.kept


@pytest.mark.parametrize("copies", MODES)
def test_no_copy_runs_before_the_ticket_it_was_given(null: Device, copies: Copies) -> None:
    chaos, promised = Chaos(null, copies=copies), Promised()
    [(target, source)] = tensors()
    ticket = chaos.copier.to_host(target, source, promised)
    for _ in range(3 * PATIENCE):
        chaos.memory.info()
        assert not ticket.done()
    assert not ticket.wait(0)
    assert not target.any()
    promised.kept = True
    assert ticket.wait()
    assert copied(target)


def test_a_fence_comes_late_and_a_copy_behind_it_later(null: Device) -> None:
    chaos = Chaos(null, copies="late")
    [(target, source)] = tensors()
    fence = chaos.fence()
    assert not fence.done()
    ticket = chaos.copier.to_host(target, source, fence)
    assert ticket.wait()
    assert fence.done()


def order_of_completion(device: Device, seed: int) -> list[int]:
    chaos = Chaos(device, seed=seed, copies="mixed")
    pairs = tensors(6)
    for target, source in pairs:
        chaos.copier.to_host(target, source)
    order: list[int] = []
    for _ in range(100):
        chaos.memory.info()
        order += [n for n, (target, _) in enumerate(pairs) if copied(target) and n not in order]
    return order


def test_copies_overtake_one_another_as_the_seed_says(null: Device) -> None:
    orders = [order_of_completion(null, seed) for seed in range(8)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert any(order != sorted(order) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert order_of_completion(null, 3) == orders[3]


@pytest.mark.parametrize("waited", [True, False])
def test_memory_under_an_unfinished_copy_must_not_be_unmapped(null: Device, waited: bool) -> None:
    chaos = Chaos(null, copies="late")
    span = chaos.memory.reserve(2 * chaos.info.granularity)
    chunk = chaos.memory.create()
    chaos.memory.map(span, chaos.info.granularity, chunk)
    source = chaos.memory.tensor(span, "float32")[-100:]
    ticket = chaos.copier.to_host(torch.zeros(100), source)
    if not waited:
        with pytest.raises(ContractError, match="while a copy uses them"):
            chaos.memory.unmap(span, chaos.info.granularity, chunk)
    else:
        ticket.wait()
        chaos.memory.unmap(span, chaos.info.granularity, chunk)
