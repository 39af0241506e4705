"""What a device may offer for models that several ranks compute together: how they talk.

A rank is a process with a device of its own. Of one model there are ``parts x stages``: those of a
stage have a part of every layer each, and stages have layers one after the other.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where ranks find each other.

    Args:
        host, port: where rank 0 of all listens.
        own_host: the address of this rank's own that others reach it by.
        name: of those that meet, which others at the same port do not have.
        rank: this one, counted from 0.
        size: how many meet.
        seconds: that a call waits for the others, at most.
    """

    host: str
    port: int
    own_host: str
    name: str
    rank: int
    size: int
    seconds: float


class Collective(Protocol):
    """Ranks that have met. All make the same calls, in the same order, on tensors of the same shape
    and dtype, contiguous and on the device.

    A call is compute (`kvrt.spi`). It raises `kvrt.errors.PeerLost` if another rank has gone, or
    does not come within `Meeting.seconds`; after that, none of them is of use.
    """

    @property
    def rank(self) -> int:
        """This one, counted from 0."""

    @property
    def size(self) -> int: ...

    @property
    def calls(self) -> int:
        """Calls that this rank has begun: of ranks that wait for each other, the one with fewest is
        the one that is waited for."""

    def all_gather(self, part: "Tensor") -> "Tensor":
        """The tensors of all ranks: [size, *part.shape]."""

    def all_reduce(self, x: "Tensor") -> None:
        """Have the sum of all ranks' tensors in place of `x`: of a float dtype, added in whatever
        order, with the same bits on all ranks."""

    def send(self, x: "Tensor", to: int) -> None:
        """Give a tensor to a rank, which calls `receive`."""

    def receive(self, x: "Tensor", source: int) -> None:
        """Have a rank's tensor written to `x`."""

    def close(self) -> None:
        """Let go of the others."""


class Invitation(Protocol):
    """Where ranks meet, as long as it is open."""

    @property
    def port(self) -> int: ...

    def close(self) -> None: ...


@runtime_checkable
class Collectives(Protocol):
    """A device whose ranks can talk."""

    def invite(self, own_host: str, seconds: float) -> Invitation:
        """Listen on an address for those that are to meet. It may be closed once they have.

        Raises:
            DeviceError: the address cannot be listened on.
        """

    def meet(self, meeting: Meeting) -> Collective:
        """Meet the others, all of which call it.

        Raises:
            PeerLost: not all came in time.
        """
