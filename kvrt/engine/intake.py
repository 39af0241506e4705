"""A request as the engine takes it, made of what a caller asks: checked, in the caller's thread."""

import functools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvrt.checks import Checks, Flag, Maybe, Of, Text, Whole, Wholes, check_request
from kvrt.config import RuntimeConfig, draft_limit
from kvrt.engine.adapters import fingerprint_with
from kvrt.engine.pictures import check_blocks
from kvrt.engine.prompts import Prompt, bad_words_of, read_prompt, room_for, root_of
from kvrt.engine.request import Request
from kvrt.engine.worker import Worker
from kvrt.errors import RequestError
from kvrt.kv.tiers.names import KEY_BYTES, chain
from kvrt.outputs import Delta, Result
from kvrt.sampling import SamplingParams

MOST_FORCED = 16
"""Tokens that a constraint leaves no choice of: a key of JSON has fewer."""

MOST_SAID = 1 << 24
"""Tokens that an answer may have said elsewhere; the context is the limit that counts."""

STREAM: Checks = {
    "params": Maybe(Of((SamplingParams,), "kvrt.SamplingParams(max_tokens=...)")),
    "request_id": Maybe(Text(256)),
    "priority": Whole(-(2**63), 2**63 - 1),
    "private": Flag(),
    "adapter": Maybe(Text(256)),
    "said": Wholes(MOST_SAID, 0, 2**31 - 1),
}
"""Of each argument, what it may be; prompts and salts are checked in `kvrt.engine.prompts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is asked with a prompt; see `kvrt.Runtime.stream`."""

    params: SamplingParams | None = None
    request_id: str | None = None
    priority: int = 0
    cache_salt: str = ""
    private: bool = False
    adapter: str | None = None
    metadata: Any = None
    said: Sequence[int] = ()


def request_of(
    worker: Worker,
    config: RuntimeConfig,
    prompt: Prompt,
    wishes: Wishes,
    deliver: Callable[[Delta | Result], None],
) -> Request:
    """Everything that takes time and can be done where only this caller waits for it: on the
    engine's thread all would.

    Args:
        deliver: called on the engine's thread with each piece, and last with the result.

    Raises:
        RequestError: the request is bad.
        CapacityError: its prompt could never fit in the memory limit.
    """
    checked = check_request(
        STREAM,
        params=wishes.params,
        request_id=wishes.request_id,
        priority=wishes.priority,
        private=wishes.private,
        adapter=wishes.adapter,
        said=wishes.said,
    )
    params = wishes.params or SamplingParams()
    model = worker.model
    tokens, media = read_prompt(prompt, model)
    check_blocks(media, config.max_batch_tokens, config.max_running)
    room = room_for(tokens, model, worker.cache, 0 if params.scores_only else 1)
    seed = params.seed
    if seed is None:
        seed = secrets.randbits(64) if config.seed is None else config.seed
    max_new = room - len(tokens) if params.max_tokens is None else params.max_tokens
    max_len = min(room, len(tokens) + max_new)
    said = _said_of(checked["said"], params, model.spec.vocab, max_len - len(tokens))
    private = wishes.private
    adapter = worker.adapters.named(checked["adapter"])
    root = root_of(fingerprint_with(worker.fingerprint, adapter), wishes.cache_salt)
    if private:
        root = secrets.token_bytes(KEY_BYTES)
    named = config.prefix_cache and not private and params.prompt_logprobs is None
    return Request(
        id=checked["request_id"] or f"request-{secrets.token_hex(8)}",
        prompt=tuple(tokens),
        params=params,
        seed=seed,
        max_len=max_len,
        priority=checked["priority"],
        tenant=wishes.cache_salt,
        root=root,
        adapter=adapter,
        media=media,
        names=tuple(chain(root, tokens[:-1], config.page_size, media)) if named else (),
        shares=not private,
        said=said,
        drafts=_drafts_of(params, config),
        forced=_forced_of(params),
        bad_words=bad_words_of(params, model),
        guides=None if params.constraint is None else worker.guides.of(params.constraint),
        metadata=wishes.metadata,
        detokenizer=functools.partial(
            model.detokenizer, tokens, skip_special=params.skip_special_tokens
        ),
        deliver=deliver,
    )


def _said_of(said: Sequence[int], params: SamplingParams, vocab: int, room: int) -> tuple[int, ...]:
    """Tokens that were said elsewhere.

    Raises:
        RequestError: they are none, or there is nothing left to be said behind them.
    """
    if not said:
        return ()
    if params.n > 1 or params.beam_width > 1 or params.logprobs is not None:
        what = "said: only one completion, without log-probabilities, goes on behind it"
        raise RequestError(what, param="said", fix="ask without it")
    if max(said) >= vocab:
        raise RequestError(f"said: token ids are from 0 to {vocab - 1}", param="said")
    if len(said) >= room:
        raise RequestError("said: it leaves no room for another token", param="said")
    return tuple(said)


def _drafts_of(params: SamplingParams, config: RuntimeConfig) -> int:
    """How many tokens may be guessed in a step."""
    if params.beam_width > 1:
        return 0
    if params.speculate is not None:
        return params.speculate
    return draft_limit(config.speculate, by_model=config.draft_model is not None)


def _forced_of(params: SamplingParams) -> int:
    """How many tokens may be taken for given in a step, where a constraint leaves no choice."""
    wanted = params.constraint is not None and params.beam_width == 1 and params.speculate != 0
    return MOST_FORCED if wanted else 0
