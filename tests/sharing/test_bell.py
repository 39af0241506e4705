"""One tenant wakes another that waits, whatever becomes of either."""

import os
import threading
from pathlib import Path

import pytest

from kvrt.errors import StoreError
from kvrt.sharing.bell import Bell, ring
from kvrt.sharing.tenant import NotLeased

from .conftest import Join

LONG_S = 60.0


def test_a_bell_that_is_rung_before_anybody_listens_is_heard(ledger: Path) -> None:
    ledger.parent.mkdir()
    bell, heard = Bell(ledger, 3), threading.Event()
    ring(ledger, 3)
    bell.listen(heard.set)
    assert heard.wait(LONG_S)
    bell.close()
    bell.close()


def test_nobody_waits_for_one_who_is_gone_or_does_not_listen(ledger: Path) -> None:
    ledger.parent.mkdir()
    ring(ledger, 0)  # there never was one
    deaf = Bell(ledger, 0)
    for _ in range(70_000):  # a FIFO holds 64 KiB
        ring(ledger, 0)
    deaf.close()
    ring(ledger, 0)
    heard = threading.Event()
    heir = Bell(ledger, 0)
    heir.listen(heard.set)
    ring(ledger, 0)
    assert heard.wait(LONG_S)
    heir.close()


def test_what_is_no_fifo_is_refused_and_left_alone(ledger: Path) -> None:
    there = ledger.parent / ".bells" / f"{ledger.name}.0"
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match="no FIFO"):
        Bell(ledger, 0)
    assert there.read_text() == "mine"
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_those_are_woken_who_wait_and_have_what_another_is_due(join: Join) -> None:
    rung: list[str] = []
    told = threading.Event()
    greedy, awake, modest, late = (join(name) for name in ("greedy", "awake", "modest", "late"))
    for tenant, name in ((greedy, "greedy"), (awake, "awake"), (modest, "modest")):
        tenant.listen(lambda name=name: (rung.append(name), told.set()))  # type: ignore[misc]
    greedy.take(60)
    greedy.wants(0)
    awake.take(20)
    awake.wants(0)
    modest.take(10)
    greedy.waits(True)
    modest.waits(True)
    with pytest.raises(NotLeased):
        late.take(30)
    assert told.wait(LONG_S)
    late.allowance()  # it was rung for already
    told.clear()
    greedy.waits(True)
    late.allowance()
    assert told.wait(LONG_S)
    assert rung == ["greedy", "greedy"]
