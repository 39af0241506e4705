"""Which token comes next: the likeliest that may (Radford et al. 2022, and the rules that OpenAI's
code has for times).

    <|0.00|> text of a segment <|2.40|><|2.40|> text of the next <|5.00|> ...

Times come in pairs, the end of a segment and the beginning of the next, and never go back. Where
all times together are likelier than any text, a time it is.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.model.speech.control import Control


class Choice(NamedTuple):
    """A token, and the logarithm of how likely it was among those that might come."""

    token: int
    logprob: float


class Chooser:
    """Chooses for one model; its results depend on nothing but what it is asked.

    Args:
        vocab: how many tokens there are.
    """

    def __init__(self, control: Control, vocab: int) -> None:
        self._control = control
        self._never = torch.zeros(vocab)
        self._never[list(control.never)] = -math.inf
        self._never_first = self._never.clone()
        self._never_first[list(control.never_first)] = -math.inf

    def choose(self, logits: Tensor, written: Sequence[int], *, times: bool) -> Choice:
        """The next token.

        Args:
            logits: float32 [vocab], on the host.
            written: tokens behind those that the answer begins with.
            times: whether times are written.
        """
        scores = logits + (self._never if written else self._never_first)
        if times:
            self._keep_times(scores, written)
        token = int(scores.argmax())
        return Choice(token, float(scores.log_softmax(0)[token]))

    def language(self, logits: Tensor) -> str:
        """The likeliest language, of what comes behind the first token."""
        known = self._control.languages
        return max(known, key=lambda code: float(logits[known[code]]))

    def _keep_times(self, scores: Tensor, written: Sequence[int]) -> None:
        """Take away what may not come."""
        control = self._control
        first = control.first_time
        scores[control.no_times] = -math.inf
        if not written:
            scores[:first] = -math.inf
            if control.latest is not None:
                scores[first + control.latest + 1 :] = -math.inf
            return
        open_pair = written[-1] >= first and len(written) > 1 and written[-2] < first
        if open_pair:
            scores[: control.eos] = -math.inf
        elif written[-1] >= first:
            scores[first:] = -math.inf
        last = next((token for token in reversed(written) if token >= first), None)
        if last is not None:
            scores[first : last if open_pair else last + 1] = -math.inf
        logprobs = scores.log_softmax(0)
        if logprobs[first:].logsumexp(0) > logprobs[:first].max():
            scores[:first] = -math.inf
