"""What completions and chat completions have in common."""

from collections.abc import Sequence
from typing import Any

import msgspec

from kvrt.outputs import FinishReason, Result, TokenLogprobs
from kvrt.server.served import Served
from kvrt.server.wire.http import event
from kvrt.server.words.fields import Sampling

DONE = event(b"[DONE]")
LOWEST = -9999.0
"""A log-probability that JSON has a number for."""


class StreamOptions(msgspec.Struct):
    """What a stream has besides."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Common(Sampling, kw_only=True):
    """Fields of both. Those of the last group are taken and change nothing here."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    user: str | None = None

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def usage(results: Sequence[Result]) -> dict[str, Any]:
    """Of all results together."""
    prompt = sum(result.usage.prompt_tokens for result in results)
    said = sum(result.usage.completion_tokens for result in results)
    cached = sum(result.usage.cached_tokens for result in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def finish_reason(reason: FinishReason | None) -> str | None:
    """In the API's words; what ends otherwise ends with an error."""
    return reason if reason in ("stop", "length", None) else "length"


def token_entries(
    served: Served, entries: Sequence[TokenLogprobs], top: int
) -> list[dict[str, Any]]:
    """Each token's log-probability, and those of so many likeliest in its place."""

    def told(token: int, logprob: float) -> dict[str, Any]:
        text = served.token_text(token)
        return {"token": text, "logprob": number(logprob), "bytes": list(text.encode())}

    return [
        {
            **told(entry.token_id, entry.logprob),
            "top_logprobs": [told(*pair) for pair in entry.top[:top]],
        }
        for entry in entries
    ]


def number(logprob: float) -> float:
    return max(logprob, LOWEST)
