"""Pages in host memory equal a dictionary; memory is taken as needed and given back."""

import gc
import random
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

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
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.host import ALIGNMENT, HostPage, HostStore
from kvrt.registry import open_device
from kvrt.spi import Copier

from .pages import FINGERPRINT, PAGE_SIZE, body, names

PAGE = 5000
STRIDE = 2 * ALIGNMENT
NAMES = names(16)
SIZES = {
    "one group": [PAGE],
    "a small one": [PAGE, 3 * STRIDE],
    "nearly as large": [3 * STRIDE, PAGE, 5000 + STRIDE],
}
"""Of pages of each group. In the last one, frames are larger than any page, or much is lost."""


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


def slabs(count: int, frames: int, frame: int = STRIDE) -> dict[str, int]:
    """A budget of so many slabs of so many frames."""
    slab = frames * frame + ALIGNMENT
    return {"budget": count * slab, "slab_bytes": slab}


def right_body(page: HostPage) -> torch.Tensor:
    form = PageFormat(FINGERPRINT, (30_000,) * (page.name.group + 1), PAGE_SIZE)
    return torch.from_numpy(body(page.name, form)[-len(page.data) :].copy())


def fill(page: HostPage) -> None:
    page.data.copy_(right_body(page))


def right(page: HostPage) -> bool:
    return torch.equal(page.data, right_body(page))


def put(store: HostStore, *which: int) -> None:
    for n in which:
        page = store.reserve(NAMES[n])
        assert page is not None
        fill(page)
        store.commit(page)


class HostMachine(RuleBasedStateMachine):
    """The model: the pages that are found, the oldest first; those that are written; pins."""

    @initialize(count=st.integers(1, 3), frames=st.integers(1, 4), kind=st.sampled_from([*SIZES]))
    def begin(self, count: int, frames: int, kind: str) -> None:
        self.copier = Counted(open_device("null").copier)
        strides = [-(-size // ALIGNMENT) * ALIGNMENT for size in SIZES[kind]]
        self.frame = max(strides) * (2 if kind == "nearly as large" else 1)
        budget = slabs(count, frames, self.frame)
        self.store = HostStore(self.copier, SIZES[kind], **budget)  # type: ignore[arg-type]
        self.frames = count * frames
        assert self.store.capacity <= budget["budget"]
        self.in_frame = [self.frame // stride for stride in strides]
        rng = random.Random(kind)
        self.names = [name._replace(group=rng.randrange(len(strides))) for name in NAMES]
        self.there: dict[int, HostPage] = {}
        self.writing: list[HostPage] = []
        self.pins: list[HostPage] = []

    def framed(self) -> Counter[tuple[int, int]]:
        """The frames in use, each with its group, and how many pages are in it."""
        pages = {id(page): page for page in (*self.there.values(), *self.writing, *self.pins)}
        return Counter((page.frame.number, page.name.group) for page in pages.values())

    def going(self, group: int) -> list[int]:
        """What makes room for a page of a group: the oldest that can, with all in its frame."""
        pinned = {page.frame.number for page in (*self.pins, *self.writing)}
        for n, page in self.there.items():
            if page.name.group == group and page not in self.pins:
                return [n]
            if page.name.group != group and page.frame.number not in pinned:
                return [m for m, other in self.there.items() if other.frame is page.frame]
        return []

    @rule(n=st.integers(0, len(NAMES) - 1))
    def put(self, n: int) -> None:
        before = len(self.writing)
        self.reserve(n)
        if len(self.writing) > before:
            self.end(self.writing.pop(), done=True)

    @rule(n=st.integers(0, len(NAMES) - 1))
    def reserve(self, n: int) -> None:
        name, framed = self.names[n], self.framed()
        full = len(framed) == self.frames and not any(
            group == name.group and count < self.in_frame[group]
            for (_, group), count in framed.items()
        )
        going = self.going(name.group) if full else []
        seen = self.store.in_the_way(name.group)
        assert (seen is None) == (full and not going)
        assert {page.name for page in seen or ()} == {self.names[m] for m in going}
        page = self.store.reserve(name)
        if n in self.there or (full and not going):
            assert page is None
            return
        assert page is not None
        for m in going:
            del self.there[m]
        assert page.data.shape == (self.store.sizes[name.group],)
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
            self.there.setdefault(self.names.index(page.name), page)
        else:
            self.store.unpin(page)

    @rule(n=st.integers(0, len(NAMES) - 1))
    def find(self, n: int) -> None:
        page = self.store.find(self.names[n])
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
        assert self.store.remove(self.names[n])
        assert not self.store.remove(self.names[n])
        del self.there[n]

    @rule(slabs=st.integers(0, 3))
    def give_back(self, slabs: int) -> None:
        pinned = {page.frame.number for page in (*self.pins, *self.writing)}
        before = self.store.stats().held_bytes
        given = self.store.give_back(slabs * before // 3)
        assert self.store.stats().held_bytes == before - given
        assert given >= slabs * before // 3 or pinned
        left = {*self.store.names()}
        self.there = {n: page for n, page in self.there.items() if self.names[n] in left}
        if not slabs:
            assert not given

    @invariant()
    def equal(self) -> None:
        self.store.check_integrity()
        assert self.store.names() == [self.names[n] for n in self.there]
        assert all(right(page) for page in [*self.there.values(), *self.writing, *self.pins])
        stats = self.store.stats()
        assert stats.pages == len(self.store) == len(self.there)
        assert stats.used_bytes == len(self.framed()) * self.frame
        assert stats.held_bytes <= stats.budget_bytes
        # Slots that the test still has hold their slab, too.
        assert self.copier.live >= stats.held_bytes
        empty = sum(not used for used in self.store._used.values())
        assert empty <= 1


def test_any_order_of_operations_equals_a_dictionary() -> None:
    run_state_machine_as_test(
        HostMachine, settings=settings(max_examples=100, stateful_step_count=40)
    )


def test_memory_is_taken_as_pages_come_and_given_back_when_they_go(copier: Copier) -> None:
    counted = Counted(copier)
    store = HostStore(counted, [PAGE], **slabs(3, 2))  # type: ignore[arg-type]
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
    store = HostStore(copier, [PAGE], **slabs(3, 2))  # type: ignore[arg-type]
    put(store, *range(6))
    for n in (2, 3, 4, 5):
        store.remove(NAMES[n])
    page = store.reserve(NAMES[6])
    assert page is not None
    assert page.frame.number == 2


def test_the_least_recently_used_page_makes_room(copier: Copier) -> None:
    store = HostStore(copier, [PAGE], **slabs(1, 3))
    put(store, 0, 1, 2)
    assert store.find(NAMES[0])
    assert [page.name for page in store.oldest()] == [NAMES[1], NAMES[2], NAMES[0]]
    put(store, 3)
    assert [n for n in range(4) if NAMES[n] in store] == [0, 2, 3]
    assert store.stats().evicted == 1


def test_a_page_is_found_only_once_it_is_written(copier: Copier) -> None:
    store = HostStore(copier, [PAGE], **slabs(1, 3))
    page = store.reserve(NAMES[0])
    assert page is not None
    assert store.find(NAMES[0]) is None
    assert NAMES[0] not in store
    store.commit(page)
    assert store.find(NAMES[0]) is page
    assert store.reserve(NAMES[0]) is None, "it is there already"


def test_of_two_copies_of_a_page_the_first_one_counts(copier: Copier) -> None:
    store = HostStore(copier, [PAGE], **slabs(1, 3))
    first, second = store.reserve(NAMES[0]), store.reserve(NAMES[0])
    assert first
    assert second
    store.commit(second)
    store.commit(first)
    assert store.find(NAMES[0]) is second
    assert store.stats().used_bytes == STRIDE


def test_one_budget_serves_pages_of_all_sizes(copier: Copier) -> None:
    """What one group took and nobody used since, another gets, down to the last frame."""
    large, small = 3 * STRIDE, PAGE
    store = HostStore(copier, [large, small], **slabs(2, 2, 3 * STRIDE))
    many = names(30, groups=2)

    def put_all(group: int, start: int, stop: int) -> None:
        for name in many[2 * start + group : 2 * stop : 2]:
            page = store.reserve(name)
            assert page
            store.commit(page)

    put_all(0, 0, 20)
    assert store.names() == many[32:40:2], "four of the large ones"
    put_all(1, 8, 20)
    assert store.names() == many[17:40:2], "or twelve of the small ones"
    put_all(0, 20, 22)
    assert store.names() == [*many[29:40:2], *many[40:44:2]], "or some of each"
    stats = store.stats()
    assert stats.held_bytes <= stats.budget_bytes == 2 * (2 * 3 * STRIDE + ALIGNMENT)


def test_where_everything_is_pinned_there_is_no_room(copier: Copier) -> None:
    store = HostStore(copier, [PAGE], **slabs(1, 1))
    page = store.reserve(NAMES[0])
    assert page is not None
    assert store.reserve(NAMES[1]) is None
    assert store.stats().refused == 1
    store.unpin(page)
    assert store.reserve(NAMES[1]) is not None


def test_pages_that_are_written_or_read_are_counted(copier: Copier) -> None:
    store = HostStore(copier, [PAGE], **slabs(1, 4))
    pages = [store.reserve(name) for name in NAMES[:3]]
    assert (store.stats().pages, store.stats().pinned) == (0, 3)
    for count, page in enumerate(pages, 1):
        assert page is not None
        store.commit(page)
        assert (store.stats().pages, store.stats().pinned) == (count, 3 - count)
    assert pages[0] is not None
    store.pin(pages[0])
    assert (store.stats().pages, store.stats().pinned) == (3, 1)
    store.remove(NAMES[0])
    assert (store.stats().pages, store.stats().pinned) == (2, 1), "it is still read"
    store.unpin(pages[0])
    assert (store.stats().pages, store.stats().pinned) == (2, 0)


def test_where_the_system_has_no_memory_older_pages_make_room(copier: Copier) -> None:
    counted = Counted(copier)
    store = HostStore(counted, [PAGE], **slabs(4, 1))  # type: ignore[arg-type]
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
    store = HostStore(copier, [PAGE], budget, slab_bytes=4 * STRIDE)
    put(store, *range(9))
    assert store.stats().evicted <= 1
    assert store.stats().held_bytes <= budget


def test_a_budget_of_less_than_a_page_is_refused(copier: Copier) -> None:
    with pytest.raises(ConfigError, match="less than one page"):
        HostStore(copier, [PAGE], PAGE)


def test_what_breaks_the_protocol_is_an_error(copier: Copier) -> None:
    store = HostStore(copier, [PAGE], **slabs(1, 3))
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


THREE = [name for name in names(2, groups=2) if name.group == 0] + names(1, groups=2)[1:]
"""Two pages that fill frames, and one that leaves room in its frame."""

BROKEN: dict[str, tuple[str, Callable[[HostStore], object]]] = {
    "a slot is free and used": ("slot", lambda store: framed(store, 2).free.append(0)),
    "a slot is lost": ("slot", lambda store: framed(store, 2).free.pop()),
    "a frame is empty": ("slot", lambda store: (
        framed(store, 2).free.append(0), framed(store, 2).pages.clear())),
    "room is forgotten": ("to have room", lambda store: store._open[1].clear()),
    "there is no such room": ("to have room", lambda store: store._open[0].add(0)),
    "a page is elsewhere": ("another's", lambda store: setattr(
        store._pages[THREE[0]], "frame", framed(store, 1))),
    "a page is of another group": ("two groups", lambda store: setattr(
        store._pages[THREE[0]], "name", THREE[2])),
    "a slot has no page": ("no page", lambda store: store._pages.pop(THREE[0])),
    "a page is found in place of another": ("no slot", lambda store: store._pages.update(
        {THREE[0]: replace(store._pages[THREE[0]])})),
    "a frame is free and used": ("used twice", lambda store: store._free.append(0)),
    "a frame is lost": ("lost", lambda store: store._free.pop()),
    "a slab counts too many frames": ("count 4 frames", lambda store: store._used.update({0: 4})),
    "a slab counts too few frames": ("count 2 frames", lambda store: store._used.update({0: 2})),
    "nobody can find a page": ("nobody can find", lambda store: store._unfound.add(
        store._pages.pop(THREE[0]))),
}  # fmt: skip
"""Of a store that holds them: what is said, and what was done to it."""


def framed(store: HostStore, which: int) -> Any:
    """The frame of one of the three."""
    return store._pages[THREE[which]].frame


@pytest.mark.parametrize("wrong", BROKEN)
def test_the_check_finds_what_is_broken(copier: Copier, wrong: str) -> None:
    store = HostStore(copier, [PAGE, STRIDE // 4], **slabs(1, 5))
    for name in THREE:
        page = store.reserve(name)
        assert page is not None
        store.commit(page)
    store.check_integrity()
    message, do_break = BROKEN[wrong]
    do_break(store)
    with pytest.raises(IntegrityError, match=message):
        store.check_integrity()
