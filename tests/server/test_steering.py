"""An admin in a workspace sees and steers that one, and no other."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvrt.errors import ConfigError
from kvrt.server.access.keys import Keys, Owner, add_key, drop_key

from .conftest import Server, started, until

TEXT = "/v1/completions"
LONG: dict[str, Any] = {"model": "tiny", "prompt": [7] * 6, "max_tokens": 900, "ignore_eos": True}


@dataclass
class Place:
    """A server, its keys by name, and their file."""

    server: Server
    keys: dict[str, str]
    file: Path

    def ask(self, who: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        status, _, data = self.server.ask(method, path, body, headers)
        return status, json.loads(data) if data[:1] in b"{[" else data

    def names(self, who: str) -> list[str]:
        status, told = self.ask(who, "GET", "/keys")
        assert status == 200
        assert "key" not in told["data"][0]
        return [each["name"] for each in told["data"]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("steering")
    path = folder / "keys"
    keys = {
        "alice": add_key(path, "alice", workspace="acme"),
        "anna": add_key(path, "anna", "admin", workspace="acme"),
        "bob": add_key(path, "bob", workspace="rivals"),
        "rita": add_key(path, "rita", "admin", workspace="rivals"),
        "boss": add_key(path, "boss", "admin"),
    }
    options = ["--keys", str(path), "--usage", str(folder / "usage"), "--limit", "requests=500"]
    with started(folder, *options) as server:
        yield Place(server, keys, path)


def test_an_admin_sees_the_requests_and_the_usage_of_its_workspace_alone(place: Place) -> None:
    for who in ("alice", "bob"):
        assert place.ask(who, "POST", TEXT, {**LONG, "max_tokens": 2})[0] == 200

    def seen(who: str) -> set[str]:
        return {each["key"] for each in place.ask(who, "GET", "/status")[1]["recent"]}

    until(lambda: seen("boss") == {"alice", "bob"})
    assert [seen(who) for who in ("anna", "rita", "alice")] == [{"alice"}, {"bob"}, {"alice"}]

    def paid(who: str, query: str = "") -> set[str]:
        return {each["workspace"] for each in place.ask(who, "GET", f"/usage{query}")[1]["data"]}

    until(lambda: paid("boss") == {"acme", "rivals"})
    assert [paid("anna"), paid("rita")] == [{"acme"}, {"rivals"}]
    assert place.ask("anna", "GET", "/usage?workspace=rivals")[0] == 403
    assert place.ask("anna", "DELETE", "/answers?workspace=rivals")[0] == 403


def test_what_is_of_the_whole_server_is_not_for_an_admin_in_a_workspace(place: Place) -> None:
    assert place.ask("anna", "GET", "/metrics")[0] == 403
    assert place.ask("boss", "GET", "/metrics")[0] == 200
    status, told = place.ask("anna", "POST", "/v1/unload_lora_adapter", {"lora_name": "x"})
    assert (status, "in no workspace" in told["error"]["message"]) == (403, True)


def test_a_request_is_ended_by_its_key_or_an_admin_of_it_and_its_client_is_told(
    place: Place,
) -> None:
    answers = []
    with ThreadPoolExecutor(1) as pool:
        for who, ends in (("anna", True), ("boss", True), ("alice", True)):
            headers = {"Authorization": f"Bearer {place.keys['alice']}", "x-request-id": "long-1"}
            asked = pool.submit(place.server.post, TEXT, LONG, headers=headers)
            until(lambda: place.ask("boss", "GET", "/status")[1]["requests"])
            for other in ("bob", "rita"):
                assert place.ask(other, "DELETE", "/requests/long-1")[0] == 404
            assert place.ask(who, "DELETE", "/requests/long-1") == (
                200, {"id": "long-1", "ended": ends}
            )  # fmt: skip
            answers.append(asked.result())
    assert [(status, told["error"]["code"]) for status, told in answers] == [(409, "ended")] * 3
    place.server.headers = {"Authorization": f"Bearer {place.keys['boss']}"}
    until(lambda: place.server.used_pages == 0)
    assert place.ask("alice", "DELETE", "/requests/long-1")[0] == 404


def test_keys_of_a_workspace_come_and_go_by_its_admin(place: Place) -> None:
    assert place.names("anna") == ["alice", "anna"]
    status, made = place.ask("anna", "POST", "/keys", {"name": "carl", "limits": {"requests": 9}})
    assert status == 201
    assert (made["name"], made["role"], made["workspace"]) == ("carl@acme", "user", "acme")
    assert made["limits"] == {"requests": 9}
    place.keys["carl"] = made["key"]
    assert place.ask("carl", "POST", TEXT, {**LONG, "max_tokens": 1})[0] == 200
    assert made["key"] not in place.file.read_text()
    assert place.names("anna") == ["alice", "anna", "carl@acme"]
    assert place.names("rita") == ["bob", "rita"]
    assert len(place.names("boss")) == 6
    assert place.ask("anna", "POST", "/keys", {"name": "carl"})[0] == 409
    assert place.ask("rita", "DELETE", "/keys/carl@acme")[0] == 404
    assert place.ask("anna", "DELETE", "/keys/carl@acme")[0] == 200
    assert place.ask("carl", "GET", "/v1/models")[0] == 401
    assert place.names("anna") == ["alice", "anna"]


@pytest.mark.parametrize(
    ("who", "body", "status"),
    [
        ("alice", {"name": "x"}, 403),
        ("anna", {"name": "x", "workspace": "rivals"}, 403),
        ("anna", {"name": "x", "role": "metrics"}, 403),
        ("anna", {"name": "x", "limits": {"tokens": 5}}, 403),
        ("anna", {"name": "x", "limits": {"requests": 501}}, 403),
        ("anna", {"name": "x", "limits": {"nothing": 5}}, 400),
        ("anna", {"name": "x", "limits": {"requests": 0}}, 400),
        ("anna", {"name": "x" * 64}, 400),
        ("anna", {"name": "x y"}, 400),
        ("anna", {"name": "x\ny admin"}, 400),
        ("anna", {}, 400),
        ("boss", {"name": "x", "workspace": "acme", "role": "metrics"}, 400),
    ],
)
def test_no_key_is_made_that_is_more_than_its_maker(
    place: Place, who: str, body: dict[str, Any], status: int
) -> None:
    before = place.file.read_bytes()
    assert place.ask(who, "POST", "/keys", body)[0] == status
    assert place.file.read_bytes() == before


def test_nobody_deletes_the_key_that_he_asks_with(place: Place) -> None:
    assert place.ask("anna", "DELETE", "/keys/anna")[0] == 409
    assert place.ask("anna", "DELETE", "/keys/boss")[0] == 404
    assert place.ask("alice", "DELETE", "/keys/anna")[0] == 403


def test_a_key_that_is_dropped_takes_no_other_line_along(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    kept = add_key(path, "alice", workspace="acme")
    add_key(path, "bob", workspace="acme")
    add_key(path, "bob")
    path.write_text(f"# of bob\n  {path.read_text()}workspace bob share=4\n")
    assert drop_key(path, "bob", "acme") == 1
    assert drop_key(path, "bob", "acme") == 0
    keys = Keys(path)
    assert keys.owners == [Owner("alice", "user", workspace="acme"), Owner("bob", "user")]
    assert keys.owner([kept]) == keys.owners[0]
    assert path.read_text().count("\n#ob user ") == 1
    with pytest.raises(ConfigError, match="cannot be written"):
        drop_key(tmp_path / "none", "bob", None)


def test_shares_of_workspaces_are_told_now_and_when_the_file_says_others(tmp_path: Path) -> None:
    path, told = tmp_path / "keys", list[dict[str, int]]()
    add_key(path, "alice", workspace="acme")
    good = path.read_text()
    keys = Keys(path)
    keys.follow(lambda shares: told.append(dict(shares)))
    for lines in ("workspace acme share=3 requests=7\n", "workspace acme requests=7\n"):
        path.write_text(good + lines)
        keys.look()
        assert keys.workspaces["acme"].requests == 7
    for bad in ("share=0", "share=1001", "share=2 share=2", "share=-1"):
        path.write_text(f"{good}workspace acme {bad}\n")
        keys.look()
    assert told == [{}, {"acme": 3}, {}]


def test_a_share_comes_back_to_its_workspace_while_others_have_lent_it(tmp_path: Path) -> None:
    """Without the share, the lender waits until the borrower's requests end."""
    path = tmp_path / "keys"
    keys = {name: add_key(path, name) for name in ("borrower", "lender")}
    path.write_text(path.read_text() + "workspace lender share=1\n")
    with (
        started(tmp_path, "--keys", str(path), "--memory-limit", "12MiB") as server,
        contextlib.ExitStack() as open_streams,
    ):
        place = Place(server, keys, path)
        server.headers = {"Authorization": f"Bearer {keys['borrower']}"}
        for _ in range(8):
            open_streams.enter_context(server.open_stream(temperature=1.0))

        def waits() -> bool:
            return bool(place.ask("borrower", "GET", "/status")[1]["queue"])

        until(waits, 120)
        status, _ = place.ask("lender", "POST", TEXT, {**LONG, "prompt": [9] * 90, "max_tokens": 2})
        assert status == 200
        assert waits()
        assert not place.ask("borrower", "GET", "/status")[1]["recent"]
