"""Which experts are in which place, and which go when others are needed: values, without memory.

An expert is worth how often it was used, and half of that `HALF_LIFE` steps later. The one that is
worth least goes; of equals, the one that was not used for longest. One that comes back is worth
what is left of before, so an expert that is needed once displaces another such, and not one that is
always needed. docs/design/offloaded-experts.md has what else was tried.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvrt.errors import IntegrityError

HALF_LIFE = 4
"""Steps, counted as uses of each layer, that halve what was used before."""

NOWHERE = -1


class Taken(NamedTuple):
    """Where experts are to be, and which of them have to be brought there."""

    places: NDArray[np.int64]
    missing: Sequence[int]


class Residency:
    """Experts are numbers from 0 to below `experts`; places, from 0 to below `places`.

    Args:
        experts: how many there are.
        places: how many can be resident.
        layers: how many layers they are of.
    """

    def __init__(self, experts: int, places: int, layers: int) -> None:
        self._place = np.full(experts, NOWHERE, np.int64)
        self._expert = np.full(places, NOWHERE, np.int64)
        self._worth = np.zeros(experts)
        self._used = np.zeros(experts, np.int64)
        self._halve_after = HALF_LIFE * layers
        self._uses = 0

    @property
    def held(self) -> int:
        """How many are resident."""
        return int((self._expert != NOWHERE).sum())

    def resident(self, experts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of them are."""
        return np.not_equal(self._place[experts], NOWHERE)

    def take(self, experts: NDArray[np.int64]) -> Taken:
        """Make all of these resident, and none of them go for another.

        Args:
            experts: each once, at most as many as there are places.

        Returns:
            The place of each, and the positions in `experts` of those that were not resident.
        """
        self._uses += 1
        if self._uses % self._halve_after == 0:
            self._worth *= 0.5
        self._worth[experts] += 1.0
        self._used[experts] = self._uses
        missing = np.flatnonzero(self._place[experts] == NOWHERE)
        if len(missing):
            freed = self._worst(experts)[: len(missing)]
            gone = self._expert[freed]
            self._place[gone[gone != NOWHERE]] = NOWHERE
            self._expert[freed] = experts[missing]
            self._place[experts[missing]] = freed
        return Taken(self._place[experts], missing.tolist())

    def forget(self, expert: int) -> None:
        """It is not where it was to be brought."""
        self._expert[self._place[expert]] = NOWHERE
        self._place[expert] = NOWHERE

    def clear(self) -> None:
        """None is resident any more. What they are worth stays."""
        self._place[:] = NOWHERE
        self._expert[:] = NOWHERE

    def _worst(self, needed: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places that can be taken, the first to be taken first."""
        empty = self._expert == NOWHERE
        worth = np.where(empty, -1.0, self._worth[self._expert])
        order = np.lexsort((self._used[self._expert], worth))
        return order[~np.isin(self._expert[order], needed)]

    def check_integrity(self) -> None:
        """Raise `IntegrityError` if the two directions disagree."""
        (held,) = np.nonzero(self._expert != NOWHERE)
        (there,) = np.nonzero(self._place != NOWHERE)
        if len(held) != len(there) or (self._place[self._expert[held]] != held).any():
            raise IntegrityError("experts are not in the places that hold them")
