"""Images of prompts, read, and where they stand among the tokens."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvrt.errors import RequestError
from kvrt.kv.tiers.media import Medium
from kvrt.model.chat.templates import Chat
from kvrt.model.loader import Model
from kvrt.model.vision.pixels import Picture
from kvrt.model.vision.prompt import Illustrated, chat_text, places, spread, with_marks
from kvrt.model.vision.spec import VisionSpec
from kvrt.model.vision.vision import Vision

Media = tuple[Medium, ...]


def read_chat(chat: Chat, model: Model) -> tuple[list[int], Media]:
    """The tokens of a conversation with images, and these.

    Raises:
        RequestError: as `kvrt.engine.prompts.read_prompt`.
    """
    vision = _vision_of(model)
    tokenizer = model.need_tokenizer()
    text, images = chat_text(chat, tokenizer, vision.spec)
    pictures = _read(images, vision)
    text = spread(text, [each.tokens for each in pictures], vision.spec, tokenizer)
    return _placed(model.encode(text, special=False), pictures, vision.spec)


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
    pictures = _read(images, vision)
    text = prompt.prompt
    if isinstance(text, str):
        tokenizer = model.need_tokenizer()
        text = with_marks(text, len(pictures), vision.spec, tokenizer)
        text = spread(text, [each.tokens for each in pictures], vision.spec, tokenizer)
    return _placed(tokens_of(text), pictures, vision.spec)


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


def _vision_of(model: Model) -> Vision:
    if isinstance(model.vision, str):
        raise RequestError(
            f"{Path(model.name).name} {model.vision}",
            param="images",
            fix="leave images out, or load a model that sees: docs/images.md",
        )
    return model.vision


def _read(images: Sequence[Any], vision: Vision) -> list[Picture]:
    if len(images) > vision.most:
        raise RequestError(
            f"the prompt has {len(images)} images; at most {vision.most} are taken",
            param="images",
            fix="raise max_images",
        )
    return [vision.read(image, place) for place, image in enumerate(images)]


def _placed(
    tokens: list[int], pictures: Sequence[Picture], spec: VisionSpec
) -> tuple[list[int], Media]:
    starts = places(tokens, [each.tokens for each in pictures], spec)
    media = (
        Medium(start, each.tokens, each.digest, together=spec.together, content=each)
        for start, each in zip(starts, pictures, strict=True)
    )
    return tokens, tuple(media)
