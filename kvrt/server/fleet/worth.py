"""What it costs that a model is not loaded, and what follows from it."""

from collections.abc import Sequence
from typing import Protocol

from kvrt.server.fleet.members import Member

PATIENCE_S = 2.0
TURN_S = 20.0
"""That a model waits whose requests have missed the objective, whatever is done."""

NOTHING = 1e-3
"""Less lost a second is no loss."""


def missed(rate: float, load_s: float, objective: float | None) -> float:
    """What one cold start costs: the seconds that requests wait for it, all together; with an
    objective for the time to the first token, the requests that miss it.

    Args:
        rate: requests a second.
        load_s: seconds that loading takes.
        objective: seconds.
    """
    if objective is None:
        return load_s * (1.0 + rate * load_s / 2)
    return 1.0 + rate * (load_s - objective) if load_s > objective else 0.0


def worth(rate: float, load_s: float, nbytes: int, objective: float | None = None) -> float:
    """What is lost a second, and for each byte that is gained, while a model is not loaded.

    A model that is loaded within the objective costs nobody anything: it is the first to go. Of two
    of which this is so, or that nobody has asked for, the one that is loaded sooner goes.
    """
    lost = rate * missed(rate, load_s, objective)
    return (lost + 1e-9 * load_s * (1e-3 + rate)) / max(1, nbytes)


class Policy(Protocol):
    """Which models go first, and where others go. See `LeastWorth`."""

    def worth(self, member: Member, now: float) -> float:
        """What a model is worth, for each byte of it: the least goes first."""

    def crowding(self, members: Sequence[Member], room: int, now: float) -> float:
        """How much work a device with these models has: the least is best.

        Args:
            room: bytes of it that models may take.
        """

    def order(self, lost: float, crowding: float) -> tuple[float, ...]:
        """Where a model goes that others have to make room for: the least is best.

        Args:
            lost: the worth of those that go.
            crowding: afterwards.
        """

    def patience(self, member: Member) -> float:
        """Seconds that a model waits for others before they let it have its turn, busy or not."""

    def yields(self, member: Member, lost: float, now: float) -> bool:
        """Whether idle models of so much worth go for a model at once, or only for its turn."""


class LeastWorth:
    """What is lost by a model's absence decides; of devices with room, the one with least work.

    Args:
        objective: seconds to the first token that requests should not exceed; None: there is none.
    """

    def __init__(self, objective: float | None = None) -> None:
        self._objective = objective

    def worth(self, member: Member, now: float) -> float:
        rate = member.demand.rate(now)
        return worth(rate, member.guessed_load_s, member.need, self._objective)

    def crowding(self, members: Sequence[Member], room: int, now: float) -> float:
        """By the memory that is left for keys and values, as of Prism's pressure ratio."""
        rate = sum(each.demand.rate(now) for each in members)
        return rate / max(1, room - sum(each.need for each in members))

    def order(self, lost: float, crowding: float) -> tuple[float, ...]:
        return lost if lost > NOTHING else 0.0, crowding

    def patience(self, member: Member) -> float:
        return TURN_S if self._misses(member) else PATIENCE_S

    def yields(self, member: Member, lost: float, now: float) -> bool:
        """Requests for a model that cannot be there within the objective have missed it: nothing of
        more worth goes for them, until they have waited for their turn together."""
        return not self._misses(member) or lost <= self.worth(member, now) * member.need

    def _misses(self, member: Member) -> bool:
        return self._objective is not None and member.guessed_load_s > self._objective
