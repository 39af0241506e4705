"""Constraints of a runtime, compiled once, for all requests that have them."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from kvrt.errors import RequestError
from kvrt.structured.constraint import Constraint
from kvrt.structured.guide import Guide
from kvrt.structured.trial import Refused, Trials

if TYPE_CHECKING:
    import llguidance

KEPT = 64
"""Constraints, compiled or refused."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    def with_end(self) -> tuple[str, int]: ...


MakeGuide = Callable[[frozenset[int]], Guide]
"""A guide for one completion, by the tokens that end it."""


class Guides:
    """Belongs to one model. Any thread may ask.

    Args:
        tokenizer: None: the model has none.
        vocab: token ids that the model has.
    """

    def __init__(self, tokenizer: "Tokenizer | None", vocab: int) -> None:
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._end = 0
        self._gate = threading.Lock()
        self._kept: OrderedDict[Constraint, llguidance.LLMatcher | Refused] = OrderedDict()
        self._tokens: llguidance.LLTokenizer | None = None
        self._trials: Trials | None = None
        self._closed = False

    def of(self, constraint: Constraint) -> MakeGuide:
        """What makes a guide for each completion of a request.

        It may take as long as `kvrt.structured.trial` says, and longer the first time.

        Raises:
            RequestError: the constraint means nothing or takes too much; or the model has no
                tokenizer, or one that cannot be constrained; or llguidance is not installed.
        """
        matcher = self._matcher(constraint)
        vocab, end = self._vocab, self._end
        return lambda ends: Guide(matcher.deep_copy(), vocab, end, ends)

    def _matcher(self, constraint: Constraint) -> "llguidance.LLMatcher":
        with self._gate:
            kept = self._kept.get(constraint)
            if kept is not None:
                self._kept.move_to_end(constraint)
        made = kept if kept is not None else self._made(constraint)
        with self._gate:
            self._kept[constraint] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        if isinstance(made, Refused):
            raise RequestError(f"{constraint.kind} {made.why}", param="constraint")
        return made

    def _made(self, constraint: Constraint) -> "llguidance.LLMatcher | Refused":
        tokens, trials = self._prepared()
        from kvrt.structured.grammar import compiled

        grammar = trials.grammar(constraint)
        return grammar if isinstance(grammar, Refused) else compiled(grammar, tokens)

    def _prepared(self) -> "tuple[llguidance.LLTokenizer, Trials]":
        with self._gate:
            if self._tokens is None or self._trials is None:
                self._tokens, self._trials = self._prepare()
            return self._tokens, self._trials

    def _prepare(self) -> "tuple[llguidance.LLTokenizer, Trials]":
        if self._tokenizer is None:
            raise RequestError(
                "a constraint needs a tokenizer, and the model has none", param="constraint"
            )
        try:
            import llguidance
        except ImportError:
            raise RequestError(
                "constraints need llguidance, which is not installed",
                param="constraint",
                fix="pip install 'kvrt[structured]'",
            ) from None
        try:
            # Which tokens end a text is a request's matter: one that is none stands for them.
            text, self._end = self._tokenizer.with_end()
            size = max(self._vocab, self._end + 1)
            tokens = llguidance.LLTokenizer(text, n_vocab=size, eos_token=self._end)
        except Exception as error:
            raise RequestError(
                f"the model's tokenizer cannot be constrained: {type(error).__name__}",
                param="constraint",
            ) from None
        return tokens, Trials(text, size, self._end)

    def close(self) -> None:
        """End the processes that wait for constraints."""
        if self._trials is not None:
            self._trials.close()
