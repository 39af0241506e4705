"""Pages in host memory equal a dictionary; memory is taken as needed and given back."""

import gc
import weakref

import pytest
import torch
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

from kvrt.errors import ConfigError, ContractError, IntegrityError, OutOfMemory
from kvrt.kv.tiers.host import ALIGNMENT, HostPage, HostStore
from kvrt.registry import open_device
from kvrt.spi import Copier

from .pages import body, names

PAGE = 5000
STRIDE = 2 * ALIGNMENT
NAMES = names(16)


class Counted:
    """A copier that counts the host memory it gave, as long as it lives, and can have none left."""

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self.live = 0
        self.empty = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._copier, name)

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        if self.empty:
            raise OutOfMemory("no memory left")
        buffer = self._copier.host_buffer(nbytes)
        self.live += nbytes
        weakref.finalize(buffer.untyped_storage(), self._gone, nbytes)
        return buffer

    def _gone(self, nbytes: int) -> None:
        self.live -= nbytes


def slabs(count: int, pages: int) -> dict[str, int]:
    """A budget of so many slabs of so many pages."""
    slab = pages * STRIDE + ALIGNMENT
    return {"budget": count * slab, "slab_bytes": slab}


def fill(page: HostPage) -> None:
    page.data.copy_(torch.from_numpy(body(page.name)[:PAGE].copy()))


def right(page: HostPage) -> bool:
    return bool((page.data.numpy() == body(page.name)[:PAGE]).all())


def put(store: HostStore, *which: int) -> None:
    for n in which:
        page = store.reserve(NAMES[n])
        assert page is not None
        fill(page)
        store.commit(page)


class HostMachine(RuleBasedStateMachine):
    """The model: the pages that are found, the oldest first; those that are written; pins."""

    @initialize(count=st.integers(1, 3), pages=st.integers(1, 4))
    def begin(self, count: int, pages: int) -> None:
        self.copier = Counted(open_device("null").copier)
        self.store = HostStore(self.copier, PAGE, **slabs(count, pages))  # type: ignore[arg-type]
        self.slots, self.slab = count * pages, pages * STRIDE + ALIGNMENT
        self.there: dict[int, HostPage] = {}
        self.writing: list[HostPage] = []
        self.pins: list[HostPage] = []

    def in_use(self) -> int:
        gone = {id(page) for page in self.pins} - {id(page) for page in self.there.values()}
        return len(self.there) + len(self.writing) + len(gone)

    @rule(n=st.integers(0, len(NAMES) - 1))
    def put(self, n: int) -> None:
        before = len(self.writing)
        self.reserve(n)
        if len(self.writing) > before:
            self.end(self.writing.pop(), done=True)

    @rule(n=st.integers(0, len(NAMES) - 1))
    def reserve(self, n: int) -> None:
        evictable = [m for m, page in self.there.items() if page not in self.pins]
        full = self.in_use() == self.slots
        page = self.store.reserve(NAMES[n])
        if n in self.there or (full and not evictable):
            assert page is None
            return
        assert page is not None
        if full:
            del self.there[evictable[0]]
        assert page.data.shape == (PAGE,)
        assert page.data.data_ptr() % ALIGNMENT == 0
        fill(page)
        self.writing.append(page)

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), done=st.booleans())
    def end_writing(self, data: st.DataObject, done: bool) -> None:
        self.end(self.writing.pop(data.draw(st.integers(0, len(self.writing) - 1))), done)

    def end(self, page: HostPage, done: bool) -> None:
        assert right(page)
        if done:
            self.store.commit(page)
            self.there.setdefault(NAMES.index(page.name), page)
        else:
            self.store.unpin(page)

    @rule(n=st.integers(0, len(NAMES) - 1))
    def find(self, n: int) -> None:
        page = self.store.find(NAMES[n])
        assert page is self.there.get(n)
        if page is not None:
            self.there[n] = self.there.pop(n)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        page = self.there[data.draw(st.sampled_from(list(self.there)))]
        self.store.pin(page)
        self.pins.append(page)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        page = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        assert right(page), "a pinned page was written over"
        self.store.unpin(page)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from(list(self.there)))
        assert self.store.remove(NAMES[n])
        assert not self.store.remove(NAMES[n])
        del self.there[n]

    @invariant()
    def equal(self) -> None:
        self.store.check_integrity()
        assert [page.name for page in self.store._pages.values()] == [NAMES[n] for n in self.there]
        assert all(right(page) for page in [*self.there.values(), *self.writing, *self.pins])
        stats = self.store.stats()
        assert stats.pages == len(self.store) == len(self.there)
        assert stats.used_bytes == self.in_use() * STRIDE
        assert stats.held_bytes <= stats.budget_bytes
        # Slots that the test still has hold their slab, too.
        assert self.copier.live >= stats.held_bytes
        empty = sum(not used for used in self.store._used.values())
        assert empty <= 1


def test_any_order_of_operations_equals_a_dictionary() -> None:
    run_state_machine_as_test(
        HostMachine, settings=settings(max_examples=80, stateful_step_count=40)
    )


def test_memory_is_taken_as_pages_come_and_given_back_when_they_go(copier: Copier) -> None:
    counted = Counted(copier)
    store = HostStore(counted, PAGE, **slabs(3, 2))  # type: ignore[arg-type]
    slab = 2 * STRIDE + ALIGNMENT
    assert counted.live == 0
    put(store, 0, 1)
    assert counted.live == slab
    put(store, 2, 3, 4)
    assert counted.live == 3 * slab == store.stats().held_bytes
    for n in (0, 2, 4):
        store.remove(NAMES[n])
    gc.collect()
    assert counted.live == 3 * slab, "one empty slab is kept"
    store.remove(NAMES[3])
    gc.collect()
    assert counted.live == 2 * slab
    assert right(store.find(NAMES[1]))  # type: ignore[arg-type]
    store.remove(NAMES[1])
    gc.collect()
    assert counted.live == slab == store.stats().held_bytes


def test_of_two_empty_slabs_the_lower_one_stays(copier: Copier) -> None:
    """So that what is used gathers at one end, and memory at the other can go back."""
    store = HostStore(copier, PAGE, **slabs(3, 2))  # type: ignore[arg-type]
    put(store, *range(6))
    for n in (2, 3, 4, 5):
        store.remove(NAMES[n])
    page = store.reserve(NAMES[6])
    assert page is not None
    assert page.slot == 2


def test_the_least_recently_used_page_makes_room(copier: Copier) -> None:
    store = HostStore(copier, PAGE, **slabs(1, 3))
    put(store, 0, 1, 2)
    assert store.find(NAMES[0])
    assert [page.name for page in store.oldest()] == [NAMES[1], NAMES[2], NAMES[0]]
    put(store, 3)
    assert [n for n in range(4) if NAMES[n] in store] == [0, 2, 3]
    assert store.stats().evicted == 1


def test_a_page_is_found_only_once_it_is_written(copier: Copier) -> None:
    store = HostStore(copier, PAGE, **slabs(1, 3))
    page = store.reserve(NAMES[0])
    assert page is not None
    assert store.find(NAMES[0]) is None
    assert NAMES[0] not in store
    store.commit(page)
    assert store.find(NAMES[0]) is page
    assert store.reserve(NAMES[0]) is None, "it is there already"


def test_of_two_copies_of_a_page_the_first_one_counts(copier: Copier) -> None:
    store = HostStore(copier, PAGE, **slabs(1, 3))
    first, second = store.reserve(NAMES[0]), store.reserve(NAMES[0])
    assert first
    assert second
    store.commit(second)
    store.commit(first)
    assert store.find(NAMES[0]) is second
    assert store.stats().used_bytes == STRIDE


def test_where_everything_is_pinned_there_is_no_room(copier: Copier) -> None:
    store = HostStore(copier, PAGE, **slabs(1, 1))
    page = store.reserve(NAMES[0])
    assert page is not None
    assert store.reserve(NAMES[1]) is None
    assert store.stats().refused == 1
    store.unpin(page)
    assert store.reserve(NAMES[1]) is not None


def test_where_the_system_has_no_memory_older_pages_make_room(copier: Copier) -> None:
    counted = Counted(copier)
    store = HostStore(counted, PAGE, **slabs(4, 1))  # type: ignore[arg-type]
    put(store, 0, 1)
    counted.empty = True
    put(store, 2)
    assert [n for n in range(3) if NAMES[n] in store] == [1, 2]
    counted.empty = False
    put(store, 3)
    assert len(store) == 3


def test_the_budget_is_used_to_the_last_slab(copier: Copier) -> None:
    """A budget between two numbers of slabs makes slabs smaller; little is left over."""
    budget = 10 * STRIDE
    store = HostStore(copier, PAGE, budget, slab_bytes=4 * STRIDE)
    put(store, *range(9))
    assert store.stats().evicted <= 1
    assert store.stats().held_bytes <= budget


def test_a_budget_of_less_than_a_page_is_refused(copier: Copier) -> None:
    with pytest.raises(ConfigError, match="less than one page"):
        HostStore(copier, PAGE, PAGE)


def test_what_breaks_the_protocol_is_an_error(copier: Copier) -> None:
    store = HostStore(copier, PAGE, **slabs(1, 3))
    page = store.reserve(NAMES[0])
    assert page is not None
    store.commit(page)
    with pytest.raises(ContractError, match="not reserved"):
        store.commit(page)
    with pytest.raises(ContractError, match="not pinned"):
        store.unpin(page)
    store.remove(NAMES[0])
    with pytest.raises(ContractError, match="gone"):
        store.pin(page)


def test_the_check_finds_a_slot_that_is_used_twice(copier: Copier) -> None:
    store = HostStore(copier, PAGE, **slabs(1, 3))
    put(store, 0, 1)
    store._pages[NAMES[0]].slot = store._pages[NAMES[1]].slot
    with pytest.raises(IntegrityError, match="slot"):
        store.check_integrity()
