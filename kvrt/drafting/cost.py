"""What a further token of a step costs, by what was measured while running."""


class StepCost:
    """How long a step takes by the number of its tokens: a straight line through the latest ones.

    Before steps of different sizes were seen, a step is taken to cost as much as 8 further tokens
    on top of its own.
    """

    DECAY = 0.97
    PRIOR_TOKENS = 8.0
    PRIOR_WEIGHT = 1.0

    def __init__(self) -> None:
        self._weight = self._tokens = self._seconds = self._squares = self._products = 0.0
        self._slope: float | None = None  # as long as nothing more is observed

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of decoding was made."""
        if self._weight > 1:  # one that was disturbed tells little
            seconds = min(seconds, 3 * self._seconds / self._weight)
        # Disturbed steps only take longer: if one is so much faster, those before it were.
        kept = 0.0 if 3 * seconds < self.seconds(tokens) else self.DECAY
        for name, value in (
            ("_weight", 1.0),
            ("_tokens", tokens),
            ("_seconds", seconds),
            ("_squares", tokens * tokens),
            ("_products", tokens * seconds),
        ):
            setattr(self, name, kept * getattr(self, name) + value)
        self._slope = None

    def worth(self, tokens: int) -> float:
        """The probability from which on one more token pays in a step that yields `tokens`.

        It costs b seconds of a step of T that gives a token in T / `tokens`: so ``b * tokens / T``.
        """
        if not self._weight:
            return tokens / (self.PRIOR_TOKENS + tokens)
        slope, step = self.slope, self.seconds(tokens)
        return min(1.0, slope * tokens / step) if step > 0 else 1.0

    @property
    def known(self) -> bool:
        """Whether anything was observed."""
        return self._weight > 0

    def seconds(self, tokens: int) -> float:
        """What a step of so many takes; 0: nothing was observed."""
        if not self._weight:
            return 0.0
        mean_tokens, mean = self._tokens / self._weight, self._seconds / self._weight
        return mean + self.slope * (tokens - mean_tokens)

    @property
    def slope(self) -> float:
        """Seconds that a further token takes; 0: nothing was observed."""
        if self._slope is None:
            self._slope = self._fitted() if self._weight else 0.0
        return self._slope

    def _fitted(self) -> float:
        mean_tokens, mean = self._tokens / self._weight, self._seconds / self._weight
        spread = max(0.0, self._squares / self._weight - mean_tokens**2)
        together = self._products / self._weight - mean_tokens * mean
        prior = mean / (self.PRIOR_TOKENS + mean_tokens)
        slope = (together + self.PRIOR_WEIGHT * prior) / (spread + self.PRIOR_WEIGHT)
        return min(max(slope, 0.0), mean / mean_tokens)
