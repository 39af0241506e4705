"""The file of ``--prompts``: one prompt a line, plain or as a JSON object."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvrt.errors import KvrtError, RequestError
from kvrt_cli.sampling import NAMES
from kvrt_cli.stdin import decode

PROMPTS = ("prompt", "messages", "token_ids")


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the file.

    Args:
        line: its number, from 1.
        prompt: text, messages or token ids.
        wishes: sampling parameters of this line alone.
        id: what the line calls itself, a string or a number.
        error: why it cannot be asked; the rest is empty then.
    """

    line: int
    prompt: str | Sequence[Mapping[str, Any]] | Sequence[int] = ""
    wishes: Mapping[str, Any] = field(default_factory=dict)
    id: str | int | None = None
    error: KvrtError | None = None


def read_items(data: bytes) -> list[Item]:
    """The prompts of a file; empty lines are skipped. A bad line becomes an item with its error."""
    lines = enumerate(data.split(b"\n"), start=1)
    return [_item(number, line.removesuffix(b"\r")) for number, line in lines if line.strip()]


def _item(number: int, line: bytes) -> Item:
    try:
        text = decode(line, "the line")
        if not text.lstrip().startswith("{"):
            return Item(number, text)
        return _from_object(number, _object(text))
    except RequestError as error:
        return Item(number, error=error)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"not a JSON object: {error}",
            param="prompt",
            fix='a plain prompt that begins with "{" is written as {"prompt": "{..."}',
        ) from None
    assert isinstance(value, dict), "what begins with { and is JSON is an object"
    return value


def _from_object(number: int, value: dict[str, Any]) -> Item:
    name = value.pop("id", None)
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise RequestError(f"id is {name!r:.60}; it must be a string or a whole number", param="id")
    try:
        key = _only_prompt(value)
        prompt = value.pop(key)
        _check_prompt(key, prompt)
        if unknown := sorted(value.keys() - set(NAMES)):
            raise RequestError(
                f"unknown key {unknown[0]!r:.60}",
                param=unknown[0],
                fix=f"known are id, {', '.join((*PROMPTS, *NAMES))}",
            )
    except RequestError as error:
        return Item(number, id=name, error=error)
    return Item(number, prompt, value, name)


def _only_prompt(value: Mapping[str, Any]) -> str:
    given = [key for key in PROMPTS if key in value]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise RequestError(
            f"a line has one of {', '.join(PROMPTS)}; this has {found}", param="prompt"
        )
    return given[0]


def _check_prompt(key: str, prompt: object) -> None:
    if key == "prompt":
        good = isinstance(prompt, str) and prompt != ""
        wanted = "a text that is not empty"
    elif key == "messages":
        good = _is_list_of(prompt, dict)
        wanted = 'a list of objects such as {"role": "user", "content": "..."}'
    else:
        good = _is_list_of(prompt, int)
        wanted = "a list of whole numbers"
    if not good:
        raise RequestError(f"{key} is {prompt!r:.60}; it must be {wanted}", param=key)


def _is_list_of(value: object, kind: type) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in value)
    )
