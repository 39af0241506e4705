"""What Dynamo asks for, in kvrt's words, and what kvrt answers, in Dynamo's."""

from collections.abc import Callable, Mapping
from typing import Any

from kvrt.errors import RequestError
from kvrt.outputs import Delta, TokenLogprobs
from kvrt.sampling import SamplingParams

REASONS = {"stop": "stop", "length": "length", "abort": "cancelled"}
"""Dynamo's words for ours; what is none of them is an error."""

SAMPLING = {
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed",
}  # fmt: skip
STOPPING = {"max_tokens", "min_tokens", "ignore_eos", "stop_token_ids", "stop_token_ids_hidden"}
ELSEWHERE = {"stop", "include_stop_str_in_output", "max_thinking_tokens"}
"""What the front end sees to, or what is a hint."""


def params_of(request: Mapping[str, Any]) -> SamplingParams:
    """What Dynamo asks for, in kvrt's words. What is not said is as in OpenAI's API.

    Raises:
        RequestError: a value cannot be, or something is asked for that is not offered here.
    """
    fields: dict[str, Any] = {"temperature": 1.0}
    ends: list[int] = []
    for part, offered in (("sampling_options", SAMPLING), ("stop_conditions", STOPPING)):
        for name, value in (request.get(part) or {}).items():
            unsaid = value is None or value is False or value == []
            if unsaid or name in ELSEWHERE or (name, value) == ("n", 1):
                continue
            if name not in offered:
                raise RequestError(
                    f"{name} is not offered by this worker",
                    fix="leave it out, or ask `kvrt serve`",
                    param=name,
                )
            if name.startswith("stop_token_ids"):
                ends += value
            else:
                fields[name] = value
    if fields.get("top_k") == -1:  # none
        del fields["top_k"]
    output = request.get("output_options") or {}
    if output.get("prompt_logprobs") is not None:
        raise RequestError("prompt_logprobs is not offered by this worker", param="prompt_logprobs")
    return SamplingParams(**fields, stop_token_ids=ends, logprobs=output.get("logprobs"))


def chunk_of(
    delta: Delta, prompt: int, said: int, cached: int, text: Callable[[int], str]
) -> dict[str, Any]:
    """A piece of an answer, as Dynamo has it.

    Args:
        prompt, said, cached: tokens of the prompt, of the answer so far, and of the prompt those
            that were not computed.
        text: of a token.
    """
    chunk: dict[str, Any] = {"token_ids": list(delta.token_ids), "index": delta.index}
    if delta.logprobs is not None:
        chunk["log_probs"] = [each.logprob for each in delta.logprobs]
        chunk["top_logprobs"] = [_top(each, text) for each in delta.logprobs]
    if delta.finish_reason is not None:
        chunk["finish_reason"] = REASONS.get(delta.finish_reason, "error")
        chunk["completion_usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": said,
            "total_tokens": prompt + said,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
    return chunk


def _top(one: TokenLogprobs, text: Callable[[int], str]) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "token_id": token, "token": text(token), "logprob": logprob}
        for rank, (token, logprob) in enumerate(one.top, 1)
    ]
