"""What is wrong with one of several things is told by its place, as the client counts."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from .conftest import Server

Bad = dict[str, Any]

SAID: Sequence[Bad] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES: Sequence[Bad] = [
    *SAID,
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "d"},
]
BLOCKS: Sequence[Bad] = [
    *SAID,
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
    # Two messages in the words of templates, and the next one none.
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "d"},
                                 {"type": "text", "text": "e"}]},
    {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
]  # fmt: skip
ITEMS: Sequence[Bad] = [
    *SAID,
    {"role": "user", "content": "c"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "d"}]},
    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},  # of one message
    {"type": "function_call_output", "call_id": "1", "output": "e"},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

WRONG: dict[str, tuple[str, str, Bad, Sequence[Bad], Sequence[Bad]]] = {
    "chats": ("/v1/chat/completions", "messages", {}, MESSAGES, [
        {"role": 5, "content": "a"},
        {"content": "a"},
        {"role": "assistant", "tool_calls": 5},
        {"role": "assistant", "tool_calls": [CALL, {"function": {}}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, 7]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
    ]),
    "Anthropic's": ("/v1/messages", "messages", {"system": "s"}, BLOCKS, [
        {"role": 5, "content": "a"},
        {"role": "user", "content": ["a"]},
        {"role": "user", "content": [{"type": "text", "text": 5}]},
        {"role": "user", "content": [{"type": "document", "source": {}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": 5}]},
        {"role": "assistant", "content": [{"type": "tool_use", "name": 5, "input": {}}]},
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]},
        {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "@"}}]},
    ]),
    "counted": ("/v1/messages/count_tokens", "messages", {"system": "s"}, BLOCKS, [
        {"role": "user", "content": [{"type": "text", "text": 5}]},
    ]),
    "responses": ("/v1/responses", "input", {"instructions": "s"}, ITEMS, [
        {"content": "a"},
        {"type": "computer_call"},
        {"role": "user", "content": [{"type": "input_text"}]},
        {"role": "user", "content": [{"type": "input_file"}]},
        {"type": "function_call_output", "call_id": "1", "output": [7]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "http://x/"}]},
    ]),
    "Ollama's": ("/api/chat", "messages", {}, MESSAGES, [
        {"role": None, "content": "a"},
        {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]},
        {"role": "user", "content": "a", "images": ["@"]},
    ]),
    "tools": ("/v1/chat/completions", "tools", {"messages": SAID}, [TOOL] * 6, [
        {"type": "function"},
        {"type": "web_search"},
        {"type": "function", "function": {"name": "f", "parameters": []}},
    ]),
}  # fmt: skip


@pytest.mark.promise("P26")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_by_the_place_where_it_was_sent(server: Server, name: str) -> None:
    path, field, fields, good, bad = WRONG[name]
    asked = {"model": "tiny", "max_tokens": 1, **fields}
    if path.startswith("/api"):
        asked = {"model": "tiny", "stream": False}
    for at, wrong in itertools.product(range(len(good) + 1), bad):
        status, answer = server.post(path, {**asked, field: [*good[:at], wrong, *good[at:]]})
        told = answer["error"]["message"] if isinstance(answer["error"], dict) else answer["error"]
        assert status == 400, (at, wrong, told)
        assert f"{field}[{at}]" in told, (at, wrong, told)


def test_a_message_of_several_items_is_named_by_all_of_them(server: Server) -> None:
    call = {"type": "function_call", "call_id": "1", "name": 5, "arguments": "{}"}
    asked = {"model": "tiny", "input": [*ITEMS[:5], call, *ITEMS[5:]], "instructions": "s"}
    status, answer = server.post("/v1/responses", asked)
    assert (status, answer["error"]["param"]) == (400, "input[3:6]")
    assert answer["error"]["message"].startswith("input[3:6] has tool_calls")


def test_what_is_wrong_beside_a_conversation_is_named_as_it_is_called(server: Server) -> None:
    picture = {"type": "image", "source": {"type": "url", "url": "x"}}
    asked: Bad = {"model": "tiny", "max_tokens": 1, "messages": SAID, "system": [picture]}
    status, answer = server.post("/v1/messages", asked)
    assert status == 400
    assert answer["error"]["message"].startswith("system has an image")
