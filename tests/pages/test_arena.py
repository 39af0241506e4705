"""`kvrt.Arena`: whatever is asked in whatever order, and whatever fails, it holds what it says."""

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import kvrt
from kvrt import Arena, ConfigError, DeviceError, OutOfMemory, Share
from kvrt.arena import ARENA
from kvrt.kv.limit import LimitChange
from kvrt.registry import open_device
from kvrt.sharing.tenant import NotLeased, tenants_of
from kvrt.testing.chaos import Chaos

CHUNK = 64 << 10
CHUNKS = 12
LONG_S = 60.0

indices = st.lists(st.integers(0, CHUNKS - 1), min_size=1, max_size=5, unique=True)


class Counting(Chaos):
    """Remembers what it had left when it was closed."""

    left = 0

    def close(self) -> None:
        self.left = self.memory.info().chunks
        super().close()


class Work:
    """What a fence says of it."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self) -> bool:
        return self.done


@settings(max_examples=30, stateful_step_count=30, deadline=None)
class AnyOrder(RuleBasedStateMachine):
    """Maps, unmaps behind work, lower and higher budgets, and calls of the device that fail."""

    @initialize(
        warm=st.integers(0, 3),
        budget=st.integers(3, CHUNKS),
        creates=st.sets(st.integers(1, 20), max_size=2),
        maps=st.sets(st.integers(1, 20), max_size=2),
        unmaps=st.sets(st.integers(1, 10), max_size=1),
    )
    def open(
        self, warm: int, budget: int, creates: set[int], maps: set[int], unmaps: set[int]
    ) -> None:
        fail: dict[tuple[str, int], Exception] = {}
        fail |= {("memory.create", n): OutOfMemory("chaos") for n in creates}
        fail |= {("memory.map", n): DeviceError("chaos") for n in maps}
        fail |= {("memory.unmap", n): DeviceError("chaos") for n in unmaps}
        self.failing = bool(fail)
        self.device = Counting(open_device("null"), fail=fail)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kvrt.arena.open_device", lambda *_: self.device)
            self.arena = Arena(
                CHUNKS * CHUNK, budget=budget * CHUNK, keep_warm=warm * CHUNK or None
            )
        self.budget, self.warm = budget, warm
        self.bytes: dict[int, int] = {}  # of each chunk that may be used, what is written in it
        self.leaving: dict[int, Work] = {}
        self.works: list[Work] = []
        self.count = 0

    def _expect_gone(self) -> None:
        self.leaving = {n: work for n, work in self.leaving.items() if not work.done}

    @rule(wanted=indices)
    def map(self, wanted: list[int]) -> None:
        if self.bytes.keys() & set(wanted):
            with pytest.raises(ConfigError, match="mapped already"):
                self.arena.map(wanted)
            return
        self._expect_gone()
        new = [n for n in wanted if n not in self.leaving]
        fits = len(self.bytes) + len(self.leaving) + len(new) <= self.budget
        old = {n: self._written(n) for n in wanted if n in self.leaving}
        try:
            self.arena.map(wanted)
        except (OutOfMemory, DeviceError):
            assert not fits or self.failing
            self.arena.poll()
            return
        assert fits
        for index in wanted:
            if index in old:
                assert self._written(index) == old[index], "it stayed, with its bytes"
            self.count += 1
            self.bytes[index] = self.count % 251
            self._chunk(index).fill_(self.bytes[index])
            self.leaving.pop(index, None)

    @rule(gone=indices, behind=st.booleans())
    def unmap(self, gone: list[int], behind: bool) -> None:
        if not set(gone) <= self.bytes.keys():
            with pytest.raises(ConfigError, match="not mapped"):
                self.arena.unmap(gone)
            return
        work = Work()
        work.done = not behind
        self.works.append(work)
        for index in gone:
            del self.bytes[index]
            self.leaving[index] = work
        try:
            self.arena.unmap(gone, after=work if behind else None)
        except DeviceError:
            assert self.failing
            self.arena.poll()
        self._expect_gone()

    @precondition(lambda self: any(not work.done for work in self.works))
    @rule(data=st.data())
    def work_ends(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([work for work in self.works if not work.done])).done = True
        try:
            self.arena.poll()
        except DeviceError:
            assert self.failing
            self.arena.poll()
        self._expect_gone()

    @rule(budget=st.integers(1, CHUNKS))
    def set_budget(self, budget: int) -> None:
        self._expect_gone()
        mapped = len(self.bytes) + len(self.leaving)
        change = self.arena.set_budget(budget * CHUNK)
        self.budget = budget
        assert change is (LimitChange.APPLIED if mapped <= budget else LimitChange.DEFERRED)

    def _chunk(self, index: int) -> torch.Tensor:
        return self.arena.tensor()[index * CHUNK : (index + 1) * CHUNK]

    def _written(self, index: int) -> int:
        (value,) = set(self._chunk(index).tolist())
        return int(value)

    @invariant()
    def it_holds_what_it_says(self) -> None:
        stats = self.arena.stats()
        assert self.arena.mapped == self.bytes.keys()
        assert stats.maps - stats.unmaps == stats.mapped_bytes // CHUNK
        assert stats.leaving_bytes == len(self.leaving) * CHUNK
        assert stats.mapped_bytes == (len(self.bytes) + len(self.leaving)) * CHUNK
        assert stats.held_bytes == self.device.memory.info().chunks
        assert stats.pooled_bytes <= self.warm * CHUNK
        assert stats.held_bytes <= max(stats.mapped_bytes, self.budget * CHUNK)
        assert stats.over_bytes == max(0, stats.mapped_bytes - self.budget * CHUNK)
        for index, value in self.bytes.items():
            assert self._written(index) == value

    def teardown(self) -> None:
        for work in self.works:
            work.done = True
        try:
            self.arena.close()
            assert self.device.left == 0
        except DeviceError:
            assert self.failing


TestAnyOrder = AnyOrder.TestCase


def test_it_closes_when_the_work_has_ended_and_says_so_if_it_does_not() -> None:
    arena, work = Arena(4 * CHUNK, backend="null"), Work()
    arena.map([0, 1])
    arena.unmap([0], after=work)
    with pytest.raises(DeviceError, match="did not end within"):
        arena.close(timeout=0.01)
    assert arena.mapped == {1}
    work.done = True
    arena.close()
    arena.close()


def test_addresses_stay_and_cost_nothing() -> None:
    with Arena("90%", backend="cpu", budget="8MiB") as arena:
        assert arena.nbytes > 1 << 30
        assert arena.nbytes % arena.chunk_bytes == 0
        far = arena.chunks - 1
        values = arena.tensor(torch.bfloat16)
        assert values.data_ptr() == arena.address
        assert values.numel() == arena.nbytes // 2
        for _ in range(2):
            arena.map([far])
            values[-1] = 3.0
            assert float(values[-1]) == 3.0
            arena.unmap([far])
        assert arena.stats().held_bytes == 0
        assert [*arena.chunks_of(arena.chunk_bytes - 1, 2)] == [0, 1]
        assert [*arena.chunks_of(arena.chunk_bytes, arena.chunk_bytes)] == [1]


@pytest.mark.parametrize("wrong", [[CHUNKS], [-1], [1, 1], ["1"], [0.5], None])
def test_indices_that_cannot_be_are_refused_and_nothing_is_mapped(wrong: object) -> None:
    with Arena(CHUNKS * CHUNK, backend="null") as arena:
        with pytest.raises(ConfigError):
            arena.map(wrong)  # type: ignore[arg-type]
        assert not arena.mapped


def test_every_argument_has_a_check() -> None:
    for name in ARENA:
        given = {"nbytes": CHUNK, name: object()}
        with pytest.raises(ConfigError, match=f"^{name} "):
            kvrt.Arena(**given)  # type: ignore[arg-type]


def test_a_late_change_of_the_budget_is_ignored() -> None:
    with Arena(CHUNKS * CHUNK, backend="null") as arena:
        assert arena.set_budget(4 * CHUNK, revision=2) is LimitChange.APPLIED
        assert arena.set_budget(8 * CHUNK, revision=1) is LimitChange.STALE
        with pytest.raises(OutOfMemory, match="budget"):
            arena.map(range(5))
        arena.map(range(4))


def test_arenas_and_what_they_are_due_of_a_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVRT_SHARE_DIR", str(tmp_path))
    share = Share(name="s", size=8 * CHUNK)
    rung = threading.Event()
    with (
        Arena(8 * CHUNK, backend="null", share=share, name="a") as a,
        Arena(8 * CHUNK, backend="null", share="s") as b,
    ):
        a.listen(rung.set)
        a.map(range(8))
        a.wants(0)
        assert a.stats().over_bytes == 0
        b.wants(3 * CHUNK)
        with pytest.raises(NotLeased):
            b.map(range(3))
        assert b.stats().held_bytes == 0
        assert rung.wait(LONG_S)
        assert a.stats().over_bytes == 3 * CHUNK
        a.unmap([1, 2, 5])
        b.map(range(3))
        held = [row.claim.held for row in tenants_of(tmp_path / "s.null0")[1]]
        assert held == [5 * CHUNK, 3 * CHUNK]
    assert tenants_of(tmp_path / "s.null0")[1] == []


def test_what_is_mapped_again_before_its_work_has_ended_stays() -> None:
    work = Work()
    with Arena(4 * CHUNK, backend="null") as arena:
        arena.map([0, 1])
        arena.tensor()[: 2 * CHUNK].fill_(7)
        arena.unmap([0, 1], after=work)
        arena.map([1, 2])
        assert arena.mapped == {1, 2}
        work.done = True
        assert arena.poll() == 0
        assert arena.mapped == {1, 2}
        assert set(arena.tensor()[CHUNK : 2 * CHUNK].tolist()) == {7}
