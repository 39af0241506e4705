"""The file of ``--prompts``: a prompt a line, plain or a JSON object; or one JSON array of them."""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvrt.errors import KvrtError, RequestError
from kvrt_cli.options.sampling import NAMES
from kvrt_cli.stdin import decode, without_mark

if TYPE_CHECKING:
    from kvrt.engine.prompts import Prompt
    from kvrt.model.chat.templates import Chat

PROMPTS = ("prompt", "messages", "token_ids")
OF_CHATS = ("tools", "variables", "template", "continue_final_message", "add_generation_prompt")
"""What a line with messages may have besides; see `kvrt.Chat`."""

KEYS = ("id", *PROMPTS, *OF_CHATS, *NAMES)
KINDS = {
    type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text",
    list: "a list", dict: "an object",
}  # fmt: skip
"""What JSON has, in words."""

ARRAY = re.compile(r'\s*\[\s*["{]')
"""How an array of prompts begins, so that one which is no JSON is not taken for plain text."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of the file.

    Args:
        line: its number, from 1: of the line, or of the entry of a JSON array.
        prompt: text, messages or token ids.
        wishes: sampling parameters of this line alone.
        id: what the line calls itself, a string or a number.
        error: why it cannot be asked; the rest is empty then.
    """

    line: int
    prompt: "Prompt" = ""
    wishes: Mapping[str, Any] = field(default_factory=dict)
    id: str | int | None = None
    error: KvrtError | None = None


def read_items(data: bytes) -> list[Item]:
    """The prompts of a file; empty lines are skipped. A bad line becomes an item with its error.

    The file is UTF-8, or what its byte-order mark says.

    Raises:
        RequestError: it begins as a JSON array and is none, or ends within a character of UTF-16.
    """
    data, encoding = without_mark(data)
    # Kept as lone surrogates until the line is known: what is no text fails its line alone.
    how = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
    try:
        text = data.decode(encoding, how)
    except UnicodeDecodeError:
        text = decode(data, "the file", encoding)
    if text.lstrip().startswith("[") and (entries := _array(data, encoding)) is not None:
        return [_item(number, entry) for number, entry in enumerate(entries, start=1)]
    lines = enumerate(text.split("\n"), start=1)
    return [
        _line(number, line.removesuffix("\r").encode(encoding, how), encoding)
        for number, line in lines
        if line.strip()
    ]


def _array(data: bytes, encoding: str) -> list[Any] | None:
    """The entries of a file that is one JSON array; None if it is lines, the first with a [."""
    try:
        value = json.loads(data.decode(encoding, "replace"))
    except (ValueError, RecursionError) as error:
        if not ARRAY.match(data.decode(encoding, "replace")):
            return None
        raise RequestError(
            f"the file begins as a JSON array, and is none: {_reason(error)}",
            param="prompt",
            fix='a plain prompt that begins with [" is written as {"prompt": "[\\"..."}',
        ) from None
    decode(data, "the file", encoding)
    assert isinstance(value, list), "what begins with [ and is JSON is an array"
    return value


def _line(number: int, line: bytes, encoding: str) -> Item:
    try:
        text = decode(line, "the line", encoding)
        return _item(number, _object(text) if text.lstrip().startswith("{") else text)
    except RequestError as error:
        return Item(number, error=error)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"not a JSON object: {_reason(error)}",
            param="prompt",
            fix='a plain prompt that begins with "{" is written as {"prompt": "{..."}',
        ) from None
    assert isinstance(value, dict), "what begins with { and is JSON is an object"
    return value


def _reason(error: Exception) -> str:
    """Why something is not JSON, without quoting it."""
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg} ({line}character {error.colno})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "it has a number of thousands of digits"


# --- one of them -------------------------------------------------------------------------------


def _item(number: int, value: object) -> Item:
    if isinstance(value, str):
        return _from_object(number, {"prompt": value})
    if isinstance(value, dict):
        return _from_object(number, value)
    error = RequestError(f"it is {_what(value)}, not a text or an object", param="prompt")
    return Item(number, error=error)


def _from_object(number: int, value: dict[str, Any]) -> Item:
    name = value.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        wanted = "it must be a string or a whole number"
        return Item(number, error=RequestError(f"id is {_what(name)}; {wanted}", param="id"))
    try:
        key = _only_prompt(value)
        _check_prompt(key, value[key])
        _check_keys(value)
        prompt = _chat(value) if value.keys() & set(OF_CHATS) else value[key]
    except RequestError as error:
        return Item(number, id=name, error=error)
    wishes = {name: value[name] for name in NAMES if name in value}
    return Item(number, prompt, wishes, name)


def _chat(value: Mapping[str, Any]) -> "Chat":
    from kvrt.model.chat.templates import Chat

    options = {name: value[name] for name in OF_CHATS if name in value}
    if "messages" not in value:
        first = next(iter(options))
        raise RequestError(f"{first} goes with messages alone", param=first)
    return Chat(value["messages"], **options)


def _only_prompt(value: Mapping[str, Any]) -> str:
    given = [key for key in PROMPTS if key in value]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise RequestError(
            f"a line has one of {', '.join(PROMPTS)}; this has {found}", param="prompt"
        )
    return given[0]


def _check_keys(value: Mapping[str, Any]) -> None:
    """Refuse unknown keys. One that is no slip of a known one may be anything: it is not quoted."""
    for place, key in enumerate(value, start=1):
        if key in KEYS:
            continue
        near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.8)
        if near:
            raise RequestError(
                f"unknown key {key!r}", param=near[0], fix=f"did you mean {near[0]!r}?"
            )
        raise RequestError(
            f"key {place}, of {len(key)} characters, is not known",
            fix=f"known are {', '.join(KEYS)}",
        )


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
        raise RequestError(f"{key} is {_what(prompt)}; it must be {wanted}", param=key)


def _what(value: object) -> str:
    """What a JSON value is, and no more: it may be what somebody asks."""
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, list) and value:
        return f"a list of {' and '.join(sorted({KINDS[type(entry)] for entry in value}))}"
    return "an empty list" if value == [] else KINDS[type(value)]


def _is_list_of(value: object, kind: type) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in value)
    )
