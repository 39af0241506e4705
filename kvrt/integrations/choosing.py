"""Which of several servers is to answer: values in, a number out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Policy = Literal["prefix", "least-loaded", "round-robin"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

RUNNING_TOKENS = 64
"""What an answer that is being given costs others, in tokens of a prompt."""

FIXED_TOKENS = 128
"""What any request costs beside its prompt, likewise. Without it, a server that gets requests whose
prompts are cached would seem slow, and lose them."""

FASTER = 2.0
"""So much faster than the median a server is believed to be, at the most, and so much slower. One
that was fast with little is not fast with everything."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server that could answer.

    Args:
        cached: tokens that the prompt begins with and that need not be computed there.
        waiting: tokens of prompts that it was given and has not begun to answer.
        running: answers that it is giving.
        pace: seconds that it takes for a token of a prompt, of late; None: not known.
        turns: requests that it was given so far.
    """

    cached: int
    waiting: int
    running: int
    pace: float | None
    turns: int


def work(candidate: Candidate, prompt: int) -> int:
    """What is before the first token of an answer, in tokens of prompts."""
    new = max(0, prompt - candidate.cached)
    return FIXED_TOKENS + new + candidate.waiting + RUNNING_TOKENS * candidate.running


def choose(candidates: Sequence[Candidate], prompt: int, policy: Policy = "prefix") -> int:
    """The number of the one to ask.

    ``prefix`` takes the one that is expected to answer first: by the work that is before it, which
    cached tokens are no part of, and its pace (after the cost of NVIDIA Dynamo's router, which
    counts blocks). ``least-loaded`` does not look at what is cached. Equals take turns.

    Args:
        candidates: at least one.
        prompt: tokens of the prompt; 0: not known.
    """
    if policy == "round-robin":
        return min(range(len(candidates)), key=lambda n: candidates[n].turns)
    paces = _paces([candidate.pace for candidate in candidates])

    def expected(number: int) -> tuple[float, int]:
        candidate = candidates[number]
        cached = candidate.cached if policy == "prefix" else 0
        tokens = work(candidate, prompt) + candidate.cached - cached
        return tokens * paces[number], candidate.turns

    return min(range(len(candidates)), key=expected)


def _paces(known: Sequence[float | None]) -> list[float]:
    """Of each; of those that are not known, the median."""
    measured = sorted(pace for pace in known if pace is not None)
    if not measured:
        return [1.0] * len(known)
    median = measured[len(measured) // 2]
    low, high = median / FASTER, median * FASTER
    return [median if pace is None else min(max(pace, low), high) for pace in known]
