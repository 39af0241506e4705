"""Models, and requests for them, as the rules see them."""

import math
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from kvrt.server.errors import Refusal

State = Literal["unloaded", "loading", "loaded", "unloading", "sleeping", "failed"]
Verb = Literal["load", "wake", "sleep", "unload"]
Rest = Literal["unloaded", "sleeping"]
"""Where a model goes that gives its memory back."""

GUESSED_BYTES_A_SECOND = 1e9
"""That a model loads at, until it was measured."""

MEMORY_S = 120.0
"""Requests of so long ago count 1/e of those of now."""


@dataclass(slots=True)
class Demand:
    """How often a model is asked for, of late."""

    weight: float = 0.0
    at: float = 0.0

    def note(self, now: float) -> None:
        """It was asked for."""
        self.weight = self._faded(now) + 1.0
        self.at = now

    def rate(self, now: float) -> float:
        """Requests a second."""
        return self._faded(now) / MEMORY_S

    def _faded(self, now: float) -> float:
        return self.weight * math.exp((self.at - now) / MEMORY_S)


@dataclass(frozen=True, slots=True)
class Order:
    """Something to be done; `Fleet.loaded`, `failed` or `gone` says that it was.

    Args:
        place: the number of the device.
    """

    verb: Verb
    model: str
    place: int


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that needs a model.

    Args:
        number: in the order of arrival.
        since: when it came.
        keep_alive: seconds that the model stays after it; None: as it is.
        granted: its model is loaded, and stays so until `Fleet.done`.
        error: why it never will be.
    """

    model: str
    number: int
    since: float
    keep_alive: float | None = None
    granted: bool = False
    error: Refusal | None = None


@dataclass(slots=True, eq=False)
class Member:
    """A model, and where it stands.

    Args:
        name: for clients.
        need: bytes of its weights and the smallest KV cache.
        keep_alive: seconds that it stays without requests; infinite: always.
        residue: bytes that it holds while it sleeps, which brings it back sooner; None: it cannot
            sleep.
        barred: devices that it cannot be on.
        load_s: what its last load took; None: it was not measured.
        place: the device that it is on, or sleeps on.
        held: bytes that it has there, or that are kept for it.
        running: requests that have it.
        expires: when it goes, if nobody asks for it.
        rests: where it goes as soon as it is idle; None: it was not told to.
        failures: loads in a row that have failed.
        retry_at: when the next may begin.
        error: what the last said.
    """

    name: str
    need: int
    keep_alive: float
    residue: int | None = None
    barred: frozenset[int] = frozenset()
    state: State = "unloaded"
    load_s: float | None = None
    place: int | None = None
    held: int = 0
    running: int = 0
    waiting: list[Ticket] = field(default_factory=list)
    expires: float = inf
    rests: Rest | None = None
    failures: int = 0
    retry_at: float = 0.0
    error: Refusal | None = None
    demand: Demand = field(default_factory=Demand)
    goes: Rest = "unloaded"

    def left(self, where: Rest) -> int:
        """Bytes that it holds where it rests."""
        return self.residue or 0 if where == "sleeping" else 0

    @property
    def idle(self) -> bool:
        return self.state == "loaded" and not self.running

    @property
    def guessed_load_s(self) -> float:
        return self.need / GUESSED_BYTES_A_SECOND if self.load_s is None else self.load_s
