"""The sequences that wait for their turn, in order, however many there are.

urgency 512   seq 3, seq 7, seq 8     by arrival
        513   seq 9                   which urgencies stand on one level is the policy's, and
        514   seq 4, seq 11           may be another at each step; their own order stays
"""

import bisect
import heapq
import itertools
from collections.abc import Iterator

from kvrt.kv.seq import Seq
from kvrt.sched.policy import Policy


class Waiting:
    """See the module. To come, to go and to be first cost the same however many wait.

    Args:
        policy: the order of service.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._urgency: dict[Seq, int] = {}
        self._lines: dict[int, list[Seq]] = {}
        self._urgencies: list[int] = []

    def __len__(self) -> int:
        return len(self._urgency)

    def __contains__(self, seq: Seq) -> bool:
        return seq in self._urgency

    def __iter__(self) -> Iterator[Seq]:
        """In the order in which they came here."""
        return iter(self._urgency)

    def first(self, most: int, step: int) -> list[Seq]:
        """By rank at `step`, so many at most. From any thread."""
        return heapq.nsmallest(most, list(self._urgency), lambda seq: self._policy.rank(seq, step))

    def append(self, seq: Seq) -> None:
        """It waits from now on; what its urgency depends on must not change meanwhile."""
        urgency = self._urgency[seq] = self._policy.urgency(seq)
        line = self._lines.get(urgency)
        if line is None:
            line = self._lines[urgency] = []
            bisect.insort(self._urgencies, urgency)
        bisect.insort(line, seq, key=_arrival)

    def remove(self, seq: Seq) -> None:
        """It waits no longer."""
        urgency = self._urgency.pop(seq)
        line = self._lines[urgency]
        del line[bisect.bisect_left(line, seq.arrival, key=_arrival)]
        if not line:
            del self._lines[urgency]
            del self._urgencies[bisect.bisect_left(self._urgencies, urgency)]

    def clear(self) -> None:
        """None waits any longer."""
        self._urgency.clear()
        self._lines.clear()
        self._urgencies.clear()

    def in_order(self, step: int) -> Iterator[Seq]:
        """By rank at `step`. None may come or go meanwhile."""
        level = self._policy.level
        for _, same in itertools.groupby(self._urgencies, lambda urgency: level(urgency, step)):
            yield from heapq.merge(*(self._lines[urgency] for urgency in same), key=_arrival)


def _arrival(seq: Seq) -> int:
    return seq.arrival
