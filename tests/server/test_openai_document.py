"""What is answered has the form that OpenAI's own OpenAPI document gives it.

``data/openai.json`` is a part of that document (version 2.3.0, MIT licence): the operations that
are served, without prose and examples, and with null where it says nullable.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from .conftest import MESSAGES, PROMPT, Serve, Server

PATH = Path(__file__).parent / "data" / "openai.json"
DOCUMENT = json.loads(PATH.read_text())
SCHEMATHESIS = shutil.which("schemathesis")


def check(value: object, path: str, method: str, kind: str = "application/json") -> None:
    """Raise `jsonschema.ValidationError` unless it is what the document says."""
    content = DOCUMENT["paths"][path][method]["responses"]["200"]["content"]
    schema = {**content[kind]["schema"], "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def events(server: Server, path: str, body: dict[str, Any]) -> Iterator[Any]:
    """The JSON of each event of a stream."""
    status, _, found = server.ask("POST", path, {**body, "stream": True})
    assert status == 200
    for line in found.splitlines():
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


CHAT = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 4}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sampled": {"n": 3, "temperature": 1.0, "seed": 1, "stop": ["\n"]},
    "likely": {"logprobs": True, "top_logprobs": 3},
    "counted": {"stream_options": {"include_usage": True}},
}


@pytest.mark.parametrize("name", CHATS)
def test_chat_completions_and_their_pieces(server: Server, name: str) -> None:
    body = {**CHAT, **CHATS[name]}
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200
    check(answer, "/chat/completions", "post")
    pieces = list(events(server, "/v1/chat/completions", body))
    assert len(pieces) > 1
    for piece in pieces:
        check(piece, "/chat/completions", "post", "text/event-stream")


TEXTS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": PROMPT},
    "several": {"prompt": [[5, 6], [7]], "n": 2, "temperature": 1.0},
    "echoed": {"prompt": PROMPT, "echo": True, "logprobs": 2},
}


@pytest.mark.parametrize("name", TEXTS)
def test_completions(server: Server, name: str) -> None:
    body = {"model": "tiny", "max_tokens": 4, **TEXTS[name]}
    status, answer = server.post("/v1/completions", body)
    assert status == 200
    if body.get("echo"):  # the document forgets that nothing came before the first token
        logprobs = answer["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"].pop(0) is logprobs["top_logprobs"].pop(0) is None
    check(answer, "/completions", "post")


def test_responses_and_their_events(server: Server) -> None:
    body = {"model": "tiny", "input": "Say something.", "max_output_tokens": 4}
    status, answer = server.post("/v1/responses", body)
    assert status == 200
    check(answer, "/responses", "post")
    told = list(events(server, "/v1/responses", body))
    assert told[-1]["type"] == "response.incomplete"
    for event in told:
        check(event, "/responses", "post", "text/event-stream")


def test_models(server: Server) -> None:
    for path, shape in (("/v1/models", "/models"), ("/v1/models/tiny", "/models/{model}")):
        check(json.loads(server.ask("GET", path)[2]), shape, "get")


def test_this_check_finds_what_is_missing_and_what_is_wrong(server: Server) -> None:
    _, answer = server.post("/v1/chat/completions", CHAT)
    for wrong in ({"id": None}, {"object": "chat"}, {"choices": [{}]}, {"created": "now"}):
        with pytest.raises(jsonschema.ValidationError):
            check({**answer, **wrong}, "/chat/completions", "post")


@pytest.mark.extra
@pytest.mark.timeout(1800)
@pytest.mark.promise("P26", "P27")
@pytest.mark.skipif(SCHEMATHESIS is None, reason="schemathesis is not installed")
def test_schemathesis_finds_no_fault(serve: Serve, tmp_path: Path) -> None:
    server = serve("--alias", "*")
    checks = "not_a_server_error,response_schema_conformance,content_type_conformance"
    command = [
        str(SCHEMATHESIS), "run", str(PATH), "--url", f"{server.url}/v1", "--phases", "fuzzing",
        "--checks", checks, "--max-examples", "40", "--request-timeout", "120", "--seed", "12",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=1700, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    answered = server.metrics()
    for route in ("/v1/completions", "/v1/chat/completions"):
        assert answered[f"kvrt_http_requests_total,route={route},status=200"] > 5
    assert "Traceback" not in server.said()
