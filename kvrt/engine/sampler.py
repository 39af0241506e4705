"""Choosing the next token from logits.

A row's choice depends on its logits, its parameters, its seed and its position, and on nothing
else: not on the batch, and not on how often the request was preempted. The draw for a position is
one number from a counter-based generator (Philox: Salmon et al. 2011) under the request's seed.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from kvrt.errors import KvrtError, RequestError
from kvrt.outputs import TokenLogprobs
from kvrt.sampling import BAN, SamplingParams

_LOWEST = torch.finfo(torch.float32).min
"""Stands for what is lower still: neither scores nor log-probabilities are ever infinite."""

_FIRST_CANDIDATES = 256  # top-p rarely keeps more; sorting a whole vocabulary costs milliseconds


@dataclass(frozen=True, slots=True)
class Choice:
    """One row to sample.

    Args:
        params: how.
        seed: of the completion, already told apart from its siblings'.
        prompt: the prompt's token ids (for the repetition penalty).
        output: the token ids generated so far; their number is the position of the draw.
        ends: the tokens that end the completion (for `SamplingParams.min_tokens`).
        bad_words: token ids of each word that is not to be said.
    """

    params: SamplingParams
    seed: int
    prompt: Sequence[int]
    output: Sequence[int]
    ends: frozenset[int] = frozenset()
    bad_words: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    token_id: int
    logprobs: TokenLogprobs | None = None


class Scores:
    """The logits of a step, and what is chosen from them.

    Args:
        logits: float32 [rows, vocabulary]; they are kept as they are.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        # Where they are on the host numpy looks through them: in a fraction of torch's time, and in
        # one thread, where torch's would take processors from kernels.
        self._rows = logits.numpy() if logits.is_cpu else None

    def choose(self, at: int, choice: Choice) -> Chosen:
        """The token that follows row `at`.

        Raises:
            KvrtError: the row is not made of finite numbers.
        """
        self.check(at)
        params, logits = choice.params, self._logits[at]
        scores = _adjust(logits, choice)
        if not params.greedy:
            token = _draw(scores, choice)
        elif scores is logits:
            token = self._greedy[at]
        else:
            token = int(scores.argmax())
        if params.logprobs is None:
            return Chosen(token)
        return Chosen(token, token_logprobs(logits, token, params.logprobs))

    def logprobs(self, at: int, token: int, top: int) -> TokenLogprobs:
        """Of `token` in row `at`, and of the `top` likeliest. Raises as `choose`."""
        self.check(at)
        return token_logprobs(self._logits[at], token, top)

    def likeliest(
        self, rows: Sequence[int], counts: Sequence[int], tops: Sequence[int]
    ) -> list[list[TokenLogprobs]]:
        """Of some rows, the likeliest tokens, in order.

        Args:
            rows: those that `check` has passed.
            counts: how many, for each of them; all tokens, if there are fewer.
            tops: how many of them each one names as the likeliest in its place.
        """
        logits = self._logits[torch.tensor(rows, device=self._logits.device)]
        most = min(max(*counts, *tops), logits.shape[-1])
        values, ids = logits.topk(most)
        values = (values - torch.logsumexp(logits, dim=-1, keepdim=True)).clamp(min=_LOWEST)
        found = []
        for tokens, logprobs, count, top in zip(
            ids.tolist(), values.tolist(), counts, tops, strict=True
        ):
            pairs = tuple(zip(tokens, logprobs, strict=True))
            found.append([TokenLogprobs(t, logprob, pairs[:top]) for t, logprob in pairs[:count]])
        return found

    def check(self, at: int) -> None:
        """Raises `KvrtError` if row `at` is not made of finite numbers."""
        if self._sound[at] or bool(torch.isfinite(self._logits[at]).all()):
            return
        raise KvrtError(
            "the model's scores of the next token are not finite numbers",
            fix="its weights are damaged, too large for this dtype (try float32), or the device "
            "computes wrongly: see kvrt doctor",
        )

    @functools.cached_property
    def _sound(self) -> list[bool]:
        """Of each row, whether it is seen at once that its numbers are finite.

        Elsewhere than on the host by their sum, which takes a fraction of a look at each element:
        that of finite numbers may overflow, and that of others is never finite.
        """
        if self._rows is None:
            return torch.isfinite(self._logits.sum(dim=-1)).tolist()
        return cast(list[bool], np.isfinite(self._rows).all(axis=-1).tolist())

    @functools.cached_property
    def _greedy(self) -> list[int]:
        """Of each row, the first index of its largest value."""
        rows = self._logits if self._rows is None else self._rows
        return cast(list[int], rows.argmax(-1).tolist())


def token_logprobs(logits: torch.Tensor, token: int, top: int) -> TokenLogprobs:
    """Of `token`, and of the `top` likeliest, under one row of finite logits [vocabulary]."""
    logprobs = torch.log_softmax(logits, dim=-1)
    best: tuple[tuple[int, float], ...] = ()
    if top:
        values, ids = logprobs.topk(min(top, logprobs.numel()))
        best = tuple(zip(ids.tolist(), values.clamp(min=_LOWEST).tolist(), strict=True))
    return TokenLogprobs(token, max(float(logprobs[token]), _LOWEST), best)


def _adjust(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    """The scores to choose by: the logits themselves, if nothing is to be changed about them."""
    scores = logits
    if choice.params.penalized or choice.params.logit_bias:
        scores = _penalize(logits, choice)
    if banned := [token for token in _banned(choice) if token < logits.numel()]:
        scores = scores.clone() if scores is logits else scores
        scores[torch.tensor(banned, device=scores.device)] = -math.inf
        if math.isinf(scores.max()):
            raise RequestError("every token is banned", param="logit_bias", fix="ban fewer")
    return scores


def _banned(choice: Choice) -> list[int]:
    params, output = choice.params, choice.output
    banned = [token for token, bias in params.biases if bias <= BAN]
    if len(output) < params.min_tokens:
        banned += choice.ends
    for *before, last in choice.bad_words:
        if before == list(output[len(output) - len(before) :]):
            banned.append(last)
    return banned


def _penalize(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    params = choice.params
    scores = logits.clone()
    if params.logit_bias:
        tokens, biases = zip(*params.biases, strict=True)
        scores[torch.tensor(tokens, device=scores.device)] += torch.tensor(biases).to(scores)
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
    return scores.clamp_(min=_LOWEST, max=-_LOWEST)


def _draw(scores: torch.Tensor, choice: Choice) -> int:
    params = choice.params
    # The likeliest token's is 0 then, which no temperature makes infinite.
    scores = (scores - scores.max()) / params.temperature
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
