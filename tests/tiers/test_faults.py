"""Whichever call of the file system fails, pages are lost and nothing else."""

import errno
import logging
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvrt.errors import StoreError
from kvrt.kv.tiers import space
from kvrt.kv.tiers.blockfile import BLOCK, BlockFile, Bytes
from kvrt.kv.tiers.disk import FAILURES, DiskStore
from kvrt.kv.tiers.pagefile import PageFile

from .pages import FORM, Faults, blank, body, cached, names, opened, read

NAMES = names(8)
BUDGET = 2 * BLOCK + 4 * (FORM.page_stride + FORM.record_bytes)
ERRORS = [errno.EIO, errno.ENOSPC, errno.EROFS]
FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
"""The disk, the user's quota of it, and what one file may have of it."""


def change(store: DiskStore) -> None:
    """All a store does, one thing after the other. What is found is right."""
    for name in NAMES[2:6]:
        store.store(name, body(name)).wait()
    for name in NAMES:
        into = blank()
        ticket = store.fetch(name, into)
        ticket.wait()
        assert not ticket.ok or (into == body(name)).all()
    store.remove(NAMES[4])
    for name in NAMES[5:]:
        ticket = store.store(name, body(name))
        ticket.wait()
        assert ticket.ok == (name in store)


@pytest.mark.promise("P22")
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("how", ["once", "torn", "lasting"])
def test_whichever_call_fails_what_is_found_is_right(
    tmp_path: Path, error: int, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    failed = 0
    for at in range(200):
        folder = tmp_path / str(at)
        with opened(folder, budget=BUDGET) as file:
            for name in NAMES[:2]:
                file.write(name, body(name))
        faults = Faults(at, error, torn=how == "torn", lasting=how == "lasting")
        caplog.clear()
        try:
            file = PageFile.open(folder, FORM, budget=BUDGET, open_file=faults)
        except StoreError:
            pass
        else:
            store = DiskStore(file, threads=1)
            change(store)
            assert store.close()
            file.check_integrity()
            warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
            assert len(warnings) <= 1
            assert all(str(folder) in r.getMessage() for r in warnings)
        failed += bool(faults.failed)
        with opened(folder, budget=BUDGET) as file:  # the fault is gone
            assert all(read(file, name) for name in file.names())
            for name in NAMES:
                assert file.write(name, body(name))
                assert read(file, name)
        if not faults.failed:
            break
    assert 20 < failed == at


@pytest.mark.promise("P22")
def test_a_disk_that_keeps_failing_is_left_alone_for_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults()
    file = PageFile.open(tmp_path, FORM, open_file=faults)
    store = DiskStore(file, threads=1, retry_after=0.2, warn_every=0.3)
    assert store.store(NAMES[0], body(NAMES[0])).wait()
    faults.at, faults.lasting = faults.calls, True
    for name in NAMES[1:]:
        ticket = store.store(name, body(name))
        ticket.wait()
        assert not ticket.ok
    stats = store.stats()
    assert stats.paused
    assert stats.write_errors == FAILURES
    assert stats.dropped == len(NAMES) - 1
    assert NAMES[0] in store
    faults.at = None
    time.sleep(0.2)
    ticket = store.store(NAMES[1], body(NAMES[1]))
    ticket.wait()
    assert ticket.ok, "the disk works again, and the store found out"
    assert not store.stats().paused
    assert len(caplog.records) == 1
    store.close()


@pytest.mark.promise("P22")
def test_a_page_that_cannot_be_read_is_missed_and_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults()
    store = DiskStore(PageFile.open(tmp_path, FORM, open_file=faults), threads=1)
    for name in NAMES:
        store.store(name, body(name)).wait()
    faults.at, faults.lasting = faults.calls, True
    for name in NAMES:
        ticket = store.fetch(name, blank())
        assert ticket.wait()
        assert not ticket.ok
        assert name not in store
    stats = store.stats()
    assert stats.read_errors == stats.missed == len(NAMES)
    assert len(caplog.records) == 1
    assert "cannot read a KV page" in caplog.text
    store.close()


@pytest.mark.promise("P22")
def test_on_a_full_disk_older_pages_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself refuses to make the file longer, as on a full disk."""
    code = f"""
import sys
sys.path.insert(0, ".")
from pathlib import Path
from tests.tiers.test_faults import on_a_full_disk
on_a_full_disk(Path({str(tmp_path)!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with opened(tmp_path) as file:
        assert file.names() == NAMES[-3:]
        assert all(read(file, name) for name in NAMES[-3:])


def on_a_full_disk(folder: Path) -> None:
    space.STEP = 4 * FORM.page_stride
    limit = 3 * FORM.page_stride + 100  # bytes; the index needs less
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store = DiskStore(PageFile.open(folder, FORM), threads=1)
    for name in NAMES:
        ticket = store.store(name, body(name))
        ticket.wait()
        assert ticket.ok
    assert store.stats().evicted == len(NAMES) - 3
    assert not store.stats().write_errors
    assert store.close()


@pytest.mark.promise("P22")
@pytest.mark.parametrize("full", FULL, ids=errno.errorcode.get)
def test_a_full_disk_is_asked_again_later(
    full: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, free, asked = [0.0], [4], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Filling(BlockFile):
        def allocate(self, start: int, end: int) -> None:
            asked.append(end)
            if end > free[0] * FORM.page_stride:
                raise OSError(full, os.strerror(full))
            super().allocate(start, end)

    with opened(tmp_path, open_file=Filling) as file:
        for name in NAMES[:5]:
            assert file.write(name, body(name))
        assert file.names() == NAMES[1:5]
        free[0] = 100
        asked.clear()
        now[0] += 0.9 * space.FULL_FOR
        assert file.write(NAMES[5], body(NAMES[5]))
        assert file.names() == NAMES[2:6]
        assert not asked, "not for every page that is written meanwhile"
        now[0] += 0.2 * space.FULL_FOR
        assert file.write(NAMES[0], body(NAMES[0]))
        assert file.names() == [*NAMES[2:6], NAMES[0]]


@pytest.mark.promise("P22")
def test_nothing_fits_on_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    faults = Faults(error=errno.ENOSPC)
    file = PageFile.open(tmp_path, FORM, open_file=faults)
    faults.at, faults.lasting = faults.calls, True
    with pytest.raises(OSError, match="No space left"):
        file.write(NAMES[0], body(NAMES[0]))
    file.close()


@pytest.mark.promise("P22")
def test_nobody_waits_for_a_slow_disk(tmp_path: Path) -> None:
    with opened(tmp_path, open_file=cached) as file:
        for name in NAMES[:2]:
            file.write(name, body(name))
    slow = 0.3

    class Slow(BlockFile):
        def read(self, into: Bytes, at: int) -> None:
            time.sleep(slow)
            super().read(into, at)

        def write(self, data: Bytes, at: int) -> None:
            time.sleep(slow)
            super().write(data, at)

    file = PageFile.open(tmp_path, FORM, open_file=Slow)
    store = DiskStore(file, threads=2)
    start = time.monotonic()
    stores = [store.store(name, body(name)) for name in NAMES[2:]]
    fetches = [store.fetch(name, blank()) for name in NAMES[:2]]
    assert not any(ticket.done() or ticket.wait(0) for ticket in stores + fetches)
    assert NAMES[0] in store
    assert NAMES[2] not in store
    assert store.remove(NAMES[1])
    assert store.stats().queued > 0
    assert len(store.names()) == 1
    assert time.monotonic() - start < slow
    assert all(ticket.wait(10) for ticket in stores + fetches)
    assert all(ticket.ok for ticket in stores)
    assert fetches[0].ok
    assert store.close()
