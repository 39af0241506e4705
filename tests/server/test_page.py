"""The page: what it is allowed, and who sees what on it."""

import base64
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvrt.server.access.keys import add_key
from kvrt.server.access.limits import Limits
from kvrt.server.page import FILES, FOLDER

from .conftest import Server, started, until

ASK: dict[str, Any] = {"model": "tiny", "prompt": "a", "max_tokens": 4, "ignore_eos": True}
PLACES = 12


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}


def test_the_page_is_served_with_a_policy_that_lets_nothing_else_in(server: Server) -> None:
    for path, (name, kind) in FILES.items():
        status, headers, body = server.ask("GET", path)
        assert (status, body) == (200, (FOLDER / name).read_bytes())
        assert headers["content-type"] == f"{kind}; charset=utf-8"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"https?:|\*", policy)
        assert headers["x-content-type-options"] == "nosniff"
    assert {path.name for path in FOLDER.iterdir()} == {name for name, _ in FILES.values()}


def test_nothing_on_the_page_comes_from_elsewhere_or_is_made_of_markup() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert not re.search(r"\son\w+=|\sstyle=|javascript:", text), path


def test_scripts_and_styles_of_the_page_know_what_is_on_it() -> None:
    markup = (FOLDER / "index.html").read_text()
    scripts = "".join(path.read_text() for path in FOLDER.glob("*.js"))
    style = (FOLDER / "page.css").read_text()
    ids = re.findall(r'id="([^"]+)"', markup)
    assert len(ids) == len(set(ids))
    asked = re.findall(r'(?:\bat|getElementById)\("([\w-]+)"\)', scripts)
    asked += re.findall(r'(?:for|aria-labelledby|aria-controls)="([\w-]+)"', markup)
    assert len(asked) > 60
    assert set(asked) <= set(ids)
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    used = set(re.findall(r"var\(--([\w-]+)\)", style + scripts))
    for of in (light, dark[: dark.index("}\n}")]):
        named = set(re.findall(r"--([\w-]+):", of))
        assert used <= named
        assert {name for name in named - used if not name.startswith("owner-")} == set()


@contextmanager
def started_with_keys(folder: Path) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server that asks for keys, and the keys, by what they are called."""
    path = folder / "keys"
    keys = {
        "alice": add_key(path, "alice"),
        "bob": add_key(path, "bob", limits=Limits(daily_tokens=10**9)),
        "admin": add_key(path, "admin", "admin"),
        "metrics": add_key(path, "metrics", "metrics"),
    }
    options = ("--offload", "host:16MiB", "--batches", str(folder / "batches"))
    options = (*options, "--max-running", str(PLACES), "--usage", str(folder / "usage"))
    with started(folder, "--keys", str(path), *options) as server:
        yield server, keys


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    with started_with_keys(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.mark.promise("P28")
def test_a_browser_brings_a_key_as_a_password_from_our_own_page_alone(keyed: Any) -> None:
    server, keys = keyed
    status, headers, _ = server.ask("GET", "/")
    assert status == 401
    assert headers["www-authenticate"].startswith("Basic realm=")
    assert server.ask("GET", "/v1/models")[1]["www-authenticate"] == "Bearer"
    own = f"127.0.0.1:{server.port}"
    for more, wanted in (
        ({}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": f"http://{own}"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 401),
        ({"Sec-Fetch-Site": "same-site"}, 401),
        ({"Origin": "https://evil.example"}, 401),
        ({"Origin": "null"}, 401),
        ({"Origin": "http://127.0.0.1:1"}, 401),
        ({"Origin": "["}, 401),
    ):
        for path in ("/", "/status"):
            found = server.ask("GET", path, headers={**basic(keys["alice"]), **more})[0]
            assert found == wanted, (path, more)
    for wrong in (basic("wrong"), {"Authorization": "Basic !"}, {"Authorization": "Basic /w=="}):
        assert server.ask("GET", "/", headers=wrong)[0] == 401


def test_a_user_sees_its_own_requests_and_an_admin_all_and_nobody_what_was_said(
    keyed: Any,
) -> None:
    server, keys = keyed
    for name in ("alice", "bob"):
        body = {**ASK, "prompt": "a-very-secret-word"}
        assert server.post("/v1/completions", body, headers=basic(keys[name]))[0] == 200

    def seen(name: str) -> list[str]:
        status, _, body = server.ask("GET", "/status", headers=basic(keys[name]))
        assert status == 200
        assert b"secret" not in body
        told = json.loads(body)
        assert all(each["generated_tokens"] == 4 for each in told["recent"])
        return [each["key"] for each in told["recent"]]

    until(lambda: sorted(seen("admin")) == ["alice", "bob"])
    assert seen("alice") == ["alice"]
    assert seen("bob") == ["bob"]
    assert server.ask("GET", "/status", headers=basic(keys["metrics"]))[0] == 403


@contextmanager
def crowded(server: Server, key: str) -> Iterator[None]:
    """All places are taken by a request of `key`, and another one waits."""
    long = {**ASK, "max_tokens": 900, "temperature": 1.0}
    with ThreadPoolExecutor(2) as pool:

        def post(key: str, **body: Any) -> None:
            pool.submit(server.post, "/v1/completions", {**long, **body}, headers=basic(key))

        post(key, n=PLACES)
        until(lambda: queue_of(server, key)["server"]["running"] == PLACES)
        post(key)
        yield


def queue_of(server: Server, key: str) -> Any:
    return json.loads(server.ask("GET", "/status", headers=basic(key))[2])


def test_the_status_tells_each_key_which_of_its_requests_wait_and_why(keyed: Any) -> None:
    server, keys = keyed
    with crowded(server, keys["alice"]):
        until(lambda: [e["why"] for e in queue_of(server, keys["alice"])["queue"]] == ["places"])
        (waiting,) = queue_of(server, keys["admin"])["queue"]
        assert (waiting["key"], waiting["priority"], waiting["batch"]) == ("alice", 0, False)
        assert waiting["prompt_tokens"] > 0
        assert queue_of(server, keys["bob"])["queue"] == []
        for name, owner in (("admin", "alice"), ("alice", "alice"), ("bob", "(others)")):
            (group,) = queue_of(server, keys[name])["memory"]["groups"]
            (owned,) = group["owners"]
            assert owned["owner"] == owner
            assert 0 < owned["used"] == sum(owned["cells"])
    assert queue_of(server, keys["admin"])["batches"] == {
        "asked": 0, "places": PLACES * 3 // 4, "crowded": False
    }  # fmt: skip


@pytest.mark.promise("P40")
def test_the_status_tells_of_requests_and_of_every_page(server: Server) -> None:
    until(lambda: server.used_pages == 0)
    with server.open_stream(n=4, temperature=1.0) as connection:

        def told() -> Any:
            return json.loads(server.ask("GET", "/status")[2])

        until(lambda: told()["requests"] and told()["requests"][0]["generated_tokens"] > 200)
        status = told()
        flight = status["requests"][0]
        assert flight["route"] == "/v1/completions"
        assert flight["state"] == "runs"
        assert 0 < flight["first_token_seconds"] < flight["seconds"]
        assert flight["tokens_per_second"] > 0
        assert status["server"]["taken"] == 4
        connection.close()
    until(lambda: not told()["requests"])
    until(lambda: server.used_pages == 0)
    status = told()
    assert status["recent"][0]["state"] == "left"
    memory = status["memory"]
    groups = memory["groups"]
    assert sum(group["cached"] for group in groups) == memory["cached_pages"] > 0
    for group in groups:
        assert sum(cell["cached"] for cell in group["cells"]) == group["cached"]
        assert sum(cell["mapped"] for cell in group["cells"]) == group["mapped_chunks"]
        assert len(group["cells"]) <= 512
    assert status["model"]["names"] == ["tiny"]
