"""What answers of llama-server tell besides the text: how fast, how sampled, how likely."""

from collections.abc import Mapping, Sequence
from typing import Any

import kvrt
from kvrt.outputs import Completion, Result, TokenLogprobs
from kvrt.sampling import BAN, SamplingParams
from kvrt.server.llama.fields import SAMPLERS, Wishes
from kvrt.server.llama.settings import OFF
from kvrt.server.llama.watch import seconds_of
from kvrt.server.openai.shared import number
from kvrt.server.served import Served

DRAWN = 2**32 - 1
"""The seed where none was asked for."""

BUILD = f"kvrt-{kvrt.__version__}"
"""What built the server: there is no number of a build of llama.cpp."""


def timings(result: Result, completion: Completion | None = None) -> dict[str, Any]:
    """How long an answer took, or all to one prompt."""
    prompt, answer = seconds_of(result)
    usage = result.usage
    said = usage.completion_tokens if completion is None else len(completion.token_ids)
    told = paced(usage.prompt_tokens, usage.cached_tokens, prompt, said, answer)
    if usage.drafted_tokens:
        told |= {"draft_n": usage.drafted_tokens, "draft_n_accepted": usage.accepted_tokens}
    return told


def paced(
    prompt: int, cached: int, prompt_seconds: float, said: int, said_seconds: float
) -> dict[str, Any]:
    """``timings``: milliseconds, and tokens a second. The first token comes with the prompt."""
    computed, steps = prompt - cached, max(0, said - 1)
    return {
        "cache_n": cached,
        "prompt_n": computed,
        "prompt_ms": prompt_seconds * 1e3,
        "prompt_per_token_ms": prompt_seconds * 1e3 / computed if computed else 0.0,
        "prompt_per_second": computed / prompt_seconds if prompt_seconds else 0.0,
        "predicted_n": said,
        "predicted_ms": said_seconds * 1e3,
        "predicted_per_token_ms": said_seconds * 1e3 / steps if steps else 0.0,
        "predicted_per_second": steps / said_seconds if said_seconds else 0.0,
    }


def settings(
    params: SamplingParams,
    wishes: Wishes | None,
    lora: Sequence[Mapping[str, Any]],
    *,
    stream: bool,
    wanted: int | None,
    thinks: bool = False,
    chat: bool = False,
) -> dict[str, Any]:
    """``generation_settings``: how the tokens of an answer are chosen.

    Args:
        wishes: what the request said; None: it is nobody's.
        wanted: likeliest tokens that are told with each one; None: none.
        thinks: reasoning is told apart.
        chat: it is of a conversation.
    """
    seed = wishes.seed if wishes is not None and wishes.seed is not None else DRAWN
    most = -1 if params.max_tokens is None else params.max_tokens
    asked = Wishes() if wishes is None else wishes
    constraint = params.constraint
    return {
        "seed": seed,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        **OFF,
        "repeat_last_n": 64 if asked.repeat_last_n is None else asked.repeat_last_n,
        "repeat_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_sequence_breakers": ["\n", ":", '"', "*"],
        "stop": list(params.stop),
        "max_tokens": most,
        "n_predict": most,
        "n_keep": asked.n_keep or 0,
        "n_discard": asked.n_discard or 0,
        "ignore_eos": params.ignore_eos,
        "stream": stream,
        "logit_bias": [
            {"bias": None if bias <= BAN else bias, "token": token} for token, bias in params.biases
        ],
        "n_probs": wanted or 0,
        "min_keep": asked.min_keep or 0,
        "grammar": "" if constraint is None else constraint.source,
        "grammar_lazy": False,
        "grammar_triggers": [],
        "preserved_tokens": [],
        "chat_format": "peg-native" if chat else "Content-only",
        "reasoning_format": "deepseek" if thinks else "none",
        "reasoning_in_content": False,
        "generation_prompt": "",
        "samplers": list(SAMPLERS),
        "speculative.types": "none",
        "timings_per_token": bool(asked.timings_per_token),
        "post_sampling_probs": False,
        "backend_sampling": False,
        "lora": list(lora),
    }


LONG = ("dry_sequence_breakers", "stop", "logit_bias", "grammar", "grammar_lazy",
        "grammar_triggers", "preserved_tokens")  # fmt: skip
"""Of `settings`, what ``/slots`` and ``/props`` leave out: it may tell what a request said."""


def short(told: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` without what may tell what a request said."""
    return {name: value for name, value in told.items() if name not in LONG}


def probabilities(
    served: Served, entries: Sequence[TokenLogprobs], top: int
) -> list[dict[str, Any]]:
    """Each token with its log-probability, and those of so many likeliest in its place."""

    def told(token: int, logprob: float) -> dict[str, Any]:
        text = served.token_text(token)
        return {
            "id": token,
            "token": text,
            "bytes": list(text.encode()),
            "logprob": number(logprob),
        }

    return [
        {
            **told(entry.token_id, entry.logprob),
            "top_logprobs": [told(*pair) for pair in entry.top[:top]],
        }
        for entry in entries
    ]
