"""Is it cheaper to move pages or to compute them anew? By what was measured while running."""

import math
import time
from collections.abc import Callable
from typing import Literal

Preemption = Literal["auto", "move", "recompute"]

_DOUBLE_CONTEXT = 4096
"""A guess: in a context of so many tokens, attention takes as long as everything else."""

_HALF_LIFE_S = 10.0

_WEIGHT = 0.2
"""Of a new measurement in the running mean: five or so count."""


class MoveCost:
    """Running means of the speed of prefill, by context, and of fetching pages.

    Attention makes a token dearer the longer its context is. So prefill is measured in classes of
    context, each twice as long as the one before; a class without a measurement is taken to be as
    its nearest neighbour.

    What a fetch costs is the time that the engine spends on it: to copy, and to wait when there is
    nothing else to do. What goes on beside its steps costs nothing. A cost that was measured long
    ago is taken to be less than it was, so that a way that was slow once is tried again.

    Args:
        choice: ``move`` leaves nothing to decide; ``recompute`` only says what becomes of sequences
            that were preempted.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self, choice: Preemption = "auto", now: Callable[[], float] = time.monotonic
    ) -> None:
        self.choice: Preemption = choice
        self._now = now
        self._token_s: dict[int, float] = {}  # by class of context
        self._byte_s: float | None = None
        self._byte_at = 0.0

    def computed(self, tokens: int, context: int, seconds: float) -> None:
        """A step computed so many tokens, in contexts of about so many."""
        key = context.bit_length()
        self._token_s[key] = _mean(self._token_s.get(key), seconds / tokens)

    def fetched(self, nbytes: int, seconds: float) -> None:
        """So many bytes of pages came back from a tier; it took the engine so long."""
        self._byte_s = _mean(self._fetch_s, seconds / nbytes)
        self._byte_at = self._now()

    @property
    def _fetch_s(self) -> float | None:
        """Seconds a byte; None: never measured."""
        if self._byte_s is None:
            return None
        age = self._now() - self._byte_at
        return self._byte_s * math.exp2(-age / _HALF_LIFE_S)

    def bring_back(self, tokens: int, nbytes: int, *, stored: bool) -> float:
        """Seconds until a sequence that loses its pages is where it was, by the cheaper way.

        As long as nothing was measured, in units of a token without context.

        Args:
            tokens: that it has computed.
            nbytes: of its pages.
            stored: they can be moved.
        """
        compute = tokens * self._seconds_per_token(tokens // 2)
        fetch_s = self._fetch_s
        if stored and fetch_s is not None and self.choice != "recompute":
            return min(compute, nbytes * fetch_s)
        return compute

    def moves(self, nbytes: int, tokens: int, end: int) -> bool:
        """Whether to fetch `nbytes` of pages for the last `tokens` of a context of `end` tokens.

        As long as one of the two was never measured, yes: tiers are there because they are fast.
        """
        if self.choice == "move":
            return True
        fetch_s = self._fetch_s
        if fetch_s is None or not self._token_s:
            return True
        return nbytes * fetch_s < self._seconds_per_token(end - tokens // 2) * tokens

    def _seconds_per_token(self, context: int) -> float:
        if not self._token_s:
            return 1 + context / _DOUBLE_CONTEXT
        key = context.bit_length()
        nearest = min(self._token_s, key=lambda known: abs(known - key))
        return self._token_s[nearest]


def _mean(before: float | None, new: float) -> float:
    return new if before is None else before + _WEIGHT * (new - before)
