"""A process that shares dies at any line: what it held is free, and nothing breaks."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import kvrt.sharing.bell
import kvrt.sharing.ledger
import kvrt.sharing.orders
import kvrt.sharing.tenant
from kvrt.errors import KvrtError
from kvrt.sharing.orders import Verb, post
from kvrt.sharing.tenant import NotLeased, Tenant, Terms, tenants_of

from .conftest import TOTAL, Join

MODULES = {
    module.__file__
    for module in (kvrt.sharing.bell, kvrt.sharing.ledger, kvrt.sharing.orders, kvrt.sharing.tenant)
}
MANY = 5000
"""Lines, more than any life here has."""


def life(ledger: Path) -> None:
    """Comes, takes, is refused, gives, listens, asks another, and leaves."""
    tenant = Tenant(ledger, TOTAL, Terms("mortal", 10))
    tenant.listen(lambda: None)
    tenant.take(40)
    tenant.wants(80)
    try:
        tenant.take(60)
    except NotLeased:
        tenant.allowance()
    tenant.waits(True)
    tenant.give(20)
    post(ledger, "heir", Verb.GUARANTEE, 5)
    tenant.close()


def lived_until(do: Callable[[], None], at: int) -> int:
    """Run it in a child that dies, as by kill -9, before line number `at` of the modules.

    Returns:
        0: it lived to its end; 1: it died; 3: it was refused something.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in MODULES:
            return None
        if event == "line":
            count += 1
            if count == at:
                os._exit(1)
        return trace

    try:
        sys.settrace(trace)
        do()
    except KvrtError:
        os._exit(3)
    finally:
        sys.settrace(None)
        os._exit(0)


def lives_and_deaths(ledger: Path, heir: Tenant, step: int) -> int:
    """Let one live until each `step`-th line; all that it held is the heir's each time.

    Returns:
        How many lines a whole life has, about.
    """
    at, ended = 1, 1
    while ended:
        assert at < MANY
        ended = lived_until(lambda: life(ledger), at)
        assert ended in (0, 1), f"line {at}: it was refused what was free"
        heir.wants(TOTAL)
        assert heir.allowance() == TOTAL, f"line {at}"
        heir.take(TOTAL - heir.held)
        heir.give(TOTAL)
        heir.wants(0)
        total, rows = tenants_of(ledger)
        assert (total, [row.name for row in rows]) == (TOTAL, ["heir"])
        at += step
    return at


@pytest.mark.promise("P8")
def test_whatever_line_it_dies_at_all_that_it_had_is_free_at_once(ledger: Path, join: Join) -> None:
    assert lives_and_deaths(ledger, join("heir"), step=29) > 200, "else this shows little"


@pytest.mark.extra
def test_every_line_in_turn(ledger: Path, join: Join) -> None:
    lives_and_deaths(ledger, join("heir"), step=1)
