"""Reads a batch's input: where its lines are, and whether each of them can be asked at all.

    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": ..., ...}}

What a body asks is its route's to judge when the line is asked, and then that line's error alone.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
from msgspec import Meta

from kvrt.batches.words import Problem

LEVELS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Lines whose bodies begin with so many of the same bytes stand together."""

BEGINNING = ("tools", "instructions", "messages", "prompt", "input")
"""What a prompt is made of, in the order in which templates have it."""

MAX_PROBLEMS = 100
"""More than these are not looked for."""


class Shape(msgspec.Struct):
    """A line."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: Annotated[str, Meta(max_length=128)]
    body: dict[str, msgspec.Raw]


SHAPE = msgspec.json.Decoder(Shape)
MISSING = "Object missing required field"


@dataclass(frozen=True, slots=True)
class Found:
    """A line that can be asked.

    Args:
        number: of the line, from 1.
        at: its first byte.
        size: its bytes.
        name: of its ``custom_id``, 16 bytes that no other has.
        url: the route.
        model: the body's; empty: it has none.
        key: see `kvrt.batches.words.Line`.
    """

    number: int
    at: int
    size: int
    name: bytes
    url: str
    model: str
    key: bytes


class Request(msgspec.Struct):
    """A line as it is asked: its body stays as it was written."""

    custom_id: str
    url: str
    body: msgspec.Raw


REQUEST = msgspec.json.Decoder(Request)


def read(file: BinaryIO, urls: Collection[str], longest: int) -> Iterator[Found | Problem]:
    """All lines, in order; blank ones are passed over.

    Args:
        urls: that lines may ask.
        longest: bytes of a line, at most.
    """
    number, at = 0, 0
    while data := file.readline(longest + 1):
        number += 1
        if len(data) > longest and not data.endswith(b"\n"):
            yield Problem("line_too_long", f"the line is longer than {longest} bytes", number)
            return
        if data.strip():
            yield _line(data, number, at, urls)
        at += len(data)


def fingerprint(path: Path) -> bytes:
    """Of all of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()[:16]


def _line(data: bytes, number: int, at: int, urls: Collection[str]) -> Found | Problem:
    try:
        shape = SHAPE.decode(data)
    except msgspec.ValidationError as error:
        return _problem(str(error), number)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Problem("invalid_json_line", "the line is not JSON", number)
    if shape.url not in urls:
        allowed = ", ".join(urls)
        return Problem("invalid_url", f"url: it is none of {allowed}", number, "url")
    name = hashlib.blake2b(shape.custom_id.encode("utf-8", "surrogatepass"), digest_size=16)
    begins = b"".join(bytes(shape.body[each]) for each in BEGINNING if each in shape.body)
    return Found(
        number, at, len(data), name.digest(), shape.url, _model(shape), key_of(begins)
    )  # fmt: skip


def key_of(text: bytes) -> bytes:
    """Sorts texts so that those stand together that begin alike, and says nothing of them."""
    return b"".join(hashlib.blake2b(text[:level], digest_size=2).digest() for level in LEVELS)


def _model(shape: Shape) -> str:
    try:
        found = msgspec.json.decode(shape.body.get("model", msgspec.Raw(b'""')), type=str)
    except msgspec.DecodeError:
        return ""
    return found if len(found) <= 256 and "\0" not in found else ""


def _problem(message: str, number: int) -> Problem:
    """In the library's words, which quote nothing of the line."""
    what, _, where = message.partition(" - at `$.")
    field = where.rstrip("`").partition("[")[0].partition(".")[0] or None
    if what.startswith(MISSING):
        name = what.removeprefix(MISSING).strip(" `")
        return Problem("missing_required_parameter", f"{name} is missing", number, name)
    if field == "method":
        return Problem("invalid_method", "method: it is not POST", number, field)
    return Problem(
        "invalid_line", f"{field or 'the line'}: {what.partition(',')[0]}", number, field
    )
