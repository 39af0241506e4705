"""What callers may ask with, made into tokens that were checked."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

from kvrt.checks import Wrong, as_index, items_of, shown
from kvrt.engine.pictures import Media, read_chat, read_illustrated
from kvrt.errors import CapacityError, ContextFull, RequestError
from kvrt.kv.cache import KVCache
from kvrt.kv.tiers.names import root_key
from kvrt.model.chat.messages import Message
from kvrt.model.chat.templates import Chat
from kvrt.model.loader import Model
from kvrt.model.vision.prompt import Illustrated, has_images
from kvrt.sampling import SamplingParams


class Array(Protocol):
    """Whole numbers as numpy and torch keep them."""

    @property
    def ndim(self) -> int: ...

    def tolist(self) -> Any: ...


class Encoding(Protocol):
    """What the tokenizers library returns."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def attention_mask(self) -> list[int]: ...


Tokenized = Mapping[str, Any] | Encoding
"""A tokenizer's output. A mapping has ``input_ids`` and may have an ``attention_mask``; tokens that
this hides are padding, and left out."""

Prompt = str | Sequence[int] | Sequence[Message] | Chat | Illustrated | Array | Tokenized
"""Text, token ids, chat messages (``{"role": "user", "content": "..."}``), those with more that the
chat template is to know, or text or token ids with images."""

MAX_SALT = 256


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as several. Arrays of two dimensions and mappings may be several.

    Raises:
        RequestError: it can be neither.
    """
    if isinstance(prompts, str | Chat | Illustrated):
        return [prompts]
    if (rows := _tokenized(prompts)) is not None:
        return rows
    if isinstance(prompts, Iterator):
        prompts = list(prompts)
    if hasattr(prompts, "tolist") and getattr(prompts, "ndim", 0) == 2:
        return list(prompts)  # type: ignore[arg-type]
    items = _items(prompts, "prompts")
    if items and (isinstance(items[0], int) or as_index(items[0]) is not None):
        return [items]
    return [items] if _are_messages(items) else list(items)


def read_prompt(prompt: Prompt, model: Model) -> tuple[list[int], Media]:
    """The token ids of a prompt, at least one, and its images.

    Raises:
        RequestError: it is empty, too long for any context, has a token that the model does not
            know, or images that the model cannot see or nobody can read.
    """
    if isinstance(prompt, Illustrated):
        return read_illustrated(prompt, lambda text: tokens_of(text, model), model)
    messages = prompt.messages if isinstance(prompt, Chat) else prompt
    if not has_images(messages):
        return tokens_of(prompt, model), ()
    chat = prompt if isinstance(prompt, Chat) else Chat(cast(Sequence[Message], prompt))
    _check_length(sum(map(_length, chat.messages)), model)
    return read_chat(chat, model)


def tokens_of(prompt: Prompt, model: Model) -> list[int]:
    """The token ids of a prompt without images; the rest as `read_prompt`."""
    if isinstance(prompt, str):
        _check_length(len(prompt), model)
        tokens = model.encode(prompt) if prompt else []  # it may begin with a token of its own
    elif isinstance(prompt, Chat):
        tokens = _of_chat(prompt, prompt.messages, model)
    else:
        items = _one(prompt)
        if _are_messages(items):
            tokens = _of_chat(items, items, model)
        else:
            tokens = _checked(items, model.spec.vocab)
    if not tokens:
        raise RequestError("the prompt is empty", param="prompt", fix="give some text")
    return tokens


def _of_chat(
    chat: Chat | Sequence[Message], messages: Sequence[Message], model: Model
) -> list[int]:
    if isinstance(messages, Sequence):
        _check_length(sum(map(_length, messages)), model)
    return model.encode_chat(chat)


def _check_length(characters: int, model: Model) -> None:
    """A text that no context has room for is not even made into tokens, which takes seconds."""
    longest = model.tokenizer.longest if model.tokenizer is not None else 1
    if model.tokenizer is not None and characters > model.max_model_len * longest:
        raise RequestError(
            f"the prompt has {characters} characters; the context has room for "
            f"{model.max_model_len} tokens, of at most {longest} characters each",
            param="prompt",
            fix="shorten the prompt, or raise max_model_len if the model allows it",
        )


def _length(message: object) -> int:
    """Characters of a chat message's text, which may be in parts."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, list | tuple):
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping))
    return len(content) if isinstance(content, str) else 0


def _checked(items: Sequence[object], vocab: int) -> list[int]:
    tokens = []
    for place, item in enumerate(items):
        token = item if type(item) is int else as_index(item)
        if token is None or not 0 <= token < vocab:
            raise RequestError(
                f"token {place} of the prompt is {shown(item)}, not a number from 0 to {vocab - 1}",
                param="prompt",
            )
        tokens.append(token)
    return tokens


def _one(prompt: object) -> Sequence[Any]:
    """The messages or token ids of a prompt that is no text."""
    rows = _tokenized(prompt)
    if rows is None:
        return _items(prompt, "prompt")
    if len(rows) != 1:
        raise RequestError(f"prompt has {len(rows)} rows", param="prompt", fix="use generate")
    return _items(rows[0], "prompt")


def _tokenized(output: object) -> list[Any] | None:
    """The prompts in a tokenizer's output, without their padding; None: it is something else."""
    if hasattr(output, "ids") and hasattr(output, "attention_mask"):
        output = {"input_ids": output.ids, "attention_mask": output.attention_mask}
    if not isinstance(output, Mapping) or "input_ids" not in output:
        return None
    rows = _rows(output["input_ids"])
    if (mask := output.get("attention_mask")) is None:
        return rows
    masks = _rows(mask)
    if list(map(len, rows)) != list(map(len, masks)):
        raise RequestError("the prompt's input_ids and attention_mask differ", param="prompt")
    return [list(itertools.compress(*pair)) for pair in zip(rows, masks, strict=True)]


def _rows(ids: Any) -> list[Sequence[Any]]:
    """Lists of token ids, or the one that `ids` is."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    items = _items(ids, "prompt")
    if items and as_index(items[0]) is None:
        return [_items(row, "prompt") for row in items]
    return [items]


def _are_messages(items: Sequence[object]) -> bool:
    return bool(items) and isinstance(items[0], Mapping) and "input_ids" not in items[0]


def _items(value: object, name: str) -> Sequence[Any]:
    try:
        return items_of(value)
    except Wrong as wrong:
        fix = "give text, token ids, messages, or what a tokenizer returned"
        raise RequestError(f"{name} {wrong}", param=name, fix=fix) from None


def bad_words_of(params: SamplingParams, model: Model) -> list[list[int]]:
    """The token ids of each word that is not to be said: as it begins a text, and as it goes on.

    Raises:
        RequestError: there is no tokenizer; or a biased token is not the model's.
    """
    vocab = model.spec.vocab
    for token, _ in params.biases:
        if token >= vocab:
            raise RequestError(
                f"logit_bias has token {token}; the model has those from 0 to {vocab - 1}",
                param="logit_bias",
            )
    forms = [
        form for word in params.bad_words for form in (word, f" {word.lstrip()}") if form != " "
    ]
    words = [model.encode(form, special=False) for form in dict.fromkeys(forms)]
    return [word for word in words if word]


def room_for(tokens: Sequence[int], model: Model, cache: KVCache, new: int = 1) -> int:
    """Tokens that a prompt and its answer can have together; `new` more than the prompt has.

    Raises:
        ContextFull: the prompt fills the context.
        CapacityError: it fills the memory limit.
    """
    room = min(model.max_model_len, cache.capacity_tokens)
    if len(tokens) + new > model.max_model_len:
        raise ContextFull(
            f"the prompt has {len(tokens)} tokens; the context has room for "
            f"{model.max_model_len}, the output included",
            tokens=len(tokens),
            room=model.max_model_len,
            fix="shorten the prompt, or raise max_model_len if the model allows it",
        )
    if len(tokens) + new > room:
        raise CapacityError(
            f"the prompt has {len(tokens)} tokens; the memory limit has room for {room}",
            needed=cache.bytes_for(len(tokens) + new),
            free=cache.stats().limit_bytes,
            fix="raise memory_limit",
        )
    return room


def root_of(fingerprint: bytes, salt: str) -> bytes:
    """What the names of a tenant's pages begin with.

    Args:
        fingerprint: of all pages; see `kvrt.engine.fingerprint.page_fingerprint`.

    Raises:
        RequestError: the salt is no printable text of at most `MAX_SALT` characters.
    """
    wrong = ""  # a salt may be a secret
    if not isinstance(salt, str):
        wrong = f"is a {type(salt).__name__}"
    elif len(salt) > MAX_SALT:
        wrong = f"has {len(salt)} characters"
    elif not salt.isprintable():
        wrong = "has characters that cannot be printed"
    if wrong:
        raise RequestError(
            f"cache_salt {wrong}; it must be printable text of at most {MAX_SALT} characters",
            param="cache_salt",
        )
    return root_key(fingerprint, salt)
