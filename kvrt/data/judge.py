"""Which of two answers is better.

A judge is asked twice, with the answers in either order, since models like the first one, or the
last (Zheng et al. 2023, "Judging LLM-as-a-judge with MT-Bench and Chatbot Arena", 3.3): one that
wins only in one place has not won. It is asked by how likely it finds "A" and "B", not by what it
says, so any model gives a verdict.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from kvrt.data.likelihood import Likely, likelihoods
from kvrt.data.rows import Said

if TYPE_CHECKING:
    from kvrt.runtime import Runtime

Winner = Literal["a", "b", "tie"]

QUESTION = """\
Here is a request, and two answers to it.

Request:
{prompt}

Answer A:
{first}

Answer B:
{second}

Which answer is better: more right, more helpful, and written better? Say A or B and nothing else.
Better answer:"""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one request."""

    prompt: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one row.

    Args:
        winner: None: there is no verdict; see `why`.
        value: how much better a is. Of a judge, the mean of `first` and `second` less a half; of
            answers of the set, the bits a byte that a takes less than b.
        first, second: how likely the judge finds a better where it stands first, and second; None:
            it was not asked.
        why: there is no verdict.
    """

    winner: Winner | None
    value: float = 0.0
    first: float | None = None
    second: float | None = None
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judged(runtime: "Runtime", pairs: Sequence[Pair]) -> list[Verdict]:
    """The verdicts of a judge on pairs. Answers that are the same are not asked about."""
    asked = [pair for pair in pairs if pair.a != pair.b]
    questions = [
        ((Said("user", QUESTION.format(prompt=pair.prompt, first=one, second=two)),), letter)
        for pair in asked
        for one, two in ((pair.a, pair.b), (pair.b, pair.a))
        for letter in (" A", " B")
    ]
    told = iter(likelihoods(runtime, questions))
    found = []
    for pair in pairs:
        if pair.a == pair.b:
            found.append(Verdict("tie"))
            continue
        found.append(_verdict([next(told) for _ in range(4)]))
    return found


def _verdict(told: Sequence[Likely | Exception]) -> Verdict:
    """Of how likely A and B are, in both orders."""
    logprobs = []
    for each in told:
        if not isinstance(each, Likely):
            return Verdict(None, why=f"the judge could not be asked: {each}")
        logprobs.append(each.logprob)
    first = share(logprobs[0], logprobs[1])
    second = 1 - share(logprobs[2], logprobs[3])
    return Verdict(winner_of(first, second), (first + second) / 2 - 0.5, first, second)


def share(one: float, other: float) -> float:
    """Of two log-probabilities, the part of both that the first is."""
    return 1 / (1 + math.exp(min(other - one, 700.0)))


def winner_of(first: float, second: float) -> Winner:
    """Who wins in both places."""
    if first > 0.5 and second > 0.5:
        return "a"
    return "b" if first < 0.5 and second < 0.5 else "tie"


def likelier(a: Likely | Exception, b: Likely | Exception) -> Verdict:
    """Who finds the answer of the set likelier, byte for byte."""
    for name, each in (("a", a), ("b", b)):
        if not isinstance(each, Likely):
            return Verdict(None, why=f"{name}: {each}")
    assert isinstance(a, Likely)
    assert isinstance(b, Likely)
    value = b.bits_per_byte - a.bits_per_byte
    return Verdict("tie" if value == 0 else "a" if value > 0 else "b", value)
