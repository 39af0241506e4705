"""Prompts that have images, and where these stand among the tokens.

    messages   {"type": "image", "image": FILE}      a template writes a mark in its place
    text       "What is <mark>?"                     the same; without marks, images come first
    tokens     ... begin image image image end ...   as they are

In a text, each mark becomes the tokens that stand for an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from kvrt.errors import RequestError
from kvrt.model.chat.messages import Message
from kvrt.model.chat.templates import Chat
from kvrt.model.tokens.tokenizer import Tokenizer
from kvrt.model.vision.spec import VisionSpec

if TYPE_CHECKING:
    from kvrt.model.vision.pixels import Image


@dataclass(frozen=True, slots=True)
class Illustrated:
    """A text, or token ids, with images.

    Args:
        prompt: the text, with the model's own mark where each image stands (Gemma 3:
            ``<start_of_image>``), or without, and then they stand before it; or the tokens, with
            those that stand for images.
        images: in their order: the bytes of a file, its `pathlib.Path`, or an image of pillow.
    """

    prompt: str | Sequence[int]
    images: Sequence["Image"] = field(repr=False)


def apart(
    messages: Sequence[Message], mark: str
) -> tuple[list[Message], list[Any]]:  # whatever came as an image
    """Messages with a mark in the place of each image, and the images.

    Raises:
        RequestError: a part that is to be an image has none.
    """
    images: list[Any] = []

    def plain(part: object, where: str) -> object:
        if not isinstance(part, Mapping) or part.get("type") != "image":
            return part
        if part.get("image") is None:
            raise RequestError(
                f'{where} has an image without one; a part is {{"type": "image", "image": FILE}}',
                param=f"{where}.content",
            )
        images.append(part["image"])
        return {"type": "image", "text": mark}

    found: list[Message] = []
    for place, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list | tuple):
            parts = [plain(part, f"messages[{place}]") for part in content]
            message = {**message, "content": parts}
        found.append(message)
    return found, images


def has_images(messages: object) -> bool:
    """Whether these are messages, and some have images."""
    listed = isinstance(messages, list | tuple) and messages and isinstance(messages[0], Mapping)
    return bool(listed) and any(
        isinstance(part, Mapping) and part.get("type") == "image"
        for message in cast(Sequence[object], messages)
        if isinstance(message, Mapping) and isinstance(message.get("content"), list | tuple)
        for part in message["content"]
    )


def chat_text(chat: Chat, tokenizer: Tokenizer, spec: VisionSpec) -> tuple[str, list[Any]]:
    """What a chat template writes, with marks, and the images."""
    messages, images = apart(chat.messages, _written(spec.mark, tokenizer))
    return tokenizer.render(replace(chat, messages=messages)), images


def with_marks(text: str, count: int, spec: VisionSpec, tokenizer: Tokenizer) -> str:
    """A text with a mark for each of so many images in front, if it has none."""
    if _written(spec.mark, tokenizer) in text:
        return text
    return "".join(_written(token, tokenizer) for token in spec.alone) * count + text


def spread(text: str, counts: Sequence[int], spec: VisionSpec, tokenizer: Tokenizer) -> str:
    """A text in which each mark has become the tokens of an image.

    Args:
        counts: of each image, its states.

    Raises:
        RequestError: there are not as many marks.
    """
    between = text.split(_written(spec.mark, tokenizer))
    if len(between) - 1 != len(counts):
        raise RequestError(
            f"the prompt has {_images(len(counts))}, and its text has {len(between) - 1} marks of"
            " images",
            param="images",
            fix="leave the marks out of texts, or have one for each image",
        )

    def written(piece: int | str, count: int) -> str:
        if isinstance(piece, str):
            return piece
        return _written(piece, tokenizer) * (count if piece == spec.image else 1)

    said = [between[0]]
    for count, after in zip(counts, between[1:], strict=True):
        said += [*(written(piece, count) for piece in spec.replaces), after]
    return "".join(said)


def places(tokens: Sequence[int], counts: Sequence[int], spec: VisionSpec) -> list[int]:
    """Where the tokens of each image begin.

    Args:
        counts: of each image, its states.

    Raises:
        RequestError: the prompt has not the tokens of so many images, each in a row.
    """
    found = [place for place, token in enumerate(tokens) if token == spec.image]
    starts, at = list[int](), 0
    for count in counts:
        run = found[at : at + count]
        if len(run) < count or run[-1] - run[0] != count - 1:
            break
        starts.append(run[0])
        at += count
    if len(starts) < len(counts) or at < len(found):
        raise RequestError(
            f"the prompt has {_images(len(counts))}, and {len(found)} tokens that stand for images;"
            f" there must be {' and '.join(map(str, counts))}, each in a row",
            param="images",
            fix="leave the model's own tokens for images out of texts",
        )
    return starts


def _written(token: int, tokenizer: Tokenizer) -> str:
    text = tokenizer.token(token)
    if text is None:
        raise RequestError(
            f"the model's tokenizer has no token {token}, which config.json names for images",
            param="images",
            fix="use the tokenizer.json that belongs to the model",
        )
    return text


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
