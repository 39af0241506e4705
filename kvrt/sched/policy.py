"""In which order sequences are served."""

from abc import ABC, abstractmethod
from typing import Literal

from kvrt.kv.seq import Rank, Seq

PolicyName = Literal["fcfs", "priority"]

AGING_STEPS = 256
"""Under the priority policy, waiting this many steps counts as one level of priority, so that a
stream of urgent requests delays the others and never starves them."""


class Policy(ABC):
    """The order of service: by level, and on one level as they came."""

    @abstractmethod
    def urgency(self, seq: Seq) -> int:
        """A number that stays while `seq` waits; the smallest is never served after another."""

    @abstractmethod
    def level(self, urgency: int, step: int) -> int:
        """What an urgency counts for at `step`; it never falls from one urgency to a larger one."""

    def rank(self, seq: Seq, step: int) -> Rank:
        """Where a waiting `seq` stands at `step`; the smallest is admitted first.

        A sequence keeps the rank it was admitted with while it runs: the largest is preempted
        first.
        """
        return (self.level(self.urgency(seq), step), seq.arrival)


class Fcfs(Policy):
    """First come, first served."""

    def urgency(self, seq: Seq) -> int:
        return 0

    def level(self, urgency: int, step: int) -> int:
        return 0


class Priority(Policy):
    """Smaller `priority` first; equal ones as they came; waiting raises (see `AGING_STEPS`)."""

    def urgency(self, seq: Seq) -> int:
        return seq.priority * AGING_STEPS + seq.waiting_since

    def level(self, urgency: int, step: int) -> int:
        return -((step - urgency) // AGING_STEPS)


POLICIES: dict[PolicyName, Policy] = {"fcfs": Fcfs(), "priority": Priority()}
