"""What a line of a set says: a prompt and an answer, in whichever of the usual shapes.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"prompt": "...", "completion": "..."}       also answer, response, chosen; or messages in both
    {"instruction": "...", "input": "...", "output": "..."}
    {"text": "..."}
    {"custom_id": "...", "url": "...", "body": {"messages": [...]}}      a line to a batch
    {"custom_id": "...", "response": {"body": {"choices": [...]}}}       a line from one

A line stays the bytes that it is, whatever is read of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Shape = Literal["messages", "conversations", "pair", "instruction", "text", "request", "answer"]
Part = Literal["all", "prompt", "answer"]
Score = float | str | bool | None

SCORES = "scores"
"""The field of a line that has numbers on it."""

ANSWERS = ("completion", "answer", "response", "chosen")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
"""As ShareGPT's sets call them."""

MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Unreadable(ValueError):
    """A line is no row; says why, and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Said:
    """One message.

    Args:
        role: who says it; empty: a text that is nobody's.
    """

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a set.

    Args:
        number: of the line, from 1.
        at: its first byte in the file.
        line: its bytes, without the line feed.
        shape: how it is written.
        prompt: what comes before the answer.
        answer: None: it has none.
        scores: that it has.
    """

    number: int
    at: int
    line: bytes
    shape: Shape
    prompt: tuple[Said, ...]
    answer: str | None
    scores: Mapping[str, Score] = field(default_factory=dict)

    @property
    def prompt_text(self) -> str:
        """What its messages say, a line feed between."""
        return "\n".join(said.text for said in self.prompt)

    def text(self, part: Part = "all") -> str:
        """What it says, or a part of it."""
        texts = [said.text for said in self.prompt] if part != "answer" else []
        if part != "prompt" and self.answer is not None:
            texts.append(self.answer)
        return "\n".join(texts)

    def with_members(self, **members: object) -> bytes:
        """The line with more members, or others, in the end; what else is in it keeps its bytes."""
        kept = {name: raw for name, raw in MEMBERS.decode(self.line).items() if name not in members}
        return msgspec.json.encode(kept | members)


def read_row(line: bytes, number: int = 1, at: int = 0) -> Row:
    """What a line says.

    Raises:
        Unreadable: it is no JSON object, or has no prompt and no answer where they should be.
    """
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unreadable("it is not JSON") from None
    if not isinstance(value, dict):
        raise Unreadable("it is JSON, and no object")
    shape, prompt, answer = _said(value)
    return Row(number, at, line, shape, tuple(prompt), answer, _scores(value.get(SCORES)))


def _said(value: dict[str, Any]) -> tuple[Shape, Sequence[Said], str | None]:
    match value:
        case {"messages": list() as messages}:
            return "messages", *_parted(_messages(messages, "role", "content"))
        case {"conversations": list() as messages}:
            return "conversations", *_parted(_messages(messages, "from", "value"))
        case {"body": dict() as body}:
            return "request", _asked(body), None
        case {"response": dict() as response}:
            return "answer", (), _answered(response.get("body"))
        case {"prompt": str() | list() as prompt}:
            answers = [value[name] for name in ANSWERS if value.get(name) is not None]
            return "pair", _told(prompt, "prompt"), _text(answers[0]) if answers else None
        case {"instruction": str() as instruction}:
            told = [instruction, value.get("input") or ""]
            given = "\n\n".join(_text(text) for text in told if text)
            answer = value.get("output")
            return "instruction", (Said("user", given),), None if answer is None else _text(answer)
        case {"text": str() as text}:
            return "text", (), text
        case _:
            raise Unreadable(
                "it has neither messages, conversations, prompt, instruction, text, body nor"
                " response"
            )


def _messages(messages: Sequence[Any], role: str, content: str) -> list[Said]:
    said = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get(role), str):
            raise Unreadable(f"a message has no {role}")
        name: str = message[role]
        said.append(Said(ROLES.get(name, name), _text(message.get(content))))
    return said


def _parted(said: list[Said]) -> tuple[list[Said], str | None]:
    if said and said[-1].role == "assistant":
        return said[:-1], said[-1].text
    return said, None


def _told(value: str | list[Any], name: str) -> list[Said]:
    if isinstance(value, str):
        return [Said("", value)]
    if not all(isinstance(message, dict) for message in value):
        raise Unreadable(f"{name} is a list, and not of messages")
    return _messages(value, "role", "content")


def _asked(body: dict[str, Any]) -> list[Said]:
    said: list[Said] = []
    if isinstance(before := body.get("instructions"), str):
        said.append(Said("system", before))
    for name in ("messages", "prompt", "input"):
        if isinstance(value := body.get(name), str | list):
            return said + _told(value, name)
    raise Unreadable("its body has neither messages, prompt nor input")


def _answered(body: object) -> str | None:
    """None: the line is an error."""
    match body:
        case {"choices": [{"message": {"content": content}}, *_]}:
            return _text(content)
        case {"choices": [{"text": str() as text}, *_]}:
            return text
        case {"output": list() as items}:
            contents = [item.get("content") for item in items if isinstance(item, dict)]
            return "".join(map(_text, contents))
        case _:
            return None


def _text(value: object) -> str:
    """Of content: a text, parts of which some are texts, messages, or nothing."""
    match value:
        case None:
            return ""
        case str():
            return value
        case list():
            return "".join(map(_text, value))
        case {"text": str() as text} | {"content": str() as text}:
            return text
        case dict():
            return ""
        case _:
            raise Unreadable("what is said is no text")


def _scores(value: object) -> dict[str, Score]:
    if value is None:
        return {}
    plain = isinstance(value, dict) and all(
        entry is None or isinstance(entry, bool | int | float | str) for entry in value.values()
    )
    if not plain:
        raise Unreadable(f"its {SCORES} are no object of numbers and texts")
    assert isinstance(value, dict)
    return value
