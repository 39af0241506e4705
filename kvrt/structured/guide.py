"""One completion under a constraint: which tokens may come next, and whether it is whole."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from kvrt.errors import RequestError
from kvrt.structured.reasons import reason

if TYPE_CHECKING:
    import llguidance

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


class Guide:
    """Follows one completion, forwards and back: of what was said whenever it is asked, the shorter
    begins the longer.

    Args:
        matcher: at the beginning; nobody else uses it.
        vocab: of the model.
        end: what stands for the end of a text, in the matcher's tokens; no token is behind it.
        ends: tokens that end a completion: they may come where it is whole, and only there.
    """

    def __init__(
        self, matcher: "llguidance.LLMatcher", vocab: int, end: int, ends: frozenset[int]
    ) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self._end = end
        self._ends = ends
        self._ends_known = [token for token in ends if token < vocab]
        self._followed = 0  # tokens

    def fork(self) -> Self:
        """Another one, which follows from here by itself."""
        other = type(self)(self._matcher.deep_copy(), self._vocab, self._end, self._ends)
        other._followed = self._followed
        return other

    def complete(self, said: Sequence[int]) -> bool:
        """Whether nothing may follow these tokens; nor anything behind an end token."""
        if said and said[-1] in self._ends:
            return True
        self._follow(said)
        return self._matcher.is_stopped()

    def allowed(self, said: Sequence[int]) -> Mask:
        """Of each token, whether it may follow these: bool [vocab].

        Raises:
            RequestError: the constraint is too complex at this place.
        """
        self._follow(said)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._failed()
        mask = np.unpackbits(bits, count=self._vocab, bitorder="little").view(np.bool_)
        mask[self._end :] = False
        mask[self._ends_known] = self._matcher.is_accepting()
        return mask

    def forced(self, said: Sequence[int]) -> Sequence[int]:
        """What must follow, as the tokenizer would write it; none, where there is a choice."""
        self._follow(said)
        return [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()

    def _follow(self, said: Sequence[int]) -> None:
        """Be where these tokens lead."""
        if len(said) < self._followed:
            self._matcher.rollback(self._followed - len(said))
        elif more := list(said[self._followed :]):
            self._matcher.consume_tokens(more)
        self._followed = len(said)
        if self._matcher.is_error():
            raise self._failed()

    def _failed(self) -> RequestError:
        return RequestError(
            f"the constraint cannot be followed: {reason(self._matcher.get_error())}",
            param="constraint",
            fix="make it simpler",
        )


class BeamGuide:
    """Follows beams: completions of which each may be continued in several ways.

    Args:
        first: at the beginning.
        count: how many there are at once, at most.
    """

    def __init__(self, first: Guide, count: int) -> None:
        self._first = first
        self._most = 2 * count  # those that were asked about last, and those that continue them
        self._known: OrderedDict[tuple[int, ...], Guide] = OrderedDict()

    def allowed(self, said: Sequence[int]) -> Mask:
        """As `Guide.allowed`."""
        key = tuple(said)
        follower = self._known.get(key[:-1], self._first).fork()
        allowed = follower.allowed(said)
        self._known[key] = follower
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return allowed
