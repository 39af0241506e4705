"""Choosing the next token from logits.

A row's choice depends on its logits, its parameters, its seed and its position, and on nothing
else: not on the batch, and not on how often the request was preempted. The draw for a position is
one number from a counter-based generator (Philox: Salmon et al. 2011) under the request's seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from kvrt.outputs import TokenLogprobs
from kvrt.sampling import SamplingParams

_FIRST_CANDIDATES = 256  # top-p rarely keeps more; sorting a whole vocabulary costs milliseconds


@dataclass(frozen=True, slots=True)
class Choice:
    """One row to sample.

    Args:
        params: how.
        seed: of the completion, already told apart from its siblings'.
        prompt: the prompt's token ids (for the repetition penalty).
        output: the token ids generated so far; their number is the position of the draw.
    """

    params: SamplingParams
    seed: int
    prompt: Sequence[int]
    output: Sequence[int]


@dataclass(frozen=True, slots=True)
class Chosen:
    token_id: int
    logprobs: TokenLogprobs | None = None


def sample(logits: torch.Tensor, choices: Sequence[Choice]) -> list[Chosen]:
    """Choose a token for each row of `logits`, float32 [rows, vocabulary]; the logits are kept."""
    greedy = _argmax(logits) if any(c.params.greedy for c in choices) else []
    chosen = []
    for row, choice in enumerate(choices):
        params = choice.params
        if params.greedy and not params.penalized:
            token = greedy[row]
        else:
            scores = _penalize(logits[row], choice) if params.penalized else logits[row]
            token = int(scores.argmax()) if params.greedy else _draw(scores, choice)
        logprobs = None
        if params.logprobs is not None:
            logprobs = token_logprobs(logits[row], token, params.logprobs)
        chosen.append(Chosen(token, logprobs))
    return chosen


def _argmax(logits: torch.Tensor) -> list[int]:
    """Of each row, the first index of its largest value."""
    if logits.device.type == "cpu":  # numpy's takes a fifteenth of the time of torch's
        return cast(list[int], logits.numpy().argmax(axis=-1).tolist())
    return logits.argmax(dim=-1).tolist()


def token_logprobs(logits: torch.Tensor, token: int, top: int) -> TokenLogprobs:
    """Of `token`, and of the `top` likeliest, under one row of logits [vocabulary]."""
    logprobs = torch.log_softmax(logits, dim=-1)
    best: tuple[tuple[int, float], ...] = ()
    if top:
        values, ids = logprobs.topk(min(top, logprobs.numel()))
        best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(token, float(logprobs[token]), best)


def likeliest(
    logits: torch.Tensor, counts: Sequence[int], tops: Sequence[int]
) -> list[list[TokenLogprobs]]:
    """Of each row of `logits`, float32 [rows, vocabulary], the likeliest tokens, in order.

    Args:
        counts: how many, for each row; all tokens, if there are fewer.
        tops: how many of them each one names as the likeliest in its place.
    """
    most = min(max(*counts, *tops), logits.shape[-1])
    values, ids = logits.topk(most)
    values = values - torch.logsumexp(logits, dim=-1, keepdim=True)
    rows = zip(ids.tolist(), values.tolist(), counts, tops, strict=True)
    found = []
    for tokens, logprobs, count, top in rows:
        pairs = tuple(zip(tokens, logprobs, strict=True))
        found.append([TokenLogprobs(t, logprob, pairs[:top]) for t, logprob in pairs[:count]])
    return found


def _penalize(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    params = choice.params
    scores = logits.clone()
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*choice.prompt, *choice.output}), device=scores.device)
        old = scores[seen]
        scores[seen] = torch.where(
            old > 0, old / params.repetition_penalty, old * params.repetition_penalty
        )
    if choice.output and (params.presence_penalty or params.frequency_penalty):
        ids, counts = np.unique(np.asarray(choice.output), return_counts=True)
        weight = params.presence_penalty + params.frequency_penalty * counts
        scores[torch.from_numpy(ids).to(scores.device)] -= torch.from_numpy(weight).to(scores)
    return scores


def _draw(scores: torch.Tensor, choice: Choice) -> int:
    params = choice.params
    scores = scores / params.temperature
    ids: torch.Tensor | None = None
    if 0 < params.top_k < scores.numel():
        scores, ids = scores.topk(params.top_k)
    probs = torch.softmax(scores, dim=-1)
    if params.top_p < 1.0:
        probs, order = _nucleus(probs, params.top_p)
        ids = order if ids is None else ids[order]
    if params.min_p > 0.0:
        probs = torch.where(probs >= params.min_p * probs.max(), probs, 0.0)
    # Double precision, so that the last candidate is reached by a draw close to 1.
    cumulated = probs.double().cumsum(dim=-1)
    point = _uniform(choice.seed, len(choice.output)) * cumulated[-1]
    place = int(torch.searchsorted(cumulated, point, right=True))
    place = min(place, int(probs.nonzero()[-1]))
    return place if ids is None else int(ids[place])


def _nucleus(probs: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest candidates, in order, up to the one whose sum first reaches `top_p`."""
    count = _FIRST_CANDIDATES
    while True:
        best, order = probs.topk(min(count, probs.numel()))
        cumulated = best.cumsum(dim=-1)
        if count >= probs.numel() or float(cumulated[-1]) >= top_p:
            break
        count *= 8
    keep = int((cumulated < top_p).sum()) + 1
    return best[:keep], order[:keep]


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on the seed and the position alone."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())
