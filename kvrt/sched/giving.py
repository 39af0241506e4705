"""Who loses its pages to others: to those that run, where memory runs out, and to one that waits,
whose tenant has lent them."""

import math
from collections.abc import Collection, Sequence

from kvrt.kv.index.reuse import Reuse
from kvrt.kv.index.shares import Shares
from kvrt.kv.pages.table import PageTable
from kvrt.kv.seq import Seq
from kvrt.sched.room import bytes_to_come
from kvrt.sched.waiting import held_by


class Givers:
    """Running sequences, of which some may have to give their pages to others.

    Args:
        order: by rank; the first, and those that stand with it, give theirs only if they are alone.
            So the first ones end, and others are the first: none is preempted for ever.
        fetching: count towards what tenants hold.
        table: as it is with all of them.
        reuse: knows what it costs to bring them back.
        shares: of tenants.
    """

    def __init__(
        self,
        order: Sequence[Seq],
        fetching: Collection[Seq],
        table: PageTable,
        reuse: Reuse,
        shares: Shares[str],
    ) -> None:
        self._order = order
        self._table = table
        self._reuse = reuse
        self._shares = shares
        self._held = held_by((*order, *fetching))
        first = stands_with(order[0], order) if order else []
        self._others = [seq for seq in order if seq not in first]

    def victims(self) -> list[Seq]:
        """Memory runs out: one that loses its pages, and all that stand with it.

        One of the lowest priority, of the tenant that holds most for its share, preempted least
        often; then the one that is cheapest to bring back, for each byte that it alone holds.
        """
        victim = min(self._others or self._order, key=self._price)
        return stands_with(victim, self._order)

    def lent(self, wanting: Seq, lacking: int, at_once: int) -> list[Seq]:
        """Those whose pages come back to the tenant of one that waits, because it has lent them:
        enough for it, or none.

        A tenant gives as long as it has no less for its share afterwards than the other, so that
        nothing goes to and fro: what was given is more than the other could ask back.

        Args:
            wanting: waits.
            lacking: bytes, for it to be admitted.
            at_once: tokens that a step computes, at most.
        """
        held, shares, tenant = self._held.copy(), self._shares, wanting.tenant
        due = shares.part(tenant, held[tenant] + len(wanting.tokens))
        left = [
            seq for seq in self._others if seq.tenant != tenant and seq.priority >= wanting.priority
        ]
        giving: list[Seq] = []
        for seq in sorted(left, key=self._price):
            if lacking <= 0:
                break
            if seq in giving:
                continue
            together = stands_with(seq, left)
            rest = held[seq.tenant] - sum(len(each.tokens) for each in together)
            if shares.part(seq.tenant, rest) < due:
                continue
            held[seq.tenant] = rest
            giving += together
            lacking -= sum(
                self._table.own_bytes(each.id) + bytes_to_come(self._table, each, at_once)
                for each in together
            )
        return giving if lacking <= 0 else []

    def _price(self, seq: Seq) -> tuple[int, float, int, float]:
        own = self._table.own_bytes(seq.id)
        cost = math.inf
        if own:
            cost = self._reuse.bring_back(seq, self._table.held_bytes(seq.id)) / own
        part = self._shares.part(seq.tenant, self._held[seq.tenant])
        return (-seq.rank[0], -part, seq.preemptions, cost)


def stands_with(seq: Seq, order: Sequence[Seq]) -> list[Seq]:
    """The sequences that go on together with `seq`, or not at all; at least itself."""
    if seq.together is None:
        return [seq]
    return [other for other in order if other.together == seq.together]
