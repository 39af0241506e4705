"""What tokens that a model drafts are worth: how often they come true, and what they cost."""

from collections.abc import Sequence

from kvrt.drafting.cost import StepCost

MARGIN = 1.1
"""Drafts must promise so many times what they cost: both are estimates."""

BUCKETS = 10
RATE = 0.05
FIRST_PATIENCE, LAST_PATIENCE = 16, 512


class Gain:
    """Learns while running. Belongs to the engine's thread.

    Args:
        target: what steps of the model that is asked take.
        ratio: a pass of the model that drafts takes so much of a step, as long as nothing was
            measured.
    """

    def __init__(self, target: StepCost, ratio: float) -> None:
        self.target = target
        self.passes = StepCost()
        self.reading = StepCost()
        """Passes over what the model that drafts has not computed yet, such as prompts."""
        self.mean = 0.7
        """How often a draft comes true, if all before it have."""
        self._ratio = ratio
        self._true = [(bucket + 0.5) / BUCKETS for bucket in range(BUCKETS)]
        self._patience = FIRST_PATIENCE
        self._waited = 0

    def chance(self, probability: float) -> float:
        """That a draft comes true, to which the model that drafts gives a probability."""
        return self._true[_bucket(probability)]

    def learn(self, probabilities: Sequence[float], accepted: int) -> None:
        """What became of drafts in a line: so many of the first came true."""
        for at, probability in enumerate(probabilities[: accepted + 1]):
            hit, bucket = at < accepted, _bucket(probability)
            self._true[bucket] += RATE * (hit - self._true[bucket])
            self.mean += RATE * (hit - self.mean)

    def course(self, tokens: int, yields: int) -> "Course":
        """A step of so many tokens, that yields so many, before it has drafts."""
        return Course(self, tokens, yields)

    def tries(self, pays: bool) -> bool:
        """Whether to draft in a step, where it pays or does not: now and then it is tried."""
        if pays:
            self._waited, self._patience = 0, FIRST_PATIENCE
            return True
        self._waited += 1
        if self._waited < self._patience:
            return False
        self._waited, self._patience = 0, min(2 * self._patience, LAST_PATIENCE)
        return True

    def pass_seconds(self, tokens: int) -> float:
        """What a pass of the model that drafts takes."""
        if self.passes.known:
            return self.passes.seconds(tokens)
        return self._ratio * self.target.seconds(tokens)

    def reading_seconds(self, tokens: int) -> float:
        """What it takes to compute so many tokens before drafting can begin."""
        if self.reading.known:
            return self.reading.seconds(tokens)
        return self.pass_seconds(1) * (1 + tokens / StepCost.PRIOR_TOKENS)


class Course:
    """What a step yields and takes, as drafts come to it."""

    def __init__(self, gain: Gain, tokens: int, yields: int) -> None:
        self._gain = gain
        self._expected = float(yields)
        self._seconds = gain.target.seconds(tokens)
        self._each = gain.target.slope

    def pays(self, chances: Sequence[float], lag: float = 0.0) -> bool:
        """Whether one draft more pays in sequences, all of whose drafts so far come true with these
        chances.

        So it is if it makes more tokens per second than the step does without.

        Args:
            lag: seconds that it takes besides.
        """
        gain = self._gain
        if not chances or not gain.target.known:
            return False
        more = sum(chances) * gain.mean
        seconds = gain.pass_seconds(len(chances)) + len(chances) * self._each + lag
        return more * self._seconds > MARGIN * self._expected * seconds

    def worth(self, chance: float) -> bool:
        """Whether a draft that is made is worth computing."""
        return chance * self._seconds > MARGIN * self._expected * self._each

    def add(self, chance: float) -> None:
        """A draft that comes true with this chance is computed in the step."""
        self._expected += chance
        self._seconds += self._each

    def spend(self, passed: int) -> None:
        """A pass over so many sequences was made."""
        self._seconds += self._gain.pass_seconds(passed)


def _bucket(probability: float) -> int:
    return min(int(probability * BUCKETS), BUCKETS - 1)
