"""What every engine is asked: prompts of token ids, greedy answers of a fixed length.

Imports nothing but the standard library: engines' own Pythons read it, too.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IDS = range(300, 48000)
"""Any model here has them, and none is special."""


@dataclass(frozen=True, slots=True)
class Request:
    prompt: list[int]
    new: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds since all requests were handed over; `first` is None where an engine can't say."""

    tokens: list[int]
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Work:
    """A kind of load.

    Args:
        name: as the table calls it.
        lengths: of the prompts, one a request.
        new: tokens of each answer.
        figure: what is measured; a name of `figures`.
        unit: in words.
    """

    name: str
    lengths: tuple[int, ...]
    new: int
    figure: str
    unit: str

    def requests(self, repeat: int) -> list[Request]:
        """Other prompts in each repeat, so that no cache of an earlier one helps; the same for
        every engine."""
        drawn = random.Random(f"{self.name} {repeat}")
        return [Request(drawn.choices(IDS, k=length), self.new) for length in self.lengths]


def works(*, quick: bool = False) -> list[Work]:
    """All loads; quick ones only show that everything runs."""
    less = 8 if quick else 1
    mixed = tuple((64 + (at * 7 % 16) * 192 // 15) // less for at in range(16))
    new = 64 // less
    return [
        Work("one stream", (128 // less,), new, "decoded", "new tokens/s"),
        Work("prefill of 1,024", (1024 // less,), 1, "read", "prompt tokens/s"),
        Work("16 requests", mixed, new, "answered", "new tokens/s, prompts' time included"),
        Work("after 4,096", (4096 // less,), new, "decoded", "new tokens/s"),
    ]


WARMING = Work("warming", (40,), 4, "decoded", "")


def figures(requests: Sequence[Request], answers: Sequence[Answer]) -> dict[str, float]:
    """Rates of one run, in tokens per second.

    Returns:
        ``read``: prompt tokens until the first new one; ``decoded``: new tokens after the first,
        a request; ``answered``: all new tokens over the time until the last.

    Raises:
        ValueError: an answer is not as long as was asked.
    """
    for request, answer in zip(requests, answers, strict=True):
        if len(answer.tokens) != request.new:
            raise ValueError(f"{len(answer.tokens)} tokens came, and {request.new} were asked for")
    first = max(answer.first for answer in answers)
    last = max(answer.last for answer in answers)
    found = {
        "read": sum(len(request.prompt) for request in requests) / first,
        "answered": sum(request.new for request in requests) / last,
    }
    if all(request.new > 1 for request in requests):
        found["decoded"] = statistics.fmean(
            (len(answer.tokens) - 1) / (answer.last - answer.first) for answer in answers
        )
    return found


def agreement(mine: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """The share of tokens that are the same up to an answer's first difference.

    Behind it two right engines answer different texts, so nothing there counts.
    """
    same = total = 0
    for one, other in zip(mine, theirs, strict=True):
        total += len(one)
        for mine_, theirs_ in zip(one, other, strict=True):
            if mine_ != theirs_:
                break
            same += 1
    return same / total


def variety(tokens: Sequence[Sequence[int]]) -> float:
    """The share of all answers' tokens that are different ones: near 0, agreeing says little."""
    everything = [token for answer in tokens for token in answer]
    return len(set(everything)) / len(everything)


def as_json(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    return [{"tokens": each.tokens, "first": each.first, "last": each.last} for each in answers]
