"""The types of both clients have every field that a server sends, and no other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvrt.client import standing, words
from kvrt.server.access.keys import add_key
from kvrt.server.access.limits import Limits
from tests.batches.inputs import line
from tests.client import typescript
from tests.server.conftest import Server, started, until


def test_the_types_of_typescript_are_those_of_python() -> None:
    assert typescript.FILE.read_text() == typescript.made(), "python -m tests.client.typescript"


def same(body: bytes, kind: Any) -> Any:
    """An answer, which its type has all of."""
    found = msgspec.json.decode(body, type=kind)
    assert msgspec.to_builtins(found) == json.loads(body)
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    tiers = f"host:8MiB,disk:{tmp_path / 'pages'}:8MiB"
    key = add_key(tmp_path / "keys", "alice", "admin", Limits(daily_tokens=10**9))
    options = ("--batches", str(tmp_path / "state"), "--max-running", "4", "--offload", tiers,
               "--usage", str(tmp_path / "usage"), "--keys", str(tmp_path / "keys"))  # fmt: skip
    with started(tmp_path, *options) as one:
        one.headers["x-api-key"] = key
        yield one


def test_every_field_that_a_server_sends_has_a_type(server: Server) -> None:
    def ask(method: str, path: str, kind: Any, body: Any = None) -> Any:
        status, _, found = server.ask(method, path, body)
        assert status == 200, found
        return same(found, kind)

    ask("GET", "/v1/models", words.Models)
    key = server.headers["x-api-key"]
    with server.open_stream(n=4, temperature=1.0), server.client(api_key=key) as client:
        lines = [line(f"{n}", prompt="x", max_tokens=900, ignore_eos=True) for n in range(9)]
        lines[0]["body"] = {"model": "tiny", "prompt": "x", "temperature": 7}
        data = b"".join(json.dumps(each).encode() + b"\n" for each in lines)
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        ask("GET", f"/v1/files/{file.id}", words.File)
        asked = {"input_file_id": file.id, "endpoint": "/v1/completions"}
        begun = ask("POST", "/v1/batches", words.Batch, {**asked, "completion_window": "1h"})
        path = f"/v1/batches/{begun.id}"
        until(lambda: bool(ask("GET", "/status", standing.Status).queue))
        until(lambda: ask("GET", f"{path}/failed", words.FailurePage).data != [], 60)
        assert ask("GET", path, words.Batch).progress is not None
        ask("POST", f"{path}/cancel", words.Batch)
        until(lambda: ask("GET", path, words.Batch).over, 60)
        ask("GET", f"{path}/failed", words.FailurePage)
        ended = ask("GET", path, words.Batch)
        for each in client.files.content(ended.error_file_id).iter_lines():
            same(each.encode(), words.Answer)
        bad = client.files.create(file=("in.jsonl", b"x\n"), purpose="batch")
        other = {**asked, "input_file_id": bad.id, "completion_window": "1h"}
        failed = ask("POST", "/v1/batches", words.Batch, other)
        until(lambda: ask("GET", f"/v1/batches/{failed.id}", words.Batch).over)
        assert ask("GET", f"/v1/batches/{failed.id}", words.Batch).errors is not None
        assert len(ask("GET", "/v1/batches", words.BatchPage).data) == 2
        ask("DELETE", path, words.Deleted)
    until(lambda: not ask("GET", "/status", standing.Status).requests)
    status = ask("GET", "/status", standing.Status)
    until(lambda: ask("GET", "/usage", words.Usage).data != [])
    assert ask("GET", "/usage", words.Usage).quotas
    for part in (status.recent, status.memory.groups, status.memory.tiers):
        assert part, "each has been seen"
