"""What callers may ask with, made into tokens that were checked."""

from collections.abc import Mapping, Sequence

from kvrt.cache import KVCache
from kvrt.errors import CapacityError, RequestError
from kvrt.model.chat import Chat
from kvrt.model.loader import Model
from kvrt.model.messages import Message
from kvrt.tiers.names import root_key

Prompt = str | Sequence[int] | Sequence[Message] | Chat
"""Text, token ids, chat messages (``{"role": "user", "content": "..."}``), or those with more that
the chat template is to know."""

MAX_SALT = 256


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as several."""
    if isinstance(prompts, str | Chat) or (prompts and isinstance(prompts[0], int | Mapping)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def tokens_of(prompt: Prompt, model: Model) -> list[int]:
    """The token ids of a prompt; at least one.

    Raises:
        RequestError: it is empty, or has a token that the model does not know.
    """
    if isinstance(prompt, str):
        tokens = model.encode(prompt)
    elif isinstance(prompt, Chat) or (prompt and isinstance(prompt[0], Mapping)):
        tokens = model.encode_chat(prompt)  # type: ignore[arg-type]
    else:
        tokens = list(prompt)  # type: ignore[arg-type]
    vocab = model.spec.vocab
    for place, token in enumerate(tokens):
        if not isinstance(token, int) or not 0 <= token < vocab:
            what = token if isinstance(token, int) else type(token).__name__  # no text of prompts
            raise RequestError(
                f"token {place} of the prompt is {what}, not a number from 0 to {vocab - 1}",
                param="prompt",
            )
    if not tokens or prompt == "":
        raise RequestError("the prompt is empty", param="prompt", fix="give some text")
    return tokens


def room_for(tokens: Sequence[int], model: Model, cache: KVCache) -> int:
    """Tokens that a prompt and its answer can have together; more than the prompt has.

    Raises:
        RequestError: the prompt fills the context.
        CapacityError: it fills the memory limit.
    """
    room = min(model.max_model_len, cache.capacity_tokens)
    if len(tokens) >= model.max_model_len:
        raise RequestError(
            f"the prompt has {len(tokens)} tokens; the context has room for "
            f"{model.max_model_len}, the output included",
            param="prompt",
            fix="shorten the prompt, or raise max_model_len if the model allows it",
        )
    if len(tokens) >= room:
        raise CapacityError(
            f"the prompt has {len(tokens)} tokens; the memory limit has room for {room}",
            needed=len(tokens) * cache.geometry.page_bytes // cache.geometry.page_size,
            free=cache.stats().limit_bytes,
            fix="raise memory_limit",
        )
    return room


def root_of(pages_of: bytes, salt: str) -> bytes:
    """What the names of a tenant's pages begin with.

    Args:
        pages_of: the fingerprint of all pages; see `kvrt.storing.page_fingerprint`.

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
    return root_key(pages_of, salt)
