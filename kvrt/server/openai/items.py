"""The items of ``/v1/responses``: what came before, and what is said."""

import itertools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvrt.dialect.events import Arguments, Called, Content, Event, Thought
from kvrt.server.errors import Refusal
from kvrt.server.words.talk import Call

TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
IMAGE = "input_image"
ROLES = {"developer": "system"}
"""Newer names of what chat templates know."""

# --- what came before ------------------------------------------------------------------------


def messages_of(items: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Items as messages, and what errors call each: calls and reasoning belong to the message of
    the assistant beside them.

    Raises:
        Refusal: an item is of a kind that is not read.
    """
    found: list[dict[str, Any]] = []
    begins: list[int] = []  # of each message, its first item
    for place, item in enumerate(items):
        match item.get("type", "message"):
            case "message" if isinstance(item.get("role"), str):
                said = {
                    "role": ROLES.get(item["role"], item["role"]),
                    "content": _text(place, item),
                }
                if said["role"] == "assistant" and _awaits_words(found):
                    found[-1] |= said
                else:
                    found.append(said)
            case "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                _assistant(found).setdefault("tool_calls", []).append(call)
            case "function_call_output":
                result = {
                    "tool_call_id": item.get("call_id"),
                    "content": _text(place, item, "output"),
                }
                found.append({"role": "tool", **result})
            case "reasoning":
                thought = _text(place, item) or _text(place, item, "summary")
                found.append({"role": "assistant", "reasoning_content": _joined(thought)})
            case _:
                why = "is no message, call, result or reasoning, and others are not read"
                raise Refusal(400, f"input[{place}] {why}", param=f"input[{place}]")
        begins += [place] * (len(found) - len(begins))
    return found, [
        f"input[{begin}]" if begin + 1 == end else f"input[{begin}:{end}]"
        for begin, end in itertools.pairwise([*begins, len(items)])
    ]


def _awaits_words(found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether reasoning came last, without what it was for."""
    return bool(found) and found[-1].keys() == {"role", "reasoning_content"}


def _assistant(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that comes last, or a new one."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    return found[-1]


def _text(place: int, item: Mapping[str, Any], name: str = "content") -> object:
    content = item.get(name)
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") in (*TEXTS, IMAGE) for part in content):
        why = f"input[{place}] has content other than text and images"
        raise Refusal(400, why, param=f"input[{place}]")
    return [
        part if part["type"] == IMAGE else {"type": "text", "text": part.get("text")}
        for part in content
    ]


def _joined(content: object) -> str:
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts)


# --- what is said ----------------------------------------------------------------------------

Said = tuple[str, dict[str, Any]]
"""An event's type, and its fields."""


class Output:
    """The items of one answer, as they come; one is open at a time."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._is_open = False

    def take(self, piece: Event, call: Call | None) -> Iterator[Said]:
        """A piece of the answer, and the call that it is of, if it is of one."""
        match piece:
            case Content(text):
                yield from self._ensure("message")
                yield from self._add("output_text", text)
            case Thought(text):
                yield from self._ensure("reasoning")
                yield from self._add("reasoning_text", text)
            case Called():
                yield from self._close("completed")
                yield from self._begin("function_call", call)
            case Arguments(text):
                self.items[-1]["arguments"] += text
                yield "response.function_call_arguments.delta", {**self._place, "delta": text}

    def close(self, status: str) -> Iterator[Said]:
        """The end; an answer without anything is a message without words."""
        if not self.items:
            yield from self._ensure("message")
        yield from self._close(status)

    def _ensure(self, kind: str) -> Iterator[Said]:
        """An item of this kind is open."""
        if not self._is_open or self.items[-1]["type"] != kind:
            yield from self._close("completed")
            yield from self._begin(kind, None)

    def _begin(self, kind: str, call: Call | None) -> Iterator[Said]:
        names = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
        item: dict[str, Any] = {"id": f"{names[kind]}_{secrets.token_hex(12)}", "type": kind,
                                "status": "in_progress"}  # fmt: skip
        if call is not None:
            item |= {"call_id": call.id, "name": call.name, "arguments": ""}
        elif kind == "message":
            item |= {"role": "assistant", "content": []}
        else:
            item |= {"summary": [], "content": []}
        self._is_open = True
        self.items.append(item)
        shown = {**item, "content": []} if call is None else dict(item)
        yield "response.output_item.added", {"output_index": self._index, "item": shown}
        if call is None:
            item["content"] = [_part("output_text" if kind == "message" else "reasoning_text")]
            part = dict(item["content"][0])
            yield "response.content_part.added", {**self._place, "content_index": 0, "part": part}

    def _add(self, kind: str, text: str) -> Iterator[Said]:
        self.items[-1]["content"][0]["text"] += text
        more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        place = {**self._place, "content_index": 0}
        yield f"response.{kind}.delta", {**place, "delta": text, **more}

    def _close(self, status: str) -> Iterator[Said]:
        if not self._is_open:
            return
        self._is_open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            said = {"name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", {**self._place, **said}
        else:
            (part,) = item["content"]
            place = {**self._place, "content_index": 0}
            more: dict[str, Any] = {"logprobs": []} if part["type"] == "output_text" else {}
            yield f"response.{part['type']}.done", {**place, "text": part["text"], **more}
            yield "response.content_part.done", {**place, "part": part}
        yield "response.output_item.done", {"output_index": self._index, "item": item}

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": self._index}


def _part(kind: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": "", **more}
