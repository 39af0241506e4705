"""Images of prompts: where they stand among the tokens, and what the model sees of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kvrt.errors import RequestError
from kvrt.kv.tiers.media import Medium
from kvrt.model.chat.templates import Chat
from kvrt.model.loader import Model
from kvrt.model.vision.pixels import Picture
from kvrt.model.vision.prompt import Illustrated, chat_text, mark_of, places, spread
from kvrt.model.vision.vision import Vision

if TYPE_CHECKING:
    from torch import Tensor

Media = tuple[Medium, ...]


def read_chat(chat: Chat, model: Model) -> tuple[list[int], Media]:
    """The tokens of a conversation with images, and these.

    Raises:
        RequestError: as `kvrt.engine.prompts.read_prompt`.
    """
    vision = _vision_of(model)
    tokenizer = model.need_tokenizer()
    text, images = chat_text(chat, tokenizer, vision.spec)
    _check_number(images, vision)
    text = spread(text, len(images), vision.spec, tokenizer)
    return _placed(model.encode(text, special=False), images, vision)


def read_illustrated(
    prompt: Illustrated, tokens_of: Callable[[Any], list[int]], model: Model
) -> tuple[list[int], Media]:
    """The tokens of a text with images, and these.

    Args:
        tokens_of: makes tokens of a prompt without any.

    Raises:
        RequestError: as `kvrt.engine.prompts.read_prompt`.
    """
    vision = _vision_of(model)
    images = prompt.images
    if isinstance(images, str | bytes) or not isinstance(images, Sequence) or not images:
        raise RequestError("images must be a list of at least one", param="images")
    _check_number(images, vision)
    text = prompt.prompt
    if isinstance(text, str):
        tokenizer = model.need_tokenizer()
        mark = mark_of(vision.spec, tokenizer)
        text = text if mark in text else mark * len(images) + text
        text = spread(text, len(images), vision.spec, tokenizer)
    return _placed(tokens_of(text), images, vision)


def check_blocks(media: Media, batch: int, running: int) -> None:
    """That a step has room for the tokens that are computed in one, beside one of each other
    sequence.

    Args:
        batch: tokens of a step.
        running: sequences that run at once.

    Raises:
        RequestError: it has not.
    """
    most = max((medium.count for medium in media if medium.together), default=0)
    if most and most > batch - (running - 1):
        raise RequestError(
            f"an image is {most} tokens, which are computed in one step; of max_batch_tokens"
            f" {batch}, max_running {running} leaves {max(0, batch - running + 1)}",
            param="images",
            fix=f"raise max_batch_tokens to {most + running - 1}, or lower max_running",
        )


def states_by(model: Model) -> "Callable[[Medium], Tensor]":
    """What gives the states of an image that has been read."""

    def states(medium: Medium) -> "Tensor":
        vision = model.vision
        assert isinstance(vision, Vision), "who sees nothing takes no images"
        return vision.states(cast(Picture, medium.content))

    return states


def _vision_of(model: Model) -> Vision:
    if isinstance(model.vision, str):
        raise RequestError(
            f"{Path(model.name).name} {model.vision}",
            param="images",
            fix="leave images out, or load a model that sees: docs/images.md",
        )
    return model.vision


def _check_number(images: Sequence[object], vision: Vision) -> None:
    if len(images) > vision.most:
        raise RequestError(
            f"the prompt has {len(images)} images; at most {vision.most} are taken",
            param="images",
            fix="raise max_images",
        )


def _placed(tokens: list[int], images: Sequence[Any], vision: Vision) -> tuple[list[int], Media]:
    spec = vision.spec
    starts = places(tokens, len(images), spec)
    pictures = [vision.read(image, place) for place, image in enumerate(images)]
    media = (
        Medium(start, spec.tokens, picture.digest, together=True, content=picture)
        for start, picture in zip(starts, pictures, strict=True)
    )
    return tokens, tuple(media)
