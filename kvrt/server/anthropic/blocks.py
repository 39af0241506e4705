"""Anthropic's tools and messages in OpenAI's words, which chat templates know."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvrt.server.errors import Refusal


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


def in_openais_words(messages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Messages whose blocks of tools are messages and calls; results come before what is said.

    Raises:
        Refusal: a block is not as it should be.
    """
    for place, message in enumerate(messages):
        content = message.get("content")
        blocks = content if isinstance(content, list) else []
        if not all(isinstance(block, Mapping) for block in blocks):
            raise Refusal(400, f"messages[{place}] has content that is no block", param="messages")
        yield from (_result(block) for block in blocks if block.get("type") == "tool_result")
        calls = [_call(block, place) for block in blocks if block.get("type") == "tool_use"]
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
            yield said


TAKEN = ("tool_result", "tool_use", "thinking", "redacted_thinking")
"""Blocks that are no part of what is said."""


def _call(block: Mapping[str, Any], place: int) -> dict[str, Any]:
    arguments = block.get("input", {})
    if not isinstance(arguments, Mapping):
        raise Refusal(400, f"messages[{place}] has an input that is no object", param="messages")
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": str(block.get("id", "")), "type": "function", "function": function}


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    said = block.get("content") or ""
    return {"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": said}
