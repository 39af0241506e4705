"""What no route takes: each is refused by its name, for its own reason."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from kvrt.server.access.keys import add_key

from .conftest import Server, started

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "a"}]
ASKED = {"model": "tiny", "prompt": "a", "max_tokens": 1}
FORM = {"content-type": "multipart/form-data; boundary=b"}


class No(NamedTuple):
    """A request, and what is said to it: status, what it names (a field, or a code), words."""

    what: str
    body: object
    status: int
    names: str | None
    words: str
    key: str = "boss"
    headers: dict[str, str] = {}  # noqa: RUF012 - of a tuple: it cannot change


def form(*parts: tuple[str, str]) -> bytes:
    fields = (
        f'--b\r\ncontent-disposition: form-data; name="{name}"'
        + ('; filename="f"' if name == "file" else "")
        + f"\r\n\r\n{value}\r\n"
        for name, value in parts
    )
    return ("".join(fields) + "--b--\r\n").encode()


def batch(**fields: Any) -> dict[str, Any]:
    return {"input_file_id": "file-0", "endpoint": TEXT, "completion_window": "24h", **fields}


FILE = ("file", "{}")
REFUSED = [
    # --- answers
    No(f"POST {TEXT}", b"{}", 415, None, "compressed bodies are not read",
       headers={"content-encoding": "gzip"}),
    No(f"POST {TEXT}", ASKED, 401, "invalid_api_key", "a valid key is needed", key=""),
    No(f"POST {CHAT}", {"model": "tiny", "messages": MESSAGES, "tools":
       [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "does not show how it"),
    No("POST /v1/messages", {"model": "tiny", "max_tokens": 1, "messages": MESSAGES, "tool_choice":
       {"type": "some"}}, 400, None, "tool_choice must be auto, any, tool or none"),
    No("POST /v1/messages", {"model": "tiny", "max_tokens": 1, "messages": MESSAGES, "thinking":
       {"type": "enabled"}}, 400, None, "thinking: the model's chat template shows none"),
    No("POST /api/generate", {"model": "tiny", "prompt": "a", "format": "xml"}, 400, None,
       "format must be json, or a schema"),
    No("POST /api/show", {}, 400, None, "missing required field `model`"),
    No("POST /tokenize", {"model": "tiny"}, 400, "prompt", "give either prompt or messages"),
    No("POST /tokenize", {"model": "tiny", "prompt": "a", "messages": MESSAGES}, 400, "prompt",
       "give either prompt or messages"),
    No("POST /v1/rerank", {"query": "a", "documents": ["b"]}, 404, "model_not_found",
       "started without --rerank-model"),
    No("POST /v1/embeddings", {"model": "x", "input": "a"}, 404, "model_not_found",
       "started without --embed-model"),
    No("POST /moves", {"ticket": "t"}, 404, "no_stream", "no such stream goes on here"),
    # --- files and batches
    No("POST /v1/files", form(("purpose", "batch")), 400, "file", "file is missing", headers=FORM),
    No("POST /v1/files", form(("purpose", "fun"), FILE), 400, "purpose", "purpose is none of batch",
       headers=FORM),
    No("POST /v1/files", form(("purpose", "batch"), ("expires_after[anchor]", "now"),
       ("expires_after[seconds]", "3600"), FILE), 400, "expires_after", "[anchor] is created_at",
       headers=FORM),
    No("POST /v1/files", form(("purpose", "batch"), ("expires_after[seconds]", "soon"), FILE), 400,
       "expires_after", "[seconds] is a number", headers=FORM),
    No("POST /v1/files", form(("purpose", "batch"), ("expires_after[seconds]", "3599"), FILE), 400,
       "expires_after", "seconds is from 3600 to 2592000", headers=FORM),
    No("GET /v1/files?order=up", None, 400, "order", "order is asc or desc"),
    No("GET /v1/files/file-0", None, 404, None, "no such"),
    No("POST /v1/batches", batch(), 400, "input_file_id", "input_file_id: no such file"),
    No("POST /v1/batches", batch(endpoint="/v1/x"), 400, "endpoint", "endpoint is none of"),
    No("POST /v1/batches", batch(output_expires_after={"anchor": "created_at", "seconds": 1}), 400,
       "output_expires_after", "output_expires_after: seconds is from 3600"),
    No("POST /v1/batches/batch-0/cancel", {}, 404, None, "no such batch"),
    # --- who may what
    No("GET /usage?x=1&y=2", None, 400, None, "2 parameters are none of "),
    No("GET /usage?since=soon", None, 400, "since", "since is a day such as 2026-11-27"),
    No("GET /usage?detail=hours", None, 400, "detail", "detail is none of "),
    No("GET /usage?format=xml", None, 400, "format", "format is none of "),
    No("GET /usage?workspace=rivals", None, 403, "workspace", "that is not this key's workspace",
       key="alice"),
    No("POST /keys", {"name": "boss"}, 409, "name", "another key has it"),
    No("POST /keys", {"name": "new", "role": "metrics", "workspace": "acme"}, 400, "role",
       "metrics tell of every workspace"),
    No("POST /keys", {"name": "new", "role": "metrics"}, 403, "role", "metrics tell of every",
       key="anna"),
    No("POST /keys", {"name": "new", "workspace": "rivals"}, 403, "workspace", "that is not this",
       key="anna"),
    No("POST /keys", {"name": "new", "limits": {"apples": 1}}, 400, "limits", "limits: "),
    No("POST /keys", {"name": "new", "limits": {"daily_tokens": 5}}, 400, "limits",
       "those of days and months need --usage"),
    No("DELETE /keys/boss", None, 409, None, "a key cannot delete itself"),
    No("DELETE /keys/nobody", None, 404, "no_key", "no such key"),
    No("DELETE /requests/r-1", None, 404, "no_request", "no such request goes on"),
    No("GET /keys", None, 403, None, "", key="alice"),
]  # fmt: skip


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("refused")
    path = folder / "keys"
    keys = {
        "alice": add_key(path, "alice", workspace="acme"),
        "anna": add_key(path, "anna", "admin", workspace="acme"),
        "boss": add_key(path, "boss", "admin"),
    }
    options = ("--keys", str(path), "--batches", str(folder / "batches"))
    with started(folder, *options) as server:
        yield server, keys


@pytest.mark.parametrize("no", REFUSED, ids=range(len(REFUSED)))
def test_what_no_route_takes_is_refused_by_name_and_for_its_reason(
    guarded: tuple[Server, dict[str, str]], no: No
) -> None:
    server, keys = guarded
    method, path = no.what.split(" ")
    held = {"authorization": f"Bearer {keys[no.key]}"} if no.key else {}
    status, _, data = server.ask(method, path, no.body, headers={**held, **no.headers})
    assert status == no.status, data
    assert no.words in data.decode().replace("\\u0027", "'")
    if no.names is not None:
        assert f'"{no.names}"'.encode() in data
