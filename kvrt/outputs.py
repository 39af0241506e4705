"""What a request gives back. Frozen values; no torch."""

from dataclasses import dataclass
from typing import Any, Literal

from kvrt.errors import KvrtError

FinishReason = Literal["stop", "length", "abort", "capacity", "error"]
"""Why a completion ended:

stop       an end token, a stop token or a stop string
length     max_tokens reached, or the context is full
abort      the caller aborted it
capacity   no memory was left to go on, even alone
error      see `Result.error`
"""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token's log-probability under the model, before penalties and temperature.

    Args:
        token_id: the token that stands here.
        logprob: its natural logarithm of probability.
        top: the likeliest tokens here and theirs, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One of a request's `n` completions; of beams, the best one first.

    Args:
        text: ends before a stop string.
        logprobs: of each token, if they were asked for.
        score: of a beam; see `kvrt.sched.beams`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the request.

    Args:
        prompt_tokens: of the prompt.
        completion_tokens: of all completions.
        preemptions: how often its pages were taken, to be had again later.
        cached_tokens: of the prompt; not computed, because their pages were there.
        drafted_tokens: guessed and computed in advance, by speculation.
        accepted_tokens: how many of those came true, and are completion tokens.
    """

    prompt_tokens: int
    completion_tokens: int
    preemptions: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds. `queued`: until first scheduled; `first_token` and `total`: since submission."""

    queued: float
    first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class Result:
    """All of one request. For n = 1, `text`, `token_ids` and `finish_reason` are at hand.

    Args:
        metadata: what the caller gave with the request, and kvrt never looks at.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    usage: Usage
    timings: Timings
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    error: KvrtError | None = None
    metadata: Any = None

    @property
    def text(self) -> str:
        return self.completions[0].text if self.completions else ""

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.completions[0].token_ids if self.completions else ()

    @property
    def finish_reason(self) -> FinishReason:
        return self.completions[0].finish_reason if self.completions else "error"


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streaming completion.

    Args:
        index: which of the request's completions.
        text: new text; may be empty while a character or a possible stop string is incomplete.
        token_ids: new tokens.
        finish_reason: set on the completion's last piece.
        logprobs: of each new token, if they were asked for.
        again: it was said elsewhere, before the request came here; see `kvrt.Runtime.stream`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    again: bool = False
