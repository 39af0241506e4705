"""Pages that several machines share: what one sends, the others get, or nothing."""

import random
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kvrt.kv.tiers.files import DATA
from kvrt.kv.tiers.folder import own_folder
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.names import StoredName, chain, root_key, tenant_of
from kvrt.kv.tiers.remote.frames import Scope
from kvrt.kv.tiers.remote.shelves import FolderShelves, MemoryShelves
from kvrt.net.address import Address

from .elsewhere import connected, get, put, remote, served, until
from .pages import FINGERPRINT, PAGE_BYTES, PAGE_SIZE, SEVERAL, blank, names

NAMES = names(12)


def test_what_one_sends_the_other_gets() -> None:
    several = names(4, groups=3)
    with served() as address, remote(address, SEVERAL) as one, remote(address, SEVERAL) as other:
        assert connected(one)
        assert connected(other)
        assert all(put(one, name, SEVERAL) for name in several)
        assert until(lambda: all(name in other for name in several))
        assert all(get(other, name, SEVERAL) for name in several)
        stats = other.stats()
        assert (stats.pages, stats.found, stats.missed) == (12, 12, 0)


def test_who_comes_later_is_told_of_all_that_is_there() -> None:
    with served() as address, remote(address) as one:
        assert connected(one)
        assert all(put(one, name) for name in NAMES)
        with remote(address) as other:
            assert until(lambda: other.stats().pages == len(NAMES))
            assert all(get(other, name) for name in NAMES)


def test_a_page_that_makes_room_is_told_to_be_gone() -> None:
    with served(MemoryShelves(3 * PAGE_BYTES)) as address, remote(address) as one:
        assert connected(one)
        assert all(put(one, name) for name in NAMES)
        assert until(lambda: one.stats().pages == 3)
        assert [name in one for name in NAMES] == [False] * 9 + [True] * 3
        assert not get(one, NAMES[0])


def test_a_folder_of_pages_outlives_the_store(tmp_path: Path) -> None:
    for count in (6, 12):
        shelves = FolderShelves(tmp_path, 64 << 20)
        with served(shelves) as address, remote(address) as one:
            assert connected(one)
            assert until(lambda: one.stats().pages == (0 if count == 6 else 6))  # noqa: B023
            assert all(put(one, name) for name in NAMES[:count])
        shelves.close()
    data = own_folder(tmp_path, FINGERPRINT) / DATA
    with open(data, "r+b") as file:
        file.seek(PAGE_BYTES - 10)
        file.write(b"damage")
    shelves = FolderShelves(tmp_path, 64 << 20)
    with served(shelves) as address, remote(address) as one:
        assert until(lambda: one.stats().pages == 12)
        assert sum(get(one, name) for name in NAMES) == 11
        assert until(lambda: one.stats().pages == 11)
    shelves.close()


def test_models_never_see_pages_of_each_other() -> None:
    other_model = PageFormat(bytes(32), (PAGE_BYTES,), PAGE_SIZE)
    with served() as address, remote(address) as one, remote(address, other_model) as other:
        assert connected(one)
        assert connected(other)
        assert put(one, NAMES[0])
        time.sleep(0.1)
        assert NAMES[0] not in other
        assert not other.fetch(NAMES[0], blank()).ok


def test_what_is_forgotten_is_gone_for_all() -> None:
    tokens = list(range(4 * PAGE_SIZE))
    roots = [root_key(FINGERPRINT, salt) for salt in "ab"]
    mine, others = ([StoredName(n) for n in chain(root, tokens, PAGE_SIZE)] for root in roots)
    with served() as address, remote(address) as one, remote(address) as two:
        assert connected(one)
        assert connected(two)
        for name in (*mine, *others):
            assert put(one, name)
        assert until(lambda: two.stats().pages == 8)
        one.forget(Scope.FROM, tenant_of(roots[0]), mine[2].page.key)
        assert until(lambda: two.stats().pages == 6)
        assert [name in two for name in mine] == [True, True, False, False]
        one.remove(mine[0])
        assert until(lambda: two.stats().pages == 5)
        one.forget(Scope.FROM, tenant_of(roots[0]), mine[3].page.key)  # and what may come after it
        assert until(lambda: two.stats().pages == 4)
        assert all(name in two for name in others)
        one.forget(Scope.TENANT, tenant_of(roots[1]))
        assert until(lambda: two.stats().pages == 0)
        assert put(one, mine[0])
        two.forget(Scope.ALL)
        assert until(lambda: mine[0] not in one)


def test_a_store_that_comes_back_is_used_again() -> None:
    shelves = MemoryShelves(64 << 20)
    with served(shelves) as address:
        pass
    with remote(address) as one:
        for name in NAMES[:2]:
            assert not put(one, name)
            with served(shelves, port=address.port):
                assert connected(one)
                assert put(one, name)
                assert get(one, name)
            assert until(lambda: not one.stats().connected)
            assert name not in one
        with served(shelves, port=address.port):
            assert until(lambda: one.stats().pages == 2)


def test_nothing_waits_for_a_store_that_is_not_there() -> None:
    with remote(Address("192.0.2.1", 7707)) as one:  # an address that nobody has
        begun = time.monotonic()
        for name in NAMES:
            assert not one.store(name, blank()).ok
            assert not one.fetch(name, blank()).ok
            one.remove(name)
        assert time.monotonic() - begun < 0.5


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "remove", "forget"]),
        st.integers(0, 1),
        st.integers(0, len(NAMES) - 1),
    ),
    max_size=30,
)


@settings(max_examples=15, deadline=None)
@given(operations=OPERATIONS)
def test_any_order_of_requests_gives_what_was_sent_last_or_nothing(
    operations: list[tuple[str, int, int]],
) -> None:
    there = set[StoredName]()
    with served() as address, remote(address) as one, remote(address) as two:
        assert connected(one)
        assert connected(two)
        for what, who, which in operations:
            store, name = (one, two)[who], NAMES[which]
            match what:
                case "put":
                    assert put(store, name)
                    there.add(name)
                case "get":
                    get(store, name)
                case "remove":
                    store.remove(name)
                    there.discard(name)
                case "forget":
                    store.forget(Scope.ALL)
                    there.clear()
            for each in (one, two):
                assert until(lambda e=each: {n for n in NAMES if n in e} == there)  # type: ignore[misc]
        assert all(get(two, name) for name in there)


def test_pages_from_many_at_once_are_all_kept() -> None:
    many = names(120, seed=7)
    random.Random(7).shuffle(many)
    with served() as address, remote(address) as one, remote(address) as two:
        assert connected(one)
        assert connected(two)
        halves = [(one, many[:60]), (two, many[60:])]
        tickets = [store.store(n, blank()) for store, half in halves for n in half]
        assert all(ticket.wait(10) and ticket.ok for ticket in tickets)
        assert until(lambda: one.stats().pages == two.stats().pages == 120)
        intos = [blank() for _ in many]
        fetched = [two.fetch(n, into) for n, into in zip(many, intos, strict=True)]
        assert all(ticket.wait(10) and ticket.ok for ticket in fetched)
