"""What workspaces and keys may take, and what is written of what they took."""

import asyncio
import csv
import json
import random
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kvrt_cli.main import cli

from kvrt.errors import ConfigError
from kvrt.server.access.keys import Keys, Owner, add_key
from kvrt.server.access.limits import UNLIMITED, Limits
from kvrt.server.access.oidc import Credentials
from kvrt.server.errors import Refusal
from kvrt.server.tenants import ledger as ledgers
from kvrt.server.tenants.accounts import Accounts
from kvrt.server.tenants.ledger import Ledger, Line, Wanted, days, lines, read_only

from .conftest import Serve, Server, until

TEXT = "/v1/completions"
ASK: dict[str, Any] = {"model": "tiny", "prompt": [7] * 6, "max_tokens": 4, "ignore_eos": True}
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = NOON.timestamp()

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def credentials(tmp_path: Path, text: str) -> Credentials:
    path = tmp_path / "keys"
    add_key(path, "alice", workspace="acme")
    path.write_text(path.read_text() + text)
    return Credentials(Keys(path), None)


def take(accounts: Accounts, owner: Owner, most: int, took: int) -> str | None:
    """One request: None, or what it was refused for."""
    try:
        with accounts.visit(owner, TEXT) as visit:
            visit.reserve(most)
            visit.took(took, 0, 0)
    except Refusal as refusal:
        return refusal.param if refusal.code == "insufficient_quota" else str(refusal.code)
    return None


def test_no_more_is_let_in_than_is_left_and_what_was_not_taken_is_free_again() -> None:
    clock = Clock()
    accounts = Accounts(UNLIMITED, clock=clock)
    me = Owner("me", "user", Limits(daily_tokens=100, monthly_requests=6))
    assert take(accounts, me, 101, 1) == "daily_tokens"
    assert take(accounts, me, 100, 30) is None
    with accounts.visit(me, TEXT) as visit:
        visit.reserve(60)
        assert take(accounts, me, 11, 1) == "daily_tokens"
        assert take(accounts, me, 10, 10) is None
        visit.took(5, 0, 5)
    assert take(accounts, me, 51, 1) == "daily_tokens"
    assert take(accounts, me, 50, 50) is None
    assert take(accounts, me, 1, 1) == "daily_tokens"
    clock.now += timedelta(days=1).total_seconds()
    assert [take(accounts, me, 50, 1) for _ in range(3)] == [None, None, "monthly_requests"]
    clock.now += timedelta(days=10).total_seconds()
    assert take(accounts, me, 100, 1) is None


def test_who_is_refused_is_told_when_there_is_more() -> None:
    accounts = Accounts(UNLIMITED, clock=Clock())
    day = Owner("a", "user", Limits(daily_requests=1))
    month = Owner("b", "user", Limits(monthly_requests=1))
    for owner, seconds in ((day, 12 * 3600), (month, 3 * 86_400 + 12 * 3600)):
        assert take(accounts, owner, 1, 1) is None
        with pytest.raises(Refusal) as caught, accounts.visit(owner, TEXT):
            pass
        assert abs(int(caught.value.headers["retry-after"]) - seconds) <= 1


def test_what_asked_no_model_counts_for_nothing() -> None:
    accounts = Accounts(UNLIMITED, clock=Clock())
    me = Owner("me", "user", Limits(daily_requests=1, daily_tokens=10))
    for _ in range(5):
        with suppress(ValueError), accounts.visit(me, TEXT) as visit:
            visit.reserve(10)
            raise ValueError
    assert take(accounts, me, 10, 10) is None


def test_what_goes_on_at_midnight_counts_for_the_day_when_it_came() -> None:
    clock = Clock()
    accounts = Accounts(UNLIMITED, clock=clock)
    me = Owner("me", "user", Limits(daily_tokens=10))
    with accounts.visit(me, TEXT) as visit:
        visit.reserve(10)
        clock.now += timedelta(hours=13).total_seconds()
        assert take(accounts, me, 10, 10) is None
        visit.took(10, 0, 0)
    assert take(accounts, me, 1, 1) == "daily_tokens"


@pytest.mark.parametrize("seed", range(10))
def test_whatever_goes_on_at_once_no_quota_is_ever_overdrawn(seed: int) -> None:
    """Requests that come, take less than they may, and end in any order, days that pass."""
    rng = random.Random(seed)
    clock = Clock()
    limits = Limits(
        daily_tokens=rng.randrange(50, 500),
        daily_requests=rng.randrange(5, 50),
        monthly_tokens=rng.randrange(300, 900),
    )
    accounts = Accounts(UNLIMITED, clock=clock)
    me = Owner("me", "user", limits)
    taken: dict[str, int] = {}
    let: dict[str, int] = {}
    refused = 0

    async def one() -> None:
        nonlocal refused
        await asyncio.sleep(rng.random() / 100)
        day = ledgers.day_of(clock())
        most = rng.randrange(1, 60)
        try:
            with accounts.visit(me, TEXT) as visit:
                visit.reserve(most)
                await asyncio.sleep(rng.random() / 100)
                took = rng.randrange(1, most + 1)
                visit.took(took // 2, 0, took - took // 2)
                taken[day] = taken.get(day, 0) + took
                let[day] = let.get(day, 0) + 1
        except Refusal:
            refused += 1
        if rng.random() < 0.02:
            clock.now += 86_400

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(300)))

    asyncio.run(all_of_them())
    assert refused
    assert limits.daily_tokens is not None
    assert limits.daily_requests is not None
    assert limits.monthly_tokens is not None
    assert max(taken.values()) <= limits.daily_tokens
    assert max(let.values()) <= limits.daily_requests
    months: dict[str, int] = {}
    for day, tokens in taken.items():
        months[day[:7]] = months.get(day[:7], 0) + tokens
    assert max(months.values()) <= limits.monthly_tokens
    assert not accounts._held, "all is settled"


def test_keys_of_a_workspace_take_from_what_it_has_together(tmp_path: Path) -> None:
    line = "workspace acme daily_tokens=10 concurrent=1\n"
    known = credentials(tmp_path, line)
    accounts = Accounts(UNLIMITED, known)
    alice, bob = Owner("alice", "user", workspace="acme"), Owner("bob", "user", workspace="acme")
    other, named = Owner("carol", "user"), Owner("acme", "user")
    assert take(accounts, alice, 6, 6) is None
    assert take(accounts, bob, 5, 5) == "daily_tokens"
    assert take(accounts, named, 5, 5) == "daily_tokens", "a key of its name is in it"
    assert take(accounts, other, 5000, 5000) is None
    with accounts.visit(alice, TEXT), pytest.raises(Refusal) as caught, accounts.visit(bob, TEXT):
        pass
    assert caught.value.param == "concurrent"
    with accounts.line("acme", TEXT) as visit:
        visit.reserve(4)
        visit.took(2, 0, 2)
    assert take(accounts, bob, 1, 1) == "daily_tokens", "lines of batches count, too"
    assert [each["taken"] for each in accounts.left(alice)] == [10]


def test_what_keys_of_a_workspace_hold_at_once_is_held_from_both(tmp_path: Path) -> None:
    """Whichever of the two has less left, the key or its workspace."""
    for of_key, of_all, most in ((10, 100, 10), (100, 10, 10), (60, 60, 60)):
        folder = tmp_path / f"{of_key}-{of_all}"
        folder.mkdir()
        accounts = Accounts(
            UNLIMITED, credentials(folder, f"workspace acme daily_tokens={of_all}\n")
        )
        alice = Owner("alice", "user", Limits(daily_tokens=of_key), "acme")
        bob = Owner("bob", "user", workspace="acme")
        with accounts.visit(alice, TEXT) as visit:
            visit.reserve(most - 3)
            assert take(accounts, alice, 4, 1) == "daily_tokens"
            assert take(accounts, bob, of_all - most + 4, 1) == "daily_tokens"
            with accounts.visit(alice, TEXT) as beside:
                beside.reserve(3)
                assert take(accounts, alice, 1, 1) == "daily_tokens"
                assert [each["taken"] for each in accounts.left(alice)] == [most, most]
        assert [each["taken"] for each in accounts.left(alice)] == [0, 0]
        assert take(accounts, alice, most, most) is None


def test_a_file_of_keys_is_read_again_and_a_bad_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    first = add_key(path, "alice", workspace="acme")
    keys = Keys(path)
    second = add_key(path, "bob", "admin", Limits(requests=5), "acme")
    assert keys.owner([second]) is None
    keys.look()
    assert keys.owner([second]) == Owner("bob", "admin", Limits(requests=5), "acme")
    good = path.read_text()
    for bad in ("", "nonsense\n", good + "workspace acme\nworkspace acme\n", good + "workspace\n"):
        path.write_text(bad)
        keys.look()
        assert keys.owner([first]) == Owner("alice", "user", workspace="acme")
        assert "of before" in caplog.records[-1].message
    path.write_text(good.splitlines(keepends=True)[1])
    keys.look()
    assert keys.owner([first]) is None
    path.unlink()
    keys.look()
    assert keys.owner([second]) is not None


def test_limits_of_days_need_a_file_that_outlives_the_server(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, "alice", "user", Limits(monthly_tokens=5))
    with pytest.raises(ConfigError, match="days or months"):
        Keys(path, lasting=False)
    add_key(plain := tmp_path / "plain", "alice")
    for args in (["--keys", str(path)], ["--keys", str(plain), "--limit", "daily_tokens=5"]):
        result = CliRunner().invoke(cli, ["serve", "/no/such", "--port", "0", *args])
        assert result.exit_code == 2
        assert "--usage" in result.output


# --- the ledger --------------------------------------------------------------------------------


def line(number: int, at: datetime = NOON, workspace: str = "acme", **fields: Any) -> Line:
    given = {"key": "alice", "route": TEXT, "model": "tiny", "status": 200, **fields}
    return Line(at.timestamp(), f"r{number}", workspace, prompt_tokens=3, cached_tokens=1,
                generated_tokens=number, **given)  # fmt: skip


def read(path: Path, wanted: Wanted = Wanted()) -> tuple[list[Line], list[Any]]:
    with closing(read_only(path)) as sql:
        return [each for _, each in lines(sql, wanted)], list(days(sql, wanted))


def test_what_was_taken_is_read_as_it_was_written_and_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    rng = random.Random(1)
    written = [
        line(n, NOON + timedelta(hours=rng.randrange(-60, 60)), rng.choice(["acme", "other"]),
             model=rng.choice(["a", "b"]))
        for n in range(200)
    ]  # fmt: skip
    for some in (written[:120], written[120:]):
        with closing(Ledger(path)) as ledger:
            for each in some:
                ledger.add(each)
    assert ledger.lost == 0
    assert path.stat().st_mode & 0o777 == 0o600
    found, by_day = read(path)
    assert found == written
    assert sum(each.requests for each in by_day) == 200
    assert sum(each.generated_tokens for each in by_day) == sum(range(200))
    for wanted in (
        Wanted(since="2026-11-27"),
        Wanted(until="2026-11-26"),
        Wanted("2026-11-26", "2026-11-28", "other"),
    ):
        some, by_day = read(path, wanted)
        assert some == [
            each
            for each in written
            if (wanted.since or "") <= ledgers.day_of(each.at) <= (wanted.until or "9")
            and wanted.workspace in (None, each.workspace)
        ]
        assert 0 < len(some) < 200
        assert sum(each.requests for each in by_day) == len(some)


def test_what_a_month_has_taken_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    me = Owner("me", "user", Limits(monthly_tokens=10, daily_requests=3), "acme")
    for refused in (None, None, None, "daily_requests"):
        with closing(Ledger(path)) as ledger:
            accounts = Accounts(UNLIMITED, None, ledger)
            assert take(accounts, me, 2, 2) == refused
    poor = Owner("me", "user", Limits(monthly_tokens=10), "acme")
    with closing(Ledger(path)) as ledger:
        accounts = Accounts(UNLIMITED, None, ledger)
        assert take(accounts, poor, 5, 5) == "monthly_tokens"
        assert take(accounts, poor, 4, 4) is None


def test_a_disk_that_takes_nothing_keeps_nobody_waiting_and_lines_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "AGAIN_S", 0.05)
    path = tmp_path / "usage"
    with closing(Ledger(path)) as ledger:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
            ledger._sql.execute("PRAGMA busy_timeout = 0")
            other.execute("BEGIN IMMEDIATE")
            for number in range(20):
                ledger.add(line(number))
            blocked = threading.Event()
            blocked.wait(0.3)
            assert read(path)[0] == []
            other.execute("ROLLBACK")
        until(lambda: len(read(path)[0]) == 20)
    assert read(path)[0] == [line(number) for number in range(20)]
    assert ledger.lost == 0


def test_lines_are_kept_for_their_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "SWEEP_S", 0.0)
    now = datetime.now(UTC)
    ages = (0, 2, 6, 8, 30, 200)
    with closing(Ledger(tmp_path / "usage", keep=7)) as ledger:
        for age in ages:
            ledger.add(line(age, now - timedelta(days=age)))
    found, by_day = read(tmp_path / "usage")
    assert [each.generated_tokens for each in found] == [0, 2, 6]
    assert sum(each.generated_tokens for each in by_day) == 0 + 2 + 6 + 8 + 30, "a month is known"


def test_what_is_no_usage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing of the kind, and long enough to be looked at" * 50)
    with closing(sqlite3.connect(tmp_path / "later")) as sql:
        sql.execute("PRAGMA user_version = 99")
    for name in ("text", "later"):
        with pytest.raises(ConfigError, match="usage"):
            Ledger(tmp_path / name)
        assert CliRunner().invoke(cli, ["usage", str(tmp_path / name)]).exit_code == 2
    assert CliRunner().invoke(cli, ["usage", str(tmp_path / "none")]).exit_code == 2
    with pytest.raises(ConfigError, match="usage"):
        Ledger(tmp_path)


# --- a server ----------------------------------------------------------------------------------


@pytest.fixture
def keyed(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "keys"
    keys = {
        "alice": add_key(path, "alice", workspace="acme"),
        "anna": add_key(path, "anna", workspace="acme"),
        "bob": add_key(path, "bob"),
        "admin": add_key(path, "boss", "admin"),
    }
    path.write_text(path.read_text() + "workspace acme daily_tokens=1000 daily_requests=80\n")
    return {**keys, "file": str(path), "usage": str(tmp_path / "usage")}


def crowd(server: Server, keys: Sequence[str], body: Any, each: int) -> list[int]:
    """Statuses of what clients, one thread each, are answered."""
    found: list[int] = []

    def ask(key: str) -> None:
        for _ in range(each):
            found.append(server.ask("POST", TEXT, body, bearer(key), timeout=120)[0])

    threads = [threading.Thread(target=ask, args=[key]) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_quotas_hold_under_64_clients_and_over_a_restart(
    serve: Serve, keyed: dict[str, str]
) -> None:
    options = ["--keys", keyed["file"], "--usage", keyed["usage"]]
    server = serve(*options)
    keys = [keyed["alice"], keyed["anna"]] * 32
    found = crowd(server, keys, ASK, 2)
    assert found.count(200) == 80, "requests of a day"
    assert found.count(429) == 48
    assert server.ask("POST", TEXT, ASK, bearer(keyed["bob"]))[0] == 200
    status, _, data = server.ask("GET", "/usage", headers=bearer(keyed["anna"]))
    told = json.loads(data)
    assert status == 200
    assert {(each["measure"], each["taken"]) for each in told["quotas"]} == {
        ("requests", 80),
        ("tokens", 800),
    }
    server.end()
    path = Path(keyed["file"])
    path.write_text(path.read_text().replace("daily_requests=80", "daily_requests=500"))
    server = serve(*options)
    found = crowd(server, keys, ASK, 1)
    assert found.count(200) == 20, "tokens of a day: of 1000, 800 were taken, and 10 are each's"
    assert found.count(429) == 44
    path.write_text(path.read_text().replace("daily_tokens=1000", "daily_tokens=1015"))
    until(lambda: server.ask("POST", TEXT, ASK, bearer(keyed["alice"]))[0] == 200)
    status, body = server.post(TEXT, ASK, headers=bearer(keyed["alice"]))
    assert (status, body["error"]["code"]) == (429, "insufficient_quota")
    assert "5 are left" in body["error"]["message"]
    small = {**ASK, "prompt": [7], "max_tokens": 4}
    assert server.ask("POST", TEXT, small, bearer(keyed["alice"]))[0] == 200


def test_usage_is_told_by_the_route_and_the_command_line(
    serve: Serve, keyed: dict[str, str]
) -> None:
    server = serve("--keys", keyed["file"], "--usage", keyed["usage"])
    for name, prompt in (("alice", [7] * 40), ("anna", [7] * 40), ("bob", [9] * 3)):
        body = {**ASK, "prompt": prompt, "max_tokens": 2}
        headers = {**bearer(keyed[name]), "x-request-id": f"of-{name}"}
        assert server.ask("POST", TEXT, body, headers)[0] == 200
    assert server.ask("POST", TEXT, {**ASK, "n": 0}, bearer(keyed["bob"]))[0] == 400

    def asked(name: str, query: str = "") -> Any:
        return json.loads(server.ask("GET", f"/usage{query}", headers=bearer(keyed[name]))[2])

    until(lambda: len(asked("admin", "?detail=requests")["data"]) == 3)
    found = asked("admin", "?detail=requests")["data"]
    assert [
        (each["id"], each["workspace"], each["key"], each["model"], each["status"],
         each["prompt_tokens"], each["cached_tokens"], each["generated_tokens"])
        for each in found
    ] == [
        ("of-alice", "acme", "alice", "tiny", 200, 40, 0, 2),
        ("of-anna", "acme", "anna", "tiny", 200, 40, 32, 2),
        ("of-bob", "bob", "bob", "tiny", 200, 3, 0, 2),
    ]  # fmt: skip
    own = asked("alice", "?detail=requests")["data"]
    assert [each["key"] for each in own] == ["alice", "anna"]
    assert [each["key"] for each in asked("bob")["data"]] == ["bob"]
    assert asked("bob", "?workspace=acme")["error"]["param"] == "workspace"
    page = asked("admin", "?detail=requests&limit=1&after=1")
    assert (page["has_more"], [each["num"] for each in page["data"]]) == (True, [2])
    for query in ("?since=yesterday", "?limit=x", "?detail=all", "?format=xml", "?x=1"):
        assert server.ask("GET", f"/usage{query}", headers=bearer(keyed["bob"]))[0] == 400
    day = ledgers.day_of(found[0]["num"] and datetime.fromisoformat(found[0]["at"]).timestamp())
    args = ["usage", keyed["usage"], "--since", day, "--workspace", "acme"]
    table = CliRunner().invoke(cli, args)
    assert table.exit_code == 0, table.output
    assert [row.split()[1:] for row in table.stdout.splitlines()[1:]] == [
        ["acme", "alice", "tiny", "1", "40", "0", "2"],
        ["acme", "anna", "tiny", "1", "40", "32", "2"],
    ]
    told = CliRunner().invoke(cli, [*args, "--requests", "--json"])
    assert [json.loads(row) for row in told.stdout.splitlines()] == own
    rows = list(csv.DictReader(CliRunner().invoke(cli, [*args, "--csv"]).stdout.splitlines()))
    assert [(row["key"], row["prompt_tokens"]) for row in rows] == [("alice", "40"), ("anna", "40")]
    assert CliRunner().invoke(cli, [*args, "--csv", "--json"]).exit_code == 2
    assert CliRunner().invoke(cli, ["usage", keyed["usage"], "--since", "x"]).exit_code == 2
