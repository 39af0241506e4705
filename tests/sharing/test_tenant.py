"""Tenants of a ledger, several in one process: its locks are of open files, not of processes."""

import contextlib
import os
import struct
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvrt.errors import CapacityError, ConfigError, OutOfMemory, StoreError
from kvrt.sharing import ledger as ledgers
from kvrt.sharing.ledger import Ledger
from kvrt.sharing.share import sweep
from kvrt.sharing.tenant import NotLeased, Tenant, Terms, tenants_of

from .conftest import TOTAL, Join


def test_what_one_holds_another_cannot_have(join: Join) -> None:
    a, b = join("a"), join("b")
    a.take(70)
    with pytest.raises(NotLeased, match=r"30 B|holds 70"):
        b.take(31)
    b.take(30)
    assert (a.held, b.held) == (70, 30)


def test_whoever_has_too_much_is_told_what_to_give_back(join: Join) -> None:
    a, b = join("a"), join("b")
    a.take(100)
    assert a.allowance() == 100, "nobody else wants it"
    b.wants(20)
    assert a.allowance() == 80
    a.give(20)
    b.take(20)
    b.wants(100)
    assert a.allowance() == 50
    a.wants(0)
    assert a.allowance() == 0, "what is only cached is given to those who run"
    a.wants(100)
    a.give(30)
    with pytest.raises(NotLeased):
        a.take(1)  # what it has just given back is owed
    b.take(30)


def test_a_guarantee_is_there_at_once_and_a_lent_one_when_it_is_given_back(join: Join) -> None:
    a, hard, soft = join("a"), join("hard", guarantee=30), join("soft", guarantee=30, lends=True)
    assert a.allowance() == 70
    a.take(70)
    hard.take(30)
    with pytest.raises(NotLeased):
        soft.take(30)
    assert a.allowance() == 40
    a.give(30)
    soft.take(30)


def test_no_more_is_guaranteed_than_there_is(join: Join) -> None:
    join("a", guarantee=60)
    with pytest.raises(CapacityError, match=r"a \(process") as caught:
        join("b", guarantee=41)
    assert (caught.value.needed, caught.value.free) == (41, 40)
    join("b", guarantee=40)


def test_a_guarantee_given_late_is_recalled_from_those_who_hold_it(join: Join) -> None:
    a = join("a")
    a.take(100)
    b = join("b", guarantee=30)
    with pytest.raises(NotLeased):
        b.take(1)
    assert a.allowance() == 70
    a.give(30)
    b.take(30)


def test_what_the_dead_held_is_free(join: Join) -> None:
    a, b = join("a"), join("b", guarantee=20)
    b.take(90)
    b.close()  # as the system closes the files of a process that is killed
    a.wants(100)
    assert a.allowance() == 100
    a.take(100)
    assert [row.name for row in tenants_of(Path(a.path))[1]] == ["a"]


def test_a_size_is_agreed_on_by_those_who_are_there(join: Join) -> None:
    a = join("a", 100)
    assert join("b", None).total == 100
    with pytest.raises(ConfigError, match="in use by a"):
        join("c", 200)
    a.close()
    with pytest.raises(ConfigError, match="in use by b"):
        join("c", 200)


def test_a_size_does_not_change_between_agreeing_and_entering(ledger: Path, join: Join) -> None:
    join("a", 100).close()
    looking = Ledger(ledger)
    sizes: dict[str, int | None] = {}

    def come(name: str, size: int) -> None:
        try:
            sizes[name] = join(name, size).total
        except ConfigError:
            sizes[name] = None

    with looking.locked():  # both have opened the file before either can go on
        threads = [threading.Thread(target=come, args=pair) for pair in (("b", 200), ("c", 300))]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    looking.close()
    assert sorted(sizes.values(), key=str) in ([200, None], [300, None])


def test_who_is_refused_leaves_no_file_open(ledger: Path, join: Join) -> None:
    join("a", 100)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(ConfigError):
            join("b", 200)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_new_size_holds_when_nobody_is_left(join: Join) -> None:
    join("a", 100).close()
    assert join("b", 200).total == 200


def test_a_size_that_nobody_says_is_that_of_the_device_when_nobody_is_there(ledger: Path) -> None:
    for _ in range(2):
        first = Tenant(ledger, None, Terms("a"), 300)
        assert first.total == 300
        first.close()
        others = [Tenant(ledger, total, Terms("a"), 300) for total in (50, None)]
        assert [other.total for other in others] == [50, 50]
        for other in others:
            other.close()


def test_nobody_shares_what_was_never_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nobody shares"):
        tenants_of(tmp_path / "missing.cpu0")


@pytest.mark.promise("P11")
@pytest.mark.parametrize("content", [b"x" * 20_000, b"kvrtshar" + b"\xff" * 8192, b"short"])
def test_a_file_of_something_else_is_refused_and_left_alone(
    ledger: Path, join: Join, content: bytes
) -> None:
    ledger.parent.mkdir()
    ledger.write_bytes(content)
    with pytest.raises(StoreError, match=r"test[.]cpu0"):
        join("a")
    assert ledger.read_bytes() == content


@pytest.mark.promise("P11")
@pytest.mark.parametrize("version", [ledgers._VERSION - 1, ledgers._VERSION + 1])
@pytest.mark.parametrize("nbytes", [24, 4096, 1 << 20], ids="of {} bytes".format)
def test_a_ledger_of_another_version_is_refused_with_both_named_and_left_alone(
    ledger: Path, join: Join, version: int, nbytes: int
) -> None:
    content = struct.pack("<8sqq", b"kvrtshar", version, TOTAL).ljust(nbytes, b"\0")
    ledger.parent.mkdir()
    ledger.write_bytes(content)
    for attempt in (lambda: join("a"), lambda: tenants_of(ledger)):
        with pytest.raises(StoreError, match=f"version {version}, not {ledgers._VERSION}"):
            attempt()
    assert ledger.read_bytes() == content


def test_there_is_room_for_so_many_and_one_more_is_told(join: Join) -> None:
    for number in range(ledgers.ROWS):
        join(str(number))
    with pytest.raises(ConfigError, match="has 64 tenants"):
        join("one more")


def test_nobody_waits_for_ever_for_one_who_keeps_the_lock(ledger: Path, join: Join) -> None:
    a, stopped = join("a"), Ledger(ledger)
    with stopped.locked():
        with pytest.raises(OutOfMemory, match="locked for"):
            a.take(1)
        a.wants(200)
        assert a.allowance() == 100
    a.take(1)
    stopped.close()


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class Tenants(RuleBasedStateMachine):
    """Any number of tenants who come, take, give, want, obey or not, and die at any moment."""

    alive = Bundle("alive")

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.tenants: dict[Tenant, Terms] = {}

    @rule(
        target=alive,
        guarantee=st.integers(0, 40),
        lends=st.booleans(),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        priority=st.integers(0, 1),
    )
    def come(self, guarantee: int, lends: bool, weight: float, priority: int) -> Tenant | None:
        promised = sum(terms.guarantee for terms in self.tenants.values())
        terms = Terms("t", guarantee, lends, weight, priority)
        try:
            tenant = Tenant(self.folder / "x.cpu0", TOTAL, terms)
        except CapacityError:
            assert promised + guarantee > TOTAL
            return None
        assert promised + guarantee <= TOTAL
        self.tenants[tenant] = terms
        return tenant

    @rule(tenant=alive, nbytes=st.integers(1, 60))
    def take(self, tenant: Tenant | None, nbytes: int) -> None:
        if tenant not in self.tenants:
            return
        held = tenant.held
        tenant.wants(held + nbytes)
        allowed = tenant.allowance()
        try:
            tenant.take(nbytes)
            assert held + nbytes <= allowed
        except NotLeased:
            assert held + nbytes > allowed

    @rule(tenant=alive, nbytes=st.integers(0, 150))
    def want(self, tenant: Tenant | None, nbytes: int) -> None:
        if tenant in self.tenants:
            tenant.wants(nbytes)

    @rule(tenant=alive, part=st.floats(0, 1))
    def give(self, tenant: Tenant | None, part: float) -> None:
        if tenant in self.tenants:
            tenant.give(int(tenant.held * part))

    @rule(tenant=alive)
    def obey(self, tenant: Tenant | None) -> None:
        if tenant in self.tenants:
            tenant.give(max(0, tenant.held - tenant.allowance()))

    @rule(tenant=consumes(alive))
    def die(self, tenant: Tenant | None) -> None:
        if tenant in self.tenants:
            del self.tenants[tenant]
            tenant.close()

    @rule()
    def settle(self) -> None:
        """When all do as they are told, each has what it is due; guarantees with it."""
        for _ in range(4):
            for tenant in self.tenants:
                tenant.give(max(0, tenant.held - tenant.allowance()))
            for tenant in self.tenants:
                claim = tenant.claim
                more = min(tenant.allowance(), claim.want) - claim.held
                if more > 0:
                    tenant.take(more)
        for tenant, terms in self.tenants.items():
            assert tenant.held >= min(tenant.claim.want, terms.guarantee)
            assert tenant.allowance() >= tenant.held
        short = [tenant for tenant in self.tenants if tenant.held < tenant.claim.want]
        kept = sum(
            max(0, terms.guarantee - tenant.held)
            for tenant, terms in self.tenants.items()
            if not terms.lends
        )
        held = sum(tenant.held for tenant in self.tenants)
        assert not short or held + kept >= TOTAL - len(self.tenants) ** 2

    @invariant()
    def never_more_than_there_is(self) -> None:
        assert sum(tenant.held for tenant in self.tenants) <= TOTAL

    def teardown(self) -> None:
        for tenant in self.tenants:
            tenant.close()
        self.stack.close()


TestTenants = Tenants.TestCase


@pytest.mark.promise("P9")
def test_ledgers_of_which_nobody_lives_are_swept_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVRT_SHARE_DIR", str(tmp_path))
    made = {
        name: Tenant(tmp_path / f"{name}.cpu0", 100, Terms("a")) for name in ("own-1", "own-2", "x")
    }
    made["own-1"].close()
    made["x"].close()
    bells = tmp_path / ".bells"
    assert {path.name for path in bells.iterdir()} >= {"own-2.cpu0.0"}
    sweep("own-")
    assert {path.name for path in tmp_path.glob("*.cpu0")} == {"own-2.cpu0", "x.cpu0"}
    assert not list(bells.glob("own-1*"))
    made["own-2"].take(50)
    assert made["own-2"].held == 50
    made["own-2"].close()
    sweep("own-")
    assert {path.name for path in tmp_path.glob("*.cpu0")} == {"x.cpu0"}
