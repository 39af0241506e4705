"""Anthropic's tools and messages in OpenAI's words, which chat templates know."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvrt.server.errors import Refusal
from kvrt.server.words.pictures import places_of


def functions(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as OpenAI has them; one that is another's to run stays what it is, and is refused."""
    if tool.get("type", "custom") != "custom":
        return {"type": tool["type"]}
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    if "description" in tool:
        function["description"] = tool["description"]
    if tool.get("strict") is True:
        function["strict"] = True
    return {"type": "function", "function": function}


def in_openais_words(
    messages: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Messages whose blocks of tools are messages and calls; results come before what is said. Each
    after what the client calls the message that it comes from.

    Raises:
        Refusal: a block is not as it should be.
    """
    for where, message in zip(places_of(messages), messages, strict=True):
        content = message.get("content")
        blocks = content if isinstance(content, list) else []
        if not all(isinstance(block, Mapping) for block in blocks):
            raise Refusal(400, f"{where} has content that is no block", param=where)
        yield from ((where, _result(b)) for b in blocks if b.get("type") == "tool_result")
        calls = [_call(block, where) for block in blocks if block.get("type") == "tool_use"]
        thoughts = [str(b.get("thinking", "")) for b in blocks if b.get("type") == "thinking"]
        rest = [block for block in blocks if block.get("type") not in TAKEN]
        said = dict(message)
        if blocks:
            said["content"] = rest
        if calls:
            said["tool_calls"] = calls
        if thoughts:
            said["reasoning_content"] = "".join(thoughts)
        if rest or calls or not blocks:
            yield where, said


TAKEN = ("tool_result", "tool_use", "thinking", "redacted_thinking")
"""Blocks that are no part of what is said."""


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    arguments = block.get("input", {})
    if not isinstance(arguments, Mapping):
        raise Refusal(400, f"{where} has an input that is no object", param=where)
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": str(block.get("id", "")), "type": "function", "function": function}


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    said = block.get("content") or ""
    return {"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": said}
