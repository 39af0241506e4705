"""Choosing the next token from logits.

A row's choice depends on its logits, its parameters, its seed and its position, and on nothing
else: not on the batch, and not on how often the request was preempted. The draw for a position is
one number from a counter-based generator (Philox: Salmon et al. 2011) under the request's seed.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from kvrt.errors import KvrtError, RequestError
from kvrt.outputs import TokenLogprobs
from kvrt.sampling import BAN, SamplingParams
from kvrt.structured.guide import Mask

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Places = np.ndarray[tuple[int], np.dtype[np.intp]]

_LOWEST = torch.finfo(torch.float32).min
"""Stands for what is lower still: neither scores nor log-probabilities are ever infinite."""

_FIRST_CANDIDATES = 256  # top-p rarely keeps more; sorting a whole vocabulary costs milliseconds
_BLOCK = 256  # summing up a whole vocabulary one by one costs more than everything else


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
        allowed: of each token, whether it may be chosen: bool [vocabulary]; None: all may.
    """

    params: SamplingParams
    seed: int
    prompt: Sequence[int]
    output: Sequence[int]
    ends: frozenset[int] = frozenset()
    bad_words: Sequence[Sequence[int]] = ()
    allowed: Mask | None = None


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

    def choose(self, at: int, choice: Choice) -> Chosen:
        """The token that follows row `at`.

        Raises:
            KvrtError: the row is not made of finite numbers.
        """
        token, wanted = self.token(at, choice), choice.params.logprobs
        if wanted is None:
            return Chosen(token)
        return Chosen(token, token_logprobs(self._logits[at], token, wanted))

    def token(self, at: int, choice: Choice) -> int:
        """`choose`, but for log-probabilities."""
        self.check(at)
        if choice.params.greedy and not _adjusted(choice):
            return self._greedy[at]
        scores = _adjust(self._rows[at], choice)
        return int(scores.argmax()) if choice.params.greedy else _draw(scores, choice)

    def logprobs(self, at: int, token: int, top: int) -> TokenLogprobs:
        """Of `token` in row `at`, and of the `top` likeliest. Raises as `choose`."""
        self.check(at)
        return token_logprobs(self._logits[at], token, top)

    def probability(self, at: int, token: int) -> float:
        """Of `token` in row `at`, whose numbers are finite."""
        row = self._rows[at]
        with np.errstate(over="ignore"):  # far apart, they leave the others 0
            odds = np.exp(row - row.max())
        return float(odds[token] / odds.sum())

    def likeliest(
        self,
        rows: Sequence[int],
        counts: Sequence[int],
        tops: Sequence[int],
        masks: Sequence[Mask | None],
    ) -> list[list[TokenLogprobs]]:
        """Of some rows, the likeliest tokens, in order.

        Args:
            rows: those that `check` has passed.
            counts: how many, for each of them; all tokens, if there are fewer.
            tops: how many each of them names as the likeliest in its place, allowed or not.
            masks: which tokens may be, for each row: bool [vocabulary]; None: all.
        """
        logits = self._logits[torch.tensor(rows, device=self._logits.device)]
        most = min(max(*counts, *tops), logits.shape[-1])
        named = best = _best(logits, most)
        if any(mask is not None for mask in masks):
            best = _best(logits, most, masks)
        return [
            [TokenLogprobs(token, logprob, pairs[:top]) for token, logprob in mine[:count]]
            for mine, pairs, count, top in zip(best, named, counts, tops, strict=True)
        ]

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
    def _rows(self) -> Floats:
        """All of them on the host, in one copy if they are elsewhere.

        There numpy goes through them in a fraction of torch's time, and in one thread, where
        torch's would take processors from kernels.
        """
        return cast(Floats, self._logits.cpu().numpy())

    @functools.cached_property
    def _sound(self) -> list[bool]:
        """Of each row, whether it is seen at once that its numbers are finite.

        Elsewhere than on the host by their sum, which takes a fraction of a look at each element:
        that of finite numbers may overflow, and that of others is never finite.
        """
        if not self._logits.is_cpu:
            return torch.isfinite(self._logits.sum(dim=-1)).tolist()
        return cast(list[bool], np.isfinite(self._rows).all(axis=-1).tolist())

    @functools.cached_property
    def _greedy(self) -> list[int]:
        """Of each row, the first index of its largest value."""
        rows = self._rows if self._logits.is_cpu else self._logits
        return cast(list[int], rows.argmax(-1).tolist())


def _best(
    logits: torch.Tensor, most: int, masks: Sequence[Mask | None] | None = None
) -> list[tuple[tuple[int, float], ...]]:
    """Of each row, the likeliest tokens of those that may be, and their log-probabilities."""
    among = logits
    if masks is not None:
        among = logits.clone()
        for row, mask in zip(among, masks, strict=True):
            if mask is not None:
                row.masked_fill_(torch.from_numpy(~mask).to(row.device), -math.inf)
    values, ids = among.topk(most)
    counts = values.isfinite().sum(dim=-1).tolist()
    values = (values - torch.logsumexp(logits, dim=-1, keepdim=True)).clamp(min=_LOWEST)
    return [
        tuple(zip(tokens[:count], logprobs[:count], strict=True))
        for tokens, logprobs, count in zip(ids.tolist(), values.tolist(), counts, strict=True)
    ]


def token_logprobs(logits: torch.Tensor, token: int, top: int) -> TokenLogprobs:
    """Of `token`, and of the `top` likeliest, under one row of finite logits [vocabulary]."""
    logprobs = torch.log_softmax(logits, dim=-1)
    best: tuple[tuple[int, float], ...] = ()
    if top:
        values, ids = logprobs.topk(min(top, logprobs.numel()))
        best = tuple(zip(ids.tolist(), values.clamp(min=_LOWEST).tolist(), strict=True))
    return TokenLogprobs(token, max(float(logprobs[token]), _LOWEST), best)


def _adjusted(choice: Choice) -> bool:
    """Whether anything about the logits is to be changed before the choice."""
    params = choice.params
    constrained = choice.allowed is not None
    return constrained or params.penalized or bool(params.logit_bias) or bool(_banned(choice))


def _adjust(logits: Floats, choice: Choice) -> Floats:
    """The scores to choose by: the logits themselves, if nothing is to be changed about them."""
    scores = logits
    if choice.params.penalized or choice.params.logit_bias:
        scores = _penalize(logits, choice)
    banned = [token for token in _banned(choice) if token < len(logits)]
    if banned or choice.allowed is not None:
        scores = scores.copy() if scores is logits else scores
        scores[banned] = -math.inf
        if choice.allowed is not None:
            scores[~choice.allowed] = -math.inf
        if math.isinf(scores.max()):
            raise RequestError(
                "every token is banned, by logit_bias, bad_words or a constraint",
                param="logit_bias",
                fix="ban fewer",
            )
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


def _penalize(logits: Floats, choice: Choice) -> Floats:
    params = choice.params
    scores = logits.copy()
    with np.errstate(over="ignore"):
        if params.logit_bias:
            tokens, biases = zip(*params.biases, strict=True)
            scores[[*tokens]] += np.array(biases, np.float32)
        if params.repetition_penalty != 1.0:
            seen = np.array(sorted({*choice.prompt, *choice.output}))
            old, penalty = scores[seen], np.float32(params.repetition_penalty)
            scores[seen] = np.where(old > 0, old / penalty, old * penalty)
        if choice.output and (params.presence_penalty or params.frequency_penalty):
            ids, counts = np.unique(np.asarray(choice.output), return_counts=True)
            weight = params.presence_penalty + params.frequency_penalty * counts
            scores[ids] -= weight.astype(np.float32)
    return scores.clip(_LOWEST, -_LOWEST, out=scores)


def _draw(scores: Floats, choice: Choice) -> int:
    params = choice.params
    with np.errstate(over="ignore"):
        # The likeliest token's is 1 then, which no temperature makes infinite.
        weights = scores - scores.max()
        weights /= np.float32(params.temperature)
    np.exp(weights, out=weights)
    ids: Places | None = None  # of what the filters have kept
    if 0 < params.top_k < len(weights):
        ids = _largest(weights, params.top_k)
    if params.top_p < 1.0:
        ids = _narrow(ids, weights, lambda kept: _largest(kept, _nucleus(kept, params.top_p)))
    if params.min_p > 0.0:
        least = np.float32(params.min_p)
        ids = _narrow(ids, weights, lambda kept: np.flatnonzero(kept >= least))
    place = _place(weights if ids is None else weights[ids], choice)
    return place if ids is None else int(ids[place])


def _narrow(ids: Places | None, weights: Floats, keep: Callable[[Floats], Places]) -> Places:
    """What a further filter keeps of the tokens `ids`, or of all."""
    return keep(weights) if ids is None else ids[keep(weights[ids])]


def _largest(weights: Floats, count: int) -> Places:
    """Where the `count` largest are, in order of place; of those that are as large as the last, the
    first. (To select a value takes a tenth of the time of selecting places.)"""
    least = np.partition(weights, -count)[-count]
    larger = np.flatnonzero(weights > least)
    level = np.flatnonzero(weights == least)[: count - len(larger)]
    return np.sort(np.concatenate((larger, level)))


def _nucleus(weights: Floats, top_p: float) -> int:
    """How many of the likeliest it takes until their sum reaches `top_p` of all."""
    enough, count = top_p * weights.sum(dtype=np.float64), _FIRST_CANDIDATES
    while True:
        count = min(count, len(weights))
        largest = np.sort(np.partition(weights, -count)[-count:])[::-1]
        cumulated = largest.cumsum(dtype=np.float64)
        if count == len(weights) or cumulated[-1] >= enough:
            return min(int((cumulated < enough).sum()) + 1, count)
        count *= 8


def _place(weights: Floats, choice: Choice) -> int:
    """Draw one of them by weight: a block first, by the blocks' sums, then one in it."""
    starts = np.arange(0, len(weights), _BLOCK)
    # Double precision, so that the last one is reached by a draw close to 1.
    blocks = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
    point = _uniform(choice.seed, len(choice.output)) * blocks[-1]
    block = int(blocks.searchsorted(point, side="right"))
    block = min(block, int(np.flatnonzero(np.diff(blocks, prepend=0.0))[-1]))
    before = blocks[block - 1] if block else 0.0
    inside = weights[starts[block] : starts[block] + _BLOCK]
    place = int((before + inside.cumsum(dtype=np.float64)).searchsorted(point, side="right"))
    return int(starts[block]) + min(place, int(np.flatnonzero(inside)[-1]))


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on the seed and the position alone."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())
