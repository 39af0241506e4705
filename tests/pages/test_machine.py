"""Any order of operations leaves the cache equal to plain lists."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kvrt.registry import open_device
from kvrt.spi import Device
from kvrt.testing.chaos import Chaos

from .model import Model, random_operation, some_of
from .shapes import KINDS, chunks_for

MAX_LIMIT = 16


class CacheMachine(RuleBasedStateMachine):
    """Rules are `Model`'s operations; a device that delays its copies lies underneath."""

    @initialize(
        kind=st.sampled_from(KINDS),
        limit=st.integers(6, MAX_LIMIT),
        keep_warm=st.integers(0, 4),
        seed=st.integers(0, 99),
    )
    def open(self, kind: str, limit: int, keep_warm: int, seed: int) -> None:
        self.device = Chaos(open_device("null"), seed=seed)
        limit = max(limit, chunks_for(kind, 2))
        self.model = Model(self.device, kind, limit=limit, keep_warm=keep_warm)

    def seq(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.model.oracle.tokens)), label="sequence")

    def has_sequences(self) -> bool:
        return bool(self.model.oracle.tokens)

    @rule(count=st.integers(0, 30))
    def add(self, count: int) -> None:
        self.model.add(count)

    @precondition(has_sequences)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        seqs = sorted(self.model.oracle.tokens)
        counts = st.dictionaries(st.sampled_from(seqs), st.integers(0, 9), min_size=1)
        self.model.grow(data.draw(counts, label="tokens"))

    @precondition(has_sequences)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        self.model.fork(self.seq(data))

    @precondition(has_sequences)
    @rule(data=st.data(), fenced=st.booleans())
    def truncate(self, data: st.DataObject, fenced: bool) -> None:
        seq = self.seq(data)
        length = data.draw(st.integers(0, len(self.model.oracle.tokens[seq])), label="length")
        self.model.truncate(seq, length, fenced=fenced)

    @precondition(has_sequences)
    @rule(data=st.data(), fenced=st.booleans(), choices=st.randoms(use_true_random=False))
    def pick(self, data: st.DataObject, fenced: bool, choices: random.Random) -> None:
        seq = self.seq(data)
        self.model.pick(seq, *some_of(len(self.model.oracle.tokens[seq]), choices), fenced=fenced)

    @precondition(has_sequences)
    @rule(data=st.data(), fenced=st.booleans())
    def free(self, data: st.DataObject, fenced: bool) -> None:
        self.model.free(self.seq(data), fenced=fenced)

    @precondition(has_sequences)
    @rule(data=st.data())
    def name(self, data: st.DataObject) -> None:
        seq = self.seq(data)
        full = len(self.model.oracle.tokens[seq]) // self.model.cache.page_size
        self.model.name(seq, data.draw(st.integers(0, full), label="pages"))

    def entries(self, data: st.DataObject) -> list[tuple[int, ...]]:
        named = st.sampled_from(sorted(self.model.oracle.named))
        return data.draw(st.lists(named, unique=True), label="pages")

    @precondition(lambda self: self.model.oracle.named)
    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        self.model.attach(self.entries(data))

    @precondition(lambda self: self.model.oracle.named)
    @rule(data=st.data(), more=st.integers(0, 5))
    def fetch(self, data: st.DataObject, more: int) -> None:
        self.model.fetch(self.entries(data), more)

    @precondition(lambda self: self.model.oracle.named)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        self.model.forget(self.entries(data))

    @precondition(has_sequences)
    @rule(data=st.data(), count=st.integers(1, 30))
    def preempt(self, data: st.DataObject, count: int) -> None:
        self.model.replace(self.seq(data), count)

    @precondition(has_sequences)
    @rule(data=st.data())
    def plan_and_forget(self, data: st.DataObject) -> None:
        self.model.plan_and_forget(self.seq(data))

    @precondition(has_sequences)
    @rule(data=st.data(), chunks=st.integers(0, 6))
    def pack(self, data: st.DataObject, chunks: int) -> None:
        some = st.lists(st.sampled_from(sorted(self.model.oracle.tokens)), max_size=2, unique=True)
        self.model.pack(chunks, data.draw(some, label="still"))

    @rule()
    def end_step(self) -> None:
        self.model.end_step()

    @rule()
    def idle(self) -> None:
        self.model.idle()

    @rule(limit=st.integers(6, MAX_LIMIT))
    def set_limit(self, limit: int) -> None:
        self.model.set_limit(max(limit, self.model.cache.min_bytes // self.model.chunk))

    @invariant()
    def equals_the_lists(self) -> None:
        if hasattr(self, "model"):
            self.model.check()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.model.check(every_byte=True)
            self.model.empty()
            self.model.check_poison()
            self.model.close()
            assert self.device.memory.info().chunks == 0
            self.device.close()


@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
def test_any_order_of_operations_equals_plain_lists() -> None:
    run_state_machine_as_test(
        CacheMachine, settings=settings(max_examples=200, stateful_step_count=50, deadline=None)
    )


def run_random_operations(
    device: Device, kind: str, count: int, *, check_each: int, room: int
) -> None:
    rng = random.Random(kind)
    before = device.memory.info().chunks
    room = max(room, chunks_for(kind, 10, chunk_bytes=device.info.granularity))
    model = Model(device, kind, chunks=48, limit=room, keep_warm=3)
    for number in range(count):
        random_operation(model, rng, room + 4)
        if number % check_each == 0:
            model.check(every_byte=number % (8 * check_each) == 0)
            model.check_poison()
    assert model.shortages > 5, "the load is meant to run into the limit"
    assert model.cache.stats().copies > 2
    model.empty()
    model.check_poison()
    model.close()
    assert device.memory.info().chunks == before


@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
@pytest.mark.parametrize("kind", ["straddling", KINDS[-1]])
def test_thousands_of_random_operations_leave_nothing_behind(
    kind: str, null_device: Device
) -> None:
    run_random_operations(null_device, kind, 7_000, check_each=50, room=30)


@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
@pytest.mark.parametrize("kind", KINDS)
def test_random_operations_on_the_processors_memory(kind: str, cpu_device: Device) -> None:
    run_random_operations(cpu_device, kind, 800, check_each=20, room=12)
