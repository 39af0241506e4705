"""The sequences that wait for their turn, in order, however many there are.

urgency 512   seq 3, seq 7, seq 8     by arrival, those of each tenant by themselves
        513   seq 9                   which urgencies stand on one level is the policy's, and
        514   seq 4, seq 11           may be another at each step; their own order stays

On one level, the tenant whose sequences are shortest together, for its share, comes first: so
nobody's many or long prompts keep another's waiting (weighted max-min fairness of what is held).
"""

import bisect
import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from kvrt.kv.index.shares import EVEN, Shares
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
        self._lines: dict[int, dict[str, list[Seq]]] = {}
        self._urgencies: list[int] = []
        self.shares: Shares[str] = EVEN
        """Of tenants, by name. From any thread."""

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
        lines = self._lines.get(urgency)
        if lines is None:
            lines = self._lines[urgency] = {}
            bisect.insort(self._urgencies, urgency)
        bisect.insort(lines.setdefault(seq.tenant, []), seq, key=_arrival)

    def remove(self, seq: Seq) -> None:
        """It waits no longer."""
        urgency = self._urgency.pop(seq)
        lines = self._lines[urgency]
        line = lines[seq.tenant]
        del line[bisect.bisect_left(line, seq.arrival, key=_arrival)]
        if not line:
            del lines[seq.tenant]
        if not lines:
            del self._lines[urgency]
            del self._urgencies[bisect.bisect_left(self._urgencies, urgency)]

    def clear(self) -> None:
        """None waits any longer."""
        self._urgency.clear()
        self._lines.clear()
        self._urgencies.clear()

    def in_order(self, step: int, held: Mapping[str, int] = {}) -> Iterator[Seq]:
        """By rank at `step`, tenants in turn. None may come or go meanwhile.

        Args:
            held: by tenant, tokens of the sequences that run; those that are given here count, too.
        """
        level, taken, shares = self._policy.level, Counter(held), self.shares
        for _, same in itertools.groupby(self._urgencies, lambda urgency: level(urgency, step)):
            lines: dict[str, list[list[Seq]]] = {}
            for urgency in same:
                for tenant, line in self._lines[urgency].items():
                    lines.setdefault(tenant, []).append(line)
            yield from _in_turn(lines, taken, shares)


def _in_turn(
    lines: Mapping[str, list[list[Seq]]], taken: Counter[str], shares: Shares[str]
) -> Iterator[Seq]:
    """The sequences of all tenants, always of the one that has taken least for its share; then by
    arrival."""
    heads = []
    for tenant, own in lines.items():
        rest = heapq.merge(*own, key=_arrival)
        first = next(rest)
        heads.append((shares.part(tenant, taken[tenant]), first.arrival, first, rest))
    heapq.heapify(heads)
    while heads:
        _, _, seq, rest = heads[0]
        yield seq
        taken[seq.tenant] += len(seq.tokens)
        if (after := next(rest, None)) is None:
            heapq.heappop(heads)
        else:
            part = shares.part(seq.tenant, taken[seq.tenant])
            heapq.heapreplace(heads, (part, after.arrival, after, rest))


def held_by(seqs: Iterable[Seq]) -> Counter[str]:
    """By tenant, tokens of sequences."""
    held = Counter[str]()
    for seq in seqs:
        held[seq.tenant] += len(seq.tokens)
    return held


def _arrival(seq: Seq) -> int:
    return seq.arrival
