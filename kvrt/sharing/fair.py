"""Who is due how much of a device, of numbers alone.

Everybody has what was guaranteed to them, as far as they want it. What is left goes to those of the
highest priority who want more, by weight, then to those of the next: weighted max-min fairness
(Bertsekas and Gallager, Data Networks, 1992, section 6.5.2).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """What one tenant asks for.

    Args:
        held: bytes that it has; what is only cached in them counts for nothing where others want
            to run.
        want: bytes that it could use now.
        guarantee: bytes that it is due whatever others want.
        lends: others may have what it does not want of its guarantee, until it wants it.
        weight: its part of what is not guaranteed, beside others' weights.
        priority: those of a higher one come first.
    """

    held: int
    want: int
    guarantee: int = 0
    lends: bool = False
    weight: float = 1.0
    priority: int = 0

    def owed(self, share: int) -> int:
        """Bytes that must stay free for it, or become so, if `share` is its part."""
        kept = 0 if self.lends else self.guarantee
        return max(0, max(share, kept) - self.held)


def fair_shares(total: int, claims: Sequence[Claim]) -> list[int]:
    """How many of `total` bytes each one is due: together at most all, and no one more than it
    wants. The guarantees must fit in `total`."""
    shares = [min(claim.want, claim.guarantee) for claim in claims]
    left = total - sum(shares)
    # What is guaranteed, and not to be lent, is nobody's share.
    left -= sum(
        claim.guarantee - share
        for claim, share in zip(claims, shares, strict=True)
        if not claim.lends
    )
    for priority in sorted({claim.priority for claim in claims}, reverse=True):
        rank = [n for n, claim in enumerate(claims) if claim.priority == priority]
        left = _pour(max(0, left), rank, shares, claims)
    return shares


def _pour(left: int, rank: Iterable[int], shares: list[int], claims: Sequence[Claim]) -> int:
    """Add to the shares of some, by weight, until they have what they want. Returns what is left.

    From the one that wants least for its weight on: whoever wants less than its part leaves more to
    those behind it.
    """

    def missing(n: int) -> int:
        return claims[n].want - shares[n]

    order = sorted(rank, key=lambda n: missing(n) / claims[n].weight)
    weights = sum(claims[n].weight for n in order)
    for n in order:
        part = min(missing(n), left, int(left * claims[n].weight / weights))
        shares[n] += part
        left -= part
        weights -= claims[n].weight
        if weights <= 0:  # the last one; or what rounding left of the sum
            weights = claims[n].weight
    return left


def allowance(total: int, me: Claim, others: Sequence[Claim]) -> int:
    """How many bytes `me` may hold now: what it has, and what is free and owed to nobody; or, if
    more is owed than is free, less than it has.

    Those that have more than their share give it back, each as much of what is missing as it has of
    what is too much. A guarantee that is not lent is there whatever others are owed: at once, but
    for what they held before it was given.
    """
    claims = [me, *others]
    shares = fair_shares(total, claims)
    owed = sum(claim.owed(share) for claim, share in zip(others, shares[1:], strict=True))
    free = max(0, total - sum(claim.held for claim in claims))
    room = free - owed
    over = [max(0, claim.held - share) for claim, share in zip(claims, shares, strict=True)]
    if room >= 0 or not over[0]:
        allowed = me.held + max(0, room)
    else:
        allowed = me.held - min(over[0], -(room * over[0] // sum(over)))
    return allowed if me.lends else max(allowed, min(me.guarantee, me.held + free))
