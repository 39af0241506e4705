"""Images in messages, as clients send them: always the image itself, never where it is.

OpenAI, chats       {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}
OpenAI, responses   {"type": "input_image", "image_url": "data:image/png;base64,..."}
Anthropic           {"type": "image", "source": {"type": "base64", "data": "..."}}
Ollama              "images": ["..."], beside the content
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvrt.model.chat.messages import text_part
from kvrt.server.errors import Refusal

KINDS = ("image_url", "input_image", "image")
DATA = re.compile(r"data:[\w.+/-]{0,100}(;[\w.+=-]{1,100}){0,4};base64,", re.ASCII)

ROOM = 32 << 20
"""Bytes of a request's body for its images, beside its text."""


def places_of(messages: Sequence[object]) -> list[str]:
    """What errors call each message, where they are the ones that were sent."""
    return [f"messages[{place}]" for place in range(len(messages))]


def with_images(
    messages: Sequence[Mapping[str, Any]], places: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Messages in which each image is a part as `kvrt.Chat` has it.

    Args:
        places: what the client calls each, for errors; empty: as in `places_of`.

    Raises:
        Refusal: an image is an address, or nothing that can be an image.
        RequestError: a part is neither image nor text.
    """
    return [
        {**message, "content": [*_parts(message["content"], where)]}
        if isinstance(message.get("content"), list)
        else dict(message)
        for message, where in zip(messages, places or places_of(messages), strict=True)
    ]


def beside(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A message of Ollama's clients, whose images stand beside its text: they come before it.

    Raises:
        Refusal: an image is none.
    """
    said = dict(message)
    if not (images := said.pop("images", None)):
        return said
    return said | {"content": [*parts_of(images, where), _text(said.get("content"))]}


def parts_of(images: object, where: str) -> Iterator[dict[str, Any]]:
    """The parts of a message of images in base64.

    Raises:
        Refusal: one is none.
    """
    for image in images if isinstance(images, list) else [images]:
        yield {"type": "image", "image": _decoded(image, f"{where}.images", "images")}


def _text(content: object) -> dict[str, Any]:
    return {"type": "text", "text": content or ""}


def _parts(content: Sequence[object], where: str) -> Iterator[object]:
    for part in content:
        if isinstance(part, Mapping) and part.get("type") in KINDS:
            yield {"type": "image", "image": _image(part, where)}
        else:
            yield text_part(part, where)


def _image(part: Mapping[str, Any], where: str) -> bytes:
    if part["type"] == "image":
        source = part.get("source")
        kind = source.get("type") if isinstance(source, Mapping) else None
        if not isinstance(source, Mapping) or kind != "base64":
            why = "is at an address, and nothing is fetched here" if kind == "url" else "is none"
            fix = "its source must be of type base64, with the image as data"
            raise _refusal(f"{where} has an image that {why}: {fix}", where)
        return _decoded(source.get("data"), where, where)
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(url, str) or (head := DATA.match(url)) is None:
        address = isinstance(url, str) and not url.startswith("data:")
        why = "is at an address, and nothing is fetched here" if address else "is none"
        fix = "its url must be data:image/png;base64,... with the image itself"
        raise _refusal(f"{where} has an image that {why}: {fix}", where)
    return _decoded(url[head.end() :], where, where)


def _decoded(text: object, where: str, param: str) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        pass
    raise _refusal(f"{where} has an image that is no base64", param)


def _refusal(why: str, param: str) -> Refusal:
    return Refusal(400, why, param=param)
