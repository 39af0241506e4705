"""What each key may ask for, and what is written of who did."""

import json
import random
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kvrt_cli.main import cli

from kvrt.errors import ConfigError
from kvrt.server.access.keys import Keys, Owner, add_key
from kvrt.server.access.limits import UNLIMITED, Limits, Quota, Quotas
from kvrt.server.entry import Entry
from kvrt.server.errors import Refusal
from kvrt.server.telemetry import audit
from kvrt.server.telemetry.audit import Audit

from .conftest import PROMPT, Server, started, until

TEXT = "/v1/completions"
ASK: dict[str, Any] = {"model": "tiny", "prompt": "a", "max_tokens": 2, "ignore_eos": True}


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(quota: Quota) -> Refusal:
    with pytest.raises(Refusal) as caught, quota.enter():
        pass
    assert caught.value.status == 429
    return caught.value


def test_so_many_calls_a_minute_are_let_in_and_the_next_when_it_was_said() -> None:
    clock = Clock()
    quota = Quota(Limits(requests=3), clock)
    for _ in range(3):
        with quota.enter():
            pass
    again = refused(quota)
    assert (again.param, again.headers["retry-after"]) == ("requests", "20")
    clock.now += 19
    refused(quota)
    clock.now += 1
    with quota.enter():
        pass
    refused(quota)
    clock.now += 1e9
    for _ in range(3):
        with quota.enter():
            pass
    refused(quota)


def test_tokens_are_taken_when_they_were_computed_and_a_debt_is_waited_for() -> None:
    clock = Clock()
    quota = Quota(Limits(tokens=60), clock)
    with quota.enter():
        quota.spend(100)
    assert quota.headers["x-ratelimit-remaining-tokens"] == "0"
    assert quota.headers["x-ratelimit-reset-tokens"] == "100s"
    assert refused(quota).headers["retry-after"] == "41"
    clock.now += 41
    with quota.enter():
        pass


def test_so_many_go_on_at_once() -> None:
    quota = Quota(Limits(concurrent=2))
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(quota.enter())
        assert refused(quota).param == "concurrent"
        stack.pop_all().__exit__(None, None, None)
        with quota.enter():
            pass


@pytest.mark.parametrize("seed", range(20))
def test_over_any_hour_no_more_was_let_in_than_the_limit(seed: int) -> None:
    rng = random.Random(seed)
    clock, limits = Clock(), Limits(requests=rng.randrange(1, 100))
    assert limits.requests is not None
    quota = Quota(limits, clock)
    let = 0
    for _ in range(3_000):
        clock.now += 3600 / 3_000 * rng.choice([0, 0, 1, 3])
        try:
            with quota.enter():
                let += 1
        except Refusal:
            pass
    minutes = (clock.now - 100.0) / 60
    assert let <= limits.requests * (minutes + 1) + 1
    assert let >= min(3_000, limits.requests * minutes) * 0.5


def test_owners_have_their_own_and_those_who_are_owed_nothing_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvrt.server.access.limits.IDLE_OWNERS", 3)
    quotas = Quotas(Limits(requests=1))
    busy = quotas.of("busy", UNLIMITED)
    with busy.enter():
        pass
    for number in range(100):
        quotas.of(f"idle-{number}", Limits(tokens=5))
    assert quotas.of("busy", UNLIMITED) is busy
    assert len(quotas._all) <= 4
    refused(busy)
    with quotas.of("other", UNLIMITED).enter():
        pass


@pytest.mark.parametrize(
    "words",
    [("x=1",), ("requests",), ("requests=0",), ("requests=-1",), ("requests=1", "requests=2"),
     ("tokens=1e3",), ("tokens=" + "9" * 500,), ("concurrent=٣",), ("",)],
)  # fmt: skip
def test_limits_that_are_none_are_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="limit"):
        Limits.read(words)
    keys = ["serve", "tiny", "--keys", str(tmp_path / "keys"), "--new-key", "me"]
    options = [part for word in words for part in ("--limit", word)]
    assert CliRunner().invoke(cli, [*keys, *options]).exit_code == 2


def test_a_key_keeps_its_limits_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    limits = Limits.read(("requests=60", "concurrent=4"))
    key, plain = add_key(path, "alice", "user", limits), add_key(path, "bob")
    assert Keys(path).owner([key]) == Owner("alice", "user", limits)
    assert Keys(path).owner([plain]) == Owner("bob", "user", UNLIMITED)
    path.write_text(path.read_text().replace("requests=60", "requests=0"))
    with pytest.raises(ConfigError, match="line 1"):
        Keys(path)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server with limits and an audit log, and its keys; ``audit`` is that file."""
    folder = tmp_path_factory.mktemp("limited")
    path, log = folder / "keys", folder / "audit"
    keys = {
        "few": add_key(path, "few", "user", Limits(requests=2)),
        "little": add_key(path, "little", "user", Limits(tokens=50)),
        "one": add_key(path, "one", "user", Limits(concurrent=1)),
        "plain": add_key(path, "plain"),
        "admin": add_key(path, "admin", "admin"),
        "audit": str(log),
    }
    options = ["--keys", str(path), "--limit", "requests=1000", "--audit", str(log)]
    with started(folder, *options, "--metrics-compat", "vllm") as server:
        yield server, keys


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_each_key_has_its_limits_and_no_other_notices(keyed: Any) -> None:
    server, keys = keyed
    few = [server.ask("POST", TEXT, ASK, bearer(keys["few"])) for _ in range(3)]
    assert [status for status, _, _ in few] == [200, 200, 429]
    assert [headers.get("x-ratelimit-remaining-requests") for _, headers, _ in few[:2]] == [
        "1",
        "0",
    ]
    assert 1 <= int(few[2][1]["retry-after"]) <= 30
    assert json.loads(few[2][2])["error"]["code"] == "rate_limit_exceeded"
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 60}
    little = [server.ask("POST", "/v1/messages", chat, bearer(keys["little"]))[0] for _ in range(2)]
    assert little == [200, 429], "of 50 tokens a minute, 60 and a prompt are taken"
    server.headers = bearer(keys["one"])
    long = {**ASK, "prompt": PROMPT, "max_tokens": 900, "stream": True}
    asked = json.dumps(long).encode()
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(
            f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {keys['one']}\r\n"
            f"Content-Length: {len(asked)}\r\n\r\n".encode()
            + asked
        )
        assert connection.recv(1)
        assert server.ask("POST", TEXT, ASK)[0] == 429
        assert server.ask("POST", TEXT, ASK, bearer(keys["plain"]))[0] == 200
    until(lambda: server.ask("POST", TEXT, ASK)[0] == 200)
    limit = server.ask("POST", TEXT, ASK, bearer(keys["plain"]))[1]["x-ratelimit-limit-requests"]
    assert limit == "1000"


@pytest.mark.promise("P41")
def test_the_audit_log_says_who_asked_what_and_never_what_was_said(keyed: Any) -> None:
    server, keys = keyed
    secret = "a-very-secret-word"
    server.headers = bearer(keys["plain"])
    asks = [
        ("POST", TEXT, {**ASK, "prompt": secret}, None),
        ("POST", TEXT, {**ASK, "n": secret}, None),
        ("GET", f"/{secret}?{secret}", None, None),
        ("GET", f"/v1/models/{secret}", None, None),
        ("GET", "/v1/models", None, bearer(secret)),
        ("GET", "/livez", None, None),
        ("POST", "/tokenize", {"prompt": secret}, None),
    ]
    for number, (method, path, body, headers) in enumerate(asks):
        given = {"x-request-id": f"audited-{number}", **(headers or {})}
        server.ask(method, path, body, given)
    path = Path(keys["audit"])
    until(lambda: "audited-6" in path.read_text())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {
        line["id"]: (line["key"], line["route"], line["status"]) for line in lines
        if line["id"].startswith("audited")
    }  # fmt: skip
    assert found == {
        "audited-0": ("plain", TEXT, 200),
        "audited-1": ("plain", TEXT, 400),
        "audited-2": ("plain", "other", 404),
        "audited-3": ("plain", "other", 404),
        "audited-4": (None, "/v1/models", 401),
        "audited-6": ("plain", "/tokenize", 200),
    }
    told = next(line for line in lines if line["id"] == "audited-0")
    assert told["generated_tokens"] == 2
    assert told["prompt_tokens"] > 3
    assert 0 < told["seconds"] < 60
    assert secret not in path.read_text()
    assert not any(key in path.read_text() for key in keys.values())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.promise("P40")
def test_metrics_have_the_names_of_vllm_with_the_same_values(keyed: Any) -> None:
    server, keys = keyed
    server.headers = bearer(keys["admin"])
    assert server.ask("POST", TEXT, {**ASK, "max_tokens": 5})[0] == 200
    until(lambda: server.metrics()["kvrt_sequences,state=running"] == 0)
    found = server.metrics()
    label = ",engine=0,model_name=tiny"
    for theirs, ours in (
        (f"vllm:prompt_tokens_total{label}", "kvrt_prompt_tokens_total"),
        (f"vllm:generation_tokens_total{label}", "kvrt_generated_tokens_total"),
        (f"vllm:prefix_cache_hits_total{label}", "kvrt_cached_prompt_tokens_total"),
        (f"vllm:prefix_cache_queries_total{label}", "kvrt_prompt_tokens_total"),
        (f"vllm:e2e_request_latency_seconds_count{label}", "kvrt_request_seconds_count"),
        (f"vllm:num_requests_running{label}", "kvrt_sequences,state=running"),
        (f"vllm:num_requests_waiting{label}", "kvrt_sequences,state=waiting"),
        (f"vllm:kv_cache_usage_perc{label}", "kvrt_kv_usage_ratio"),
        (
            "vllm:request_success_total,engine=0,finished_reason=length,model_name=tiny",
            "kvrt_requests_total,outcome=length",
        ),
        (
            f"vllm:request_time_per_output_token_seconds_count{label}",
            "kvrt_time_per_output_token_seconds_count",
        ),
    ):
        assert found[theirs] == found[ours], theirs
    assert found["kvrt_audit_lost_lines_total"] == 0


@pytest.mark.promise("P22")
def test_a_disk_that_takes_nothing_costs_lines_of_the_audit_log_and_keeps_nobody_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = Audit(Path("/dev/full"))
    for number in range(100):
        full.add(Entry(f"r{number}", TEXT))
    full.close()
    assert full.lost == 100
    assert len([r for r in caplog.records if "audit log" in r.message]) == 1
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="cannot be written"):
        Audit(tmp_path)
    assert time.monotonic() - begun < 5


def lines_of(folder: Path) -> list[str]:
    """The ids in a log and in what it was before, the oldest first."""
    files = sorted(folder.iterdir(), key=lambda path: (path.name == "audit", path.name))
    return [json.loads(line)["id"] for path in files for line in path.read_text().splitlines()]


def test_a_log_of_a_largest_size_begins_anew_and_loses_nothing(tmp_path: Path) -> None:
    ids = [f"r{number}" for number in range(60)]
    for some in (ids[:40], ids[40:]):
        log = Audit(tmp_path / "audit", 1024)
        for id in some:
            log.add(Entry(id, TEXT))
            until(log._lines.empty)
        log.close()
        assert log.lost == 0
    assert lines_of(tmp_path) == ids
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) > 5
    assert max(sizes) <= 1024
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_log_of_days_begins_anew_each_day_and_what_is_too_old_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (
        "audit.20991231T000000000000Z",
        "audit.old",
        "audit.2020",
        "other.20200101T000000000000Z",
    )
    for name in (*kept, "audit.20200101T000000000000Z"):
        (tmp_path / name).touch()
    yesterday = time.time() - 90_000
    first = Audit(tmp_path / "audit", days=7)
    first.add(Entry("of-yesterday", TEXT, at=yesterday))
    first.close()
    again = Audit(tmp_path / "audit", days=7)
    again.add(Entry("of-today", TEXT))
    again.close()
    third = Audit(tmp_path / "audit", days=7)
    third.add(Entry("of-today-too", TEXT))
    third.close()
    found = (tmp_path / "audit").read_text().splitlines()
    assert [json.loads(line)["id"] for line in found] == ["of-today", "of-today-too"]
    names = {path.name for path in tmp_path.iterdir()}
    assert {*kept, "audit"} <= names
    (before,) = names - {*kept, "audit"}
    assert "of-yesterday" in (tmp_path / before).read_text()
    plain = Audit(Path("/dev/null"), 1024, 1)
    for number in range(50):
        plain.add(Entry(f"r{number}", TEXT))
    plain.close()
    assert plain.lost == 0
    assert Path("/dev/null").is_char_device(), "what is no file is left where it is"


def test_lines_that_find_no_room_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "WAITING", 4)
    slow = Audit(tmp_path / "audit")
    monkeypatch.setattr(slow, "_append", lambda lines: time.sleep(0.2))
    for number in range(50):
        slow.add(Entry(f"r{number}", TEXT))
    assert slow.lost > 30
    slow.close()
