"""The store on disk: many threads and one dictionary."""

import hashlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kvrt.errors import ContractError, StoreError
from kvrt.kv.tiers import names as naming
from kvrt.kv.tiers.blockfile import BLOCK, BlockFile, Bytes
from kvrt.kv.tiers.disk import DiskStore, PageTicket
from kvrt.kv.tiers.files import DATA, INDEX
from kvrt.kv.tiers.host import HostStore
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.spi import Copier

from .pages import FORM, ODD, PAGE_BYTES, ROOT, blank, body, cached, names, opened

NAMES = names(40)


@pytest.fixture
def store(tmp_path: Path) -> DiskStore:
    return DiskStore(PageFile.open(tmp_path, FORM))


def test_a_page_comes_back_as_it_was_stored(store: DiskStore) -> None:
    page = torch.from_numpy(body(NAMES[0]).copy())
    stored = store.store(NAMES[0], page)
    assert stored.wait(10)
    assert stored.done()
    assert stored.ok
    assert NAMES[0] in store
    into = torch.empty_like(page)
    found = store.fetch(NAMES[0], into)
    assert found.wait(10)
    assert found.ok
    assert torch.equal(into, page)
    assert store.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_tensors_of_any_type_and_shape_are_bytes(store: DiskStore, dtype: torch.dtype) -> None:
    page = torch.from_numpy(body(NAMES[0]).copy()).view(dtype).view(2, -1, 4)
    assert store.store(NAMES[0], page).wait(10)
    into = torch.zeros_like(page)
    assert store.fetch(NAMES[0], into).wait(10)
    assert torch.equal(into.view(torch.uint8), page.view(torch.uint8))
    store.close()


@pytest.mark.parametrize(
    "data",
    [
        np.zeros(PAGE_BYTES - 1, np.uint8),
        np.zeros(2 * PAGE_BYTES, np.uint8)[::2],
        torch.zeros(PAGE_BYTES),
        torch.zeros(2 * PAGE_BYTES, dtype=torch.uint8)[::2],
        torch.zeros(PAGE_BYTES, dtype=torch.uint8, device="meta"),
    ],
    ids=["short", "strided", "long", "strided tensor", "not on the host"],
)
def test_what_is_no_page_is_refused(store: DiskStore, data: Bytes) -> None:
    with pytest.raises(ContractError, match=r"page|contiguous"):
        store.store(NAMES[0], data)
    with pytest.raises(ContractError, match=r"page|contiguous"):
        store.fetch(NAMES[0], data)
    store.close()


def test_a_page_that_is_not_there_is_missed_at_once(store: DiskStore) -> None:
    ticket = store.fetch(NAMES[0], blank())
    assert ticket.done()
    assert not ticket.ok
    assert store.stats().missed == 1
    store.close()


def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    store = DiskStore(PageFile.open(tmp_path, FORM))
    for name in NAMES:
        store.store(name, body(name))
    assert store.close(), "close finishes what is queued"
    store = DiskStore(PageFile.open(tmp_path, FORM))
    assert len(store) == len(NAMES)
    tickets = [(name, into, store.fetch(name, into)) for name in NAMES for into in [blank()]]
    for name, into, ticket in tickets:
        assert ticket.wait(10)
        assert ticket.ok
        assert (into == body(name)).all()
    store.close()


class Gate(BlockFile):
    """A file whose bodies wait for the test."""

    open = threading.Event()

    def write(self, data: Bytes, at: int) -> None:
        if len(data) == PAGE_BYTES:
            assert self.open.wait(10)
        super().write(data, at)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    event = threading.Event()
    monkeypatch.setattr(Gate, "open", event)
    return event


def test_a_page_stored_twice_at_once_is_written_once(tmp_path: Path, gate: threading.Event) -> None:
    store = DiskStore(PageFile.open(tmp_path, FORM, open_file=Gate))
    first = store.store(NAMES[0], body(NAMES[0]))
    assert store.store(NAMES[0], body(NAMES[0])) is first
    gate.set()
    assert first.wait(10)
    assert store.stats().stored == 1
    store.close()


def test_a_page_removed_while_it_is_written_does_not_appear(
    tmp_path: Path, gate: threading.Event
) -> None:
    store = DiskStore(PageFile.open(tmp_path, FORM, open_file=Gate), threads=1)
    begun = store.store(NAMES[0], body(NAMES[0]))
    while store.stats().queued:
        time.sleep(0.001)
    queued = store.store(NAMES[1], body(NAMES[1]))
    for name in NAMES[:2]:
        assert not store.remove(name)
    assert queued.done()
    gate.set()
    assert begun.wait(10)
    assert not begun.ok
    assert not queued.ok
    assert not store.names()
    store.close()
    with opened(tmp_path) as file:
        assert not file.names()


def test_fetches_come_before_stores(tmp_path: Path, gate: threading.Event) -> None:
    with opened(tmp_path) as file:
        file.write(NAMES[0], body(NAMES[0]))
    store = DiskStore(PageFile.open(tmp_path, FORM, open_file=Gate), threads=1)
    order: list[StoredName] = []

    class Noted(PageTicket):
        def run(self) -> None:
            super().run()
            order.append(self.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvrt.kv.tiers.disk.PageTicket", Noted)
        store.store(NAMES[1], body(NAMES[1]))
        while store.stats().queued:  # the one thread has begun
            time.sleep(0.001)
        for name in NAMES[2:4]:
            store.store(name, body(name))
        store.fetch(NAMES[0], blank())
    gate.set()
    assert store.close()
    assert order == [NAMES[1], NAMES[0], NAMES[2], NAMES[3]]


def test_a_close_that_must_not_take_long_drops_the_rest(
    tmp_path: Path, gate: threading.Event
) -> None:
    store = DiskStore(PageFile.open(tmp_path, FORM, open_file=Gate), threads=1)
    begun, queued = (store.store(name, body(name)) for name in NAMES[:2])
    while store.stats().queued > 1:
        time.sleep(0.001)
    assert not store.close(timeout=0.05)
    assert not begun.done(), "its bytes are still being read"
    assert queued.done()
    assert not queued.ok
    late = store.store(NAMES[2], body(NAMES[2]))
    assert late.done()
    assert not late.ok
    gate.set()
    assert begun.wait(10)
    assert store.close()


def test_what_is_known_to_hang_is_not_waited_for_at_the_end(
    tmp_path: Path,
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = DiskStore(PageFile.open(tmp_path, FORM, open_file=Gate), threads=1)
    begun, queued = (store.store(name, body(name)) for name in NAMES[:2])
    while store.stats().queued > 1:
        time.sleep(0.001)
    monkeypatch.setattr("kvrt.kv.tiers.disk.PATIENCE_S", 0.01)
    time.sleep(0.02)
    start = time.monotonic()
    assert not store.close(timeout=60)
    assert time.monotonic() - start < 30
    assert "it has not answered for 0.01 s" in caplog.text
    assert queued.done()
    assert not begun.done()
    gate.set()
    assert begun.wait(10)
    assert store.close()


def test_what_waited_behind_a_call_that_hangs_is_dropped_counted_and_may_come_again(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskStore(PageFile.open(tmp_path, FORM, open_file=Gate), threads=1)
    begun, *queued = (store.store(name, body(name)) for name in NAMES[:3])
    while store.stats().queued > 2:
        time.sleep(0.001)
    monkeypatch.setattr("kvrt.kv.tiers.disk.PATIENCE_S", 0.01)
    time.sleep(0.02)
    assert store.hangs()
    assert [ticket.ok for ticket in queued] == [False, False]
    assert store.stats().dropped == 2
    assert not any(name in store for name in NAMES[1:3]), "nobody is told that they are coming"
    gate.set()
    assert begun.wait(10)
    again = store.store(NAMES[1], body(NAMES[1]))
    assert again.wait(10)
    assert NAMES[1] in store
    assert store.close()


def test_a_page_that_is_damaged_is_missed_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, open_file=cached) as file:
        for name in NAMES[:2]:
            file.write(name, body(name))
    data = bytearray((tmp_path / DATA).read_bytes())
    (tmp_path / DATA).write_bytes(bytes(byte ^ 1 for byte in data))
    store = DiskStore(PageFile.open(tmp_path, FORM))
    for name in NAMES[:2]:
        ticket = store.fetch(name, blank())
        assert ticket.wait(10)
        assert not ticket.ok
    assert store.stats().damaged == 2
    assert store.close()
    (record,) = caplog.records
    assert f"cannot use a KV page in {tmp_path}: it is damaged." in record.getMessage()


def test_a_store_of_a_file_that_is_only_read_drops_pages(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        file.write(NAMES[0], body(NAMES[0]))
    store = DiskStore(PageFile.open(tmp_path, FORM, writable=False))
    ticket = store.store(NAMES[1], body(NAMES[1]))
    assert ticket.wait(10)
    assert not ticket.ok
    assert store.fetch(NAMES[0], blank()).wait(10)
    assert store.stats().found == store.stats().dropped == 1
    store.close()


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("compress", [None, 1], ids=["plain", "zstd"])
def test_any_load_equals_a_dictionary(tmp_path: Path, threads: int, compress: int | None) -> None:
    """Tickets overlap in any way; whatever is found is right, and the counts add up."""
    rng = random.Random(threads)
    budget = 2 * BLOCK + 12 * (ODD.page_stride + 2 * ODD.record_bytes)
    found = 0
    for _ in range(4):
        file = PageFile.open(tmp_path, ODD, budget=budget, compress=compress, open_file=cached)
        store = DiskStore(file, threads=threads)
        tickets: list[tuple[Bytes | None, PageTicket]] = []
        fetches = 0

        def check(into: Bytes | None, ticket: PageTicket) -> None:
            assert ticket.wait(10)
            if into is not None and ticket.ok:
                assert (into == body(ticket.name, ODD)).all()

        for _ in range(400):
            name = rng.choice(NAMES)
            kind = rng.choice(["store", "store", "fetch", "fetch", "remove", "wait", "wait"])
            if kind == "store":
                tickets.append((None, store.store(name, body(name, ODD))))
            elif kind == "fetch":
                fetches += 1
                into = blank(ODD)
                tickets.append((into, store.fetch(name, into)))
            elif kind == "remove":
                store.remove(name)
                assert name not in store
            elif tickets:
                check(*tickets.pop(rng.randrange(len(tickets))))
        for into_or_none, ticket in tickets:
            check(into_or_none, ticket)
        stats = store.stats()
        assert stats.found + stats.missed == fetches
        assert not stats.damaged + stats.read_errors + stats.write_errors
        found += stats.found
        assert store.close()
        file.check_integrity()
        assert file.held_bytes <= budget
    assert found > 50


@pytest.mark.promise("P31")
def test_pages_whose_keys_collide_are_never_mistaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copier: Copier
) -> None:
    """With keys of 8 bits, 600 names share 256 keys."""

    def short(parent: bytes, tokens: tuple[int, ...], mark: bytes) -> bytes:
        plain: Callable[..., bytes] = real
        return hashlib.sha256(plain(parent, tokens, mark)).digest()[:1] + bytes(31)

    real = naming.page_key
    monkeypatch.setattr(naming, "page_key", short)
    rng = random.Random(0)
    many = [
        StoredName(name)
        for _ in range(200)
        for name in naming.chain(ROOT, [rng.randrange(9000) for _ in range(12)], 4)
    ]
    assert len({name.page.key for name in many}) <= 256 < 500 < len(set(many))
    stored = many[::2]
    host = HostStore(copier, [PAGE_BYTES], 1 << 24)
    disk = DiskStore(PageFile.open(tmp_path, FORM, open_file=cached))
    for name in stored:
        disk.store(name, body(name))
        slot = host.reserve(name)
        if slot is not None:
            slot.data.copy_(torch.from_numpy(body(name).copy()))
            host.commit(slot)
    assert disk.close()
    disk = DiskStore(PageFile.open(tmp_path, FORM, open_file=cached))
    for name in many:
        into = blank()
        ticket = disk.fetch(name, into)
        assert ticket.wait(10)
        page = host.find(name)
        assert ticket.ok == (page is not None) == (name in set(stored))
        if page is not None:
            assert (into == body(name)).all()
            assert (page.data.numpy() == body(name)).all()
    disk.close()


def test_what_another_process_adds_is_found_by_looking_again(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        for name in NAMES[:3]:
            writer.write(name, body(name))
        store = DiskStore(PageFile.open(tmp_path, FORM, writable=False))
        assert store.is_at(tmp_path)
        for name in NAMES[3:20]:
            writer.write(name, body(name))
        writer.remove(NAMES[0])
        assert len(store) == 3
        store.refresh()
        assert set(store.names()) == set(NAMES[1:20])
        for name in NAMES[1:20]:
            into = blank()
            ticket = store.fetch(name, into)
            assert ticket.wait(10)
            assert ticket.ok
            assert (into == body(name)).all()
    os.truncate(tmp_path / INDEX, 100)
    with pytest.raises(StoreError, match="cut off"):
        store.refresh()
    assert store.close()


def test_files_that_were_replaced_are_other_files(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as writer:
        writer.write(NAMES[0], body(NAMES[0]))
    store = DiskStore(PageFile.open(tmp_path / "one", FORM, writable=False))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert store.is_at(tmp_path / "one")
    assert not store.is_at(tmp_path / "two")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert store.is_at(tmp_path / "link")
    shutil.rmtree(tmp_path / "one")
    assert not store.is_at(tmp_path / "one")
    (tmp_path / "two").rename(tmp_path / "one")
    assert not store.is_at(tmp_path / "one")
    assert store.close()


def test_threads_come_with_work_and_go_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads() -> int:
        return sum(thread.name == "kvrt-disk" for thread in threading.enumerate())

    monkeypatch.setattr("kvrt.kv.tiers.workers.IDLE_S", 0.05)
    before = threads()
    store = DiskStore(PageFile.open(tmp_path, FORM), threads=4)
    assert threads() == before
    for turn in range(3):
        tickets = [store.store(name, body(name)) for name in NAMES[turn * 10 : turn * 10 + 10]]
        assert threads() <= before + 4
        assert all(ticket.wait(10) and ticket.ok for ticket in tickets)
        end = time.monotonic() + 20
        while threads() > before:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert store.close()


def test_where_no_thread_can_be_had_pages_are_dropped_and_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as file:
        file.write(NAMES[0], body(NAMES[0]))

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = DiskStore(PageFile.open(tmp_path, FORM))
    with monkeypatch.context() as none_left:
        none_left.setattr(threading.Thread, "start", refuse)
        for ticket in (store.store(NAMES[1], body(NAMES[1])), store.fetch(NAMES[0], blank())):
            assert ticket.done()
            assert not ticket.ok
    assert (store.stats().dropped, store.stats().missed) == (1, 1)
    for ticket in (store.store(NAMES[1], body(NAMES[1])), store.fetch(NAMES[0], blank())):
        assert ticket.wait(10)
        assert ticket.ok
    assert store.close()
