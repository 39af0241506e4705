"""What the chaos wrapper does, so that a test that survives it means something."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError, OutOfMemory
from kvrt.spi import AttentionBatch, AttentionParams, DenseOps, Device, GraphCapture, Ticket
from kvrt.testing.chaos import PATIENCE, Chaos, Copies
from kvrt.testing.paged import Case, PagedKV

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
def test_a_copy_has_come_true_when_the_device_beneath_has_made_it(
    null: Device, copies: Copies
) -> None:
    chaos = Chaos(Chaos(null, copies="late"), copies=copies)
    [(target, source)] = tensors()
    assert chaos.copier.to_host(target, source).wait()
    assert copied(target)


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


# --- compute that is not known to be done -----------------------------------------------------

CASE = Case(contexts=(40,), queries=(1,), layers=1)


class Step:
    """A step over one sequence of three pages, on a device that is chaotic."""

    def __init__(self, inner: Device, copies: Copies) -> None:
        self.chaos = Chaos(inner, copies=copies)
        self.pages = PagedKV(self.chaos, CASE.layout, CASE.pages + 1)
        self.table = self.pages.take(40)
        [self.other] = self.pages.take(1)
        self.batch = self.pages.batch([self.table], [40], [1])
        self._plan = self.chaos.attention.plan(self.batch)

    def append(self) -> None:
        k, v = torch.zeros(1, 2, 64), torch.zeros(1, 2, 64)
        self.chaos.attention.append(self._plan, 0, k, v)

    def run(self) -> None:
        q, out = torch.zeros(1, 6, 64), torch.zeros(1, 6, 64)
        self.chaos.attention.run(self._plan, 0, q, out, AttentionParams(1.0))

    def page(self, number: int) -> torch.Tensor:
        size = CASE.layout.page_stride
        return self.pages.tensor[number * size : (number + 1) * size]

    def copy(self, dst: int, src: int, after: Ticket | None = None) -> Ticket:
        return self.chaos.copier.within(self.page(dst), self.page(src), after)


@pytest.fixture(params=MODES)
def step(null: Device, request: pytest.FixtureRequest) -> Step:
    return Step(null, request.param)


def poll(ticket: Ticket) -> None:
    assert any(ticket.done() for _ in range(PATIENCE + 1))


SEEN: dict[str, Callable[[Device], object]] = {
    "a fence that was waited for": lambda device: device.fence().wait(),
    "a fence that was asked": lambda device: poll(device.fence()),
    "synchronize": lambda device: device.synchronize(),
    "a copy behind a fence": lambda device: device.copier.to_host(
        torch.zeros(1), torch.ones(1), device.fence()
    ).wait(),
}


@pytest.mark.parametrize("seen", SEEN)
def test_memory_of_compute_is_unmapped_once_a_fence_was_seen(step: Step, seen: str) -> None:
    step.run()
    SEEN[seen](step.chaos)
    step.pages.close()


UNSEEN: dict[str, Callable[[Device, Ticket], object]] = {
    "nothing": lambda device, before: None,
    "a fence before the compute": lambda device, before: before.wait(),
    "a fence that nobody asked": lambda device, before: device.fence(),
    "a copy that waited for nothing": lambda device, before: device.copier.to_host(
        torch.zeros(1), torch.ones(1)
    ).wait(),
}


@pytest.mark.parametrize("work", ["append", "run"])
@pytest.mark.parametrize("seen", UNSEEN)
def test_memory_of_compute_must_not_be_unmapped_before(step: Step, work: str, seen: str) -> None:
    before = step.chaos.fence()
    getattr(step, work)()
    UNSEEN[seen](step.chaos, before)
    with pytest.raises(ContractError, match=r"unmap takes away .* while compute uses them"):
        step.pages.close()


def test_memory_that_compute_does_not_use_may_go(step: Step) -> None:
    memory = step.chaos.memory
    chunk = memory.create()
    memory.map(step.pages.span, 0, chunk)  # beside the first of the pages
    step.run()
    memory.unmap(step.pages.span, 0, chunk)


def test_a_copy_waits_for_compute_whose_pages_it_writes_or_stores(step: Step) -> None:
    first, _, last = step.table
    step.run()
    with pytest.raises(ContractError, match=r"a copy may begin .* while compute uses them"):
        step.copy(first, step.other)
    step.copy(step.other, first).wait()  # both only read it
    step.append()
    with pytest.raises(ContractError, match=r"a copy may begin .* while compute uses them"):
        step.copy(step.other, last)
    step.copy(step.other, first).wait()  # nothing was appended to it
    step.copy(step.other, last, step.chaos.fence()).wait()
    step.copy(first, step.other).wait()


def test_a_copy_must_not_wait_for_an_earlier_fence_only(step: Step) -> None:
    before = step.chaos.fence()
    step.run()
    with pytest.raises(ContractError, match="while compute uses them"):
        step.copy(step.table[0], step.other, before)
    behind = step.copy(step.other, step.table[1], step.chaos.fence())
    step.copy(step.table[0], step.other, behind).wait()


@pytest.mark.parametrize("fenced", [True, False])
def test_a_copy_behind_another_devices_ticket_is_looked_at_when_it_begins(
    step: Step, fenced: bool
) -> None:
    step.run()
    promised = Promised()
    ticket = step.copy(step.table[0], step.other, promised)
    if fenced:
        step.chaos.fence().wait()
        promised.kept = True
        assert ticket.wait()
    else:
        promised.kept = True
        with pytest.raises(ContractError, match="while compute uses them"):
            ticket.wait()


def test_compute_waits_for_copies_whose_memory_it_uses(step: Step) -> None:
    first, _, last = step.table
    stored = step.copy(step.other, last)
    step.run()  # both only read it
    with pytest.raises(ContractError, match=r"compute is submitted .* while a copy uses them"):
        step.append()
    stored.wait()
    step.append()
    loaded = step.copy(first, step.other, step.chaos.fence())
    with pytest.raises(ContractError, match=r"compute is submitted .* while a copy uses them"):
        step.run()
    poll(loaded)
    step.run()


def test_fused_operators_append_too(null: Device) -> None:
    cpu = registry.load("cpu").open()
    step = Step(cpu, "late")
    dense = step.chaos.extension(DenseOps)  # type: ignore[type-abstract]
    assert dense is not None
    q, k, v = torch.zeros(1, 6, 64), torch.zeros(1, 2, 64), torch.zeros(1, 2, 64)
    dense.rotate_append(step._plan, 0, q, k, v, None, None)
    with pytest.raises(ContractError, match="while compute uses them"):
        step.copy(step.other, step.table[-1])
    step.copy(step.other, step.table[0]).wait()
    step.chaos.synchronize()
    step.pages.close()
    cpu.close()


class Recorder:
    """`GraphCapture` that keeps nothing: `replay` counts."""

    def __init__(self, device: Device) -> None:
        self.replayed = 0
        self._device = device

    def size(self, tokens: int) -> int:
        return 2 * tokens

    def capture(
        self, batches: Sequence[AttentionBatch], record: Callable[[Sequence[object]], None]
    ) -> "Recorder":
        record([*map(self._device.attention.plan, batches)])
        return self

    def replay(self, batches: Sequence[AttentionBatch]) -> None:
        self.replayed += 1


def test_a_recorded_step_computes_when_it_is_replayed(
    null: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(null)
    monkeypatch.setattr(null, "extension", lambda kind: recorder if kind is GraphCapture else None)
    step = Step(null, "late")
    graphs = step.chaos.extension(GraphCapture)  # type: ignore[type-abstract]
    assert graphs is not None
    assert graphs.size(3) == 6

    def record(plans: Sequence[object]) -> None:
        step.chaos.attention.append(plans[0], 0, torch.zeros(1, 2, 64), torch.zeros(1, 2, 64))

    graph = graphs.capture([step.batch], record)
    step.copy(step.other, step.table[-1]).wait()
    graph.replay([step.batch])
    assert recorder.replayed == 1
    with pytest.raises(ContractError, match="while compute uses them"):
        step.copy(step.other, step.table[-1])
    step.chaos.synchronize()
    step.pages.close()
