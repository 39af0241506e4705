"""In which order sequences are served."""

from typing import Literal, Protocol

from kvrt.sched.seq import Rank, Seq

PolicyName = Literal["fcfs", "priority"]

AGING_STEPS = 256
"""Under the priority policy, waiting this many steps counts as one level of priority, so that a
stream of urgent requests delays the others and never starves them."""


class Policy(Protocol):
    def rank(self, seq: Seq, step: int) -> Rank:
        """Where a waiting `seq` stands at `step`; the smallest is admitted first.

        A sequence keeps the rank it was admitted with while it runs: the largest is preempted
        first.
        """


class Fcfs:
    """First come, first served."""

    def rank(self, seq: Seq, step: int) -> Rank:
        return (0, seq.arrival)


class Priority:
    """Smaller `priority` first; equal ones as they came; waiting raises (see `AGING_STEPS`)."""

    def rank(self, seq: Seq, step: int) -> Rank:
        return (seq.priority - (step - seq.waiting_since) // AGING_STEPS, seq.arrival)


POLICIES: dict[PolicyName, Policy] = {"fcfs": Fcfs(), "priority": Priority()}
