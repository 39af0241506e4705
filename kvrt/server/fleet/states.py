"""Which model is loaded, which waits, which goes. Values and rules: no clock, no thread, no device.

             "load", "wake"              `loaded`
    unloaded --------------> loading --------------> loaded
    sleeping -------------->    |                      |  "sleep", "unload"
    failed   -------------->    | `failed`             v
        ^-----------------------+   sleeping <---- unloading
                                    unloaded <--------'  `gone`

- A model with requests that run is never given up; one without goes when its memory is needed, the
  least worth first, or when it was not asked for as long as it is kept alive.
- Requests for a model that is not loaded wait for one load, and loads begin in the order in which
  their first requests came. One that finds no room because all others are busy lets later ones pass
  for `PATIENCE_S`; then the least worth of those that are busy take no new requests until it has
  had its turn. So nobody waits for ever, and nobody is cut off.
- A request that leaves while it waits takes its wish with it: nothing goes for it that has not
  begun to.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from math import ceil, inf
from typing import Literal

from kvrt.server.errors import Refusal
from kvrt.server.fleet.worth import Demand, worth

State = Literal["unloaded", "loading", "loaded", "unloading", "sleeping", "failed"]
Verb = Literal["load", "wake", "sleep", "unload"]
Rest = Literal["unloaded", "sleeping"]
"""Where a model goes that gives its memory back."""

PATIENCE_S = 2.0
RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
"""A model that could not be loaded is tried again after so long, each time twice as long."""

GUESSED_BYTES_A_SECOND = 1e9
"""That a model loads at, until it was measured."""


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


Worth = Callable[[Member, float], float]
"""What a model is worth at a time, for each byte of it."""


class Fleet:
    """See the module. Each call says what time it is; afterwards, `take` says what is to be done.

    Args:
        rooms: bytes that models may take on each device.
        objective: seconds to the first token that requests should not exceed; None: there is none.
        most_waiting: requests that may wait for one model.
        worth: which go first; None: see `kvrt.server.fleet.worth`.
    """

    def __init__(
        self,
        rooms: Iterable[int],
        *,
        objective: float | None = None,
        most_waiting: int = 512,
        worth: Worth | None = None,
    ) -> None:
        self.rooms = tuple(rooms)
        self.members: dict[str, Member] = {}
        self._objective = objective
        self._most_waiting = most_waiting
        self._worth = worth or self._measured_worth
        self._numbers = count()
        self._settled_at = [0.0] * len(self.rooms)
        self._draining: set[Member] = set()
        self._orders: list[Order] = []
        self._answered: list[Ticket] = []

    # --- what happens ------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        """A model that there is; one of that name must not be there."""
        assert member.name not in self.members, "names are unique"
        self.members[member.name] = member

    def ask(self, name: str, now: float, keep_alive: float | None = None) -> Ticket:
        """A request.

        Args:
            keep_alive: see `Ticket`.

        Raises:
            Refusal: the model can never be loaded, could not be loaded just now, or too many wait.
        """
        member = self.members[name]
        if member.need > max(self.rooms):
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{name} needs {member.need} bytes, more than this server has for models,"
                f" {max(self.rooms)}",
                code="no_memory",
            )
        if member.state == "failed" and now < member.retry_at and member.error is not None:
            member.error.headers = {"retry-after": str(max(1, ceil(member.retry_at - now)))}
            raise member.error
        if len(member.waiting) >= self._most_waiting:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{len(member.waiting)} requests wait for {name} to be loaded",
                code="rate_limit_exceeded",
                headers={"retry-after": str(max(1, ceil(member.guessed_load_s)))},
            )
        member.demand.note(now)
        ticket = Ticket(name, next(self._numbers), now, keep_alive)
        member.waiting.append(ticket)
        self.advance(now)
        return ticket

    def done(self, ticket: Ticket, now: float) -> None:
        """A request has ended, or left while it waited."""
        member = self.members[ticket.model]
        if ticket.granted:
            member.running -= 1
            self._stays(member, now, ticket.keep_alive)
        elif ticket in member.waiting:
            member.waiting.remove(ticket)
        self.advance(now)

    def rest(self, name: str, where: Rest, now: float) -> None:
        """Let a model go as soon as it is idle. One that does not sleep is unloaded instead."""
        member = self.members[name]
        if member.state == "sleeping" and where == "unloaded":
            self._give_up(member, where)
        elif member.state == "loaded" or (member.state == "loading" and not member.waiting):
            member.rests = "unloaded" if member.residue is None else where
        self.advance(now)

    def loaded(self, name: str, now: float, need: int, load_s: float) -> None:
        """A load, or a waking, has ended well.

        Args:
            need: bytes, as they were found to be.
            load_s: seconds that it took.
        """
        member = self.members[name]
        assert member.state == "loading", "it was ordered"
        assert member.place is not None, "it has one"
        member.state, member.load_s = "loaded", load_s
        member.need = member.held = need
        member.failures, member.error = 0, None
        self._settled_at[member.place] = now
        self._stays(member, now, None)
        self.advance(now)

    def failed(self, name: str, now: float, error: Refusal, need: int = 0) -> None:
        """It has not. Who waits for it is told, and nobody else.

        Args:
            need: bytes that were found to be missing, if that was the reason.
        """
        member = self.members[name]
        assert member.state == "loading", "it was ordered"
        member.need = max(member.need, need)
        member.state, member.place, member.rests, member.held = "failed", None, None, 0
        member.retry_at = now + min(LONGEST_RETRY_S, RETRY_S * 2**member.failures)
        member.failures += 1
        member.error = error
        for ticket in member.waiting:
            ticket.error = error
        self._answered += member.waiting
        member.waiting = []
        self.advance(now)

    def gone(self, name: str, now: float, where: Rest | None = None) -> None:
        """Its memory has come back.

        Args:
            where: it rests; None: as it was ordered.
        """
        member = self.members[name]
        assert member.state == "unloading", "it was ordered"
        member.state = where or member.goes
        member.held = member.left(member.state)
        if member.state == "unloaded":
            member.place = None
        self.advance(now)

    def broken(self, name: str, now: float) -> None:
        """Its engine has stopped for good: it is unloaded once nobody has it any more."""
        self.rest(name, "unloaded", now)

    # --- what is to be done ------------------------------------------------------------------

    def take(self) -> tuple[list[Order], list[Ticket]]:
        """What is to be carried out, and requests whose waiting is over; each once."""
        taken = self._orders, self._answered
        self._orders, self._answered = [], []
        return taken

    def next_time(self, now: float) -> float:
        """When `advance` has something to do, if nothing happens before; infinite: never."""
        times = [
            member.expires
            for member in self.members.values()
            if member.idle or member.state == "sleeping"
        ]
        for member in self._wanted():
            late = [self._late_at(member, place) for place in self._places_for(member)]
            times += [time for time in late if time > now]
        return min(times, default=inf)

    def advance(self, now: float) -> None:
        """Do what can be done by now."""
        self._grant()
        for member in self.members.values():
            if member.idle and member.rests is not None:
                self._give_up(member, member.rests)
            elif member.expires <= now and (member.idle or member.state == "sleeping"):
                self._give_up(member, "unloaded")
        self._draining = self._make_room(now)
        self._grant()

    # --- memory ------------------------------------------------------------------------------

    def used(self, place: int) -> int:
        """Bytes of a device that models hold."""
        return sum(member.held for member in self._at(place))

    def _at(self, place: int) -> Iterator[Member]:
        return (member for member in self.members.values() if member.place == place)

    def _wanted(self) -> list[Member]:
        """Models to be loaded, in the order in which their first requests came."""
        found = [
            member for member in self.members.values()
            if member.waiting and member.state in ("unloaded", "sleeping", "failed")
        ]  # fmt: skip
        return sorted(found, key=lambda member: member.waiting[0].number)

    def _places_for(self, member: Member) -> list[int]:
        """Devices that it may be on: where it sleeps, or any that is large enough."""
        if member.place is not None:
            return [member.place]
        return [place for place, room in enumerate(self.rooms) if member.need <= room]

    def _make_room(self, now: float) -> set[Member]:
        """Begin the loads that can begin, and let go what others need.

        Returns:
            Busy models that are to go as soon as they are idle.
        """
        kept_free: set[int] = set()  # places that an earlier one waits for
        draining: set[Member] = set()
        for member in self._wanted():
            places = [place for place in self._places_for(member) if place not in kept_free]
            if not places:
                continue
            free = {place: self.rooms[place] - self.used(place) for place in places}
            roomiest = max(places, key=lambda place: free[place])
            lacking = member.need - member.held
            if free[roomiest] >= lacking:
                self._begin(member, roomiest)
                continue
            coming = {p: free[p] + self._leaving(p) for p in places}
            found = [place for place in places if coming[place] >= lacking]
            if not found:
                choice = self._cheapest(member, coming, now, busy=False)
                if choice is not None:
                    place, victims, where = choice
                    for victim in victims:
                        self._give_up(victim, where)
                    found = [place]
            late = {p: coming[p] for p in places if now >= self._late_at(member, p)}
            if not found and late:
                choice = self._cheapest(member, late, now, busy=True)
                if choice is not None:
                    place, victims, _ = choice
                    draining |= set(victims)
                    found = [place]
            kept_free.update(found)
        return draining

    def _leaving(self, place: int) -> int:
        going = (member for member in self._at(place) if member.state == "unloading")
        return sum(member.held - member.left(member.goes) for member in going)

    def _late_at(self, member: Member, place: int) -> float:
        """When it has waited for long enough for those at a place to let it have its turn."""
        return max(member.waiting[0].since, self._settled_at[place]) + PATIENCE_S

    def _cheapest(
        self, member: Member, coming: Mapping[int, int], now: float, *, busy: bool
    ) -> tuple[int, list[Member], Rest] | None:
        """The place where the least is lost for a model, what goes there, and where to.

        Args:
            coming: bytes that are free at each place, or will be.
            busy: also those that have requests.
        """
        ways: tuple[Rest, ...] = ("sleeping", "unloaded")
        for where in ways:  # of those that sleep something stays, which may be too much
            found = []
            for place, nbytes in coming.items():
                lacking = member.need - member.held - nbytes
                victims = self._victims(member, place, lacking, where, now, busy=busy)
                if victims is not None:
                    lost = sum(self._worth(each, now) * each.held for each in victims)
                    found.append((lost, place, victims))
            if found:
                _, place, victims = min(found, key=lambda each: each[:2])
                return place, victims, where
        return None

    def _victims(
        self, member: Member, place: int, lacking: int, where: Rest, now: float, *, busy: bool
    ) -> list[Member] | None:
        """The least worth at a place that together give up so many bytes; None: there are not so
        many."""

        def gain(each: Member) -> int:
            return each.held - (each.left(where) if each.residue is not None else 0)

        able = [
            m for m in self._at(place)
            if m is not member and gain(m) > 0
            and (m.idle or m.state == "sleeping" or (busy and m.state == "loaded"))
        ]  # fmt: skip
        able.sort(key=lambda m: self._worth(m, now))
        victims: list[Member] = []
        for each in able:
            if lacking > 0:
                victims.append(each)
                lacking -= gain(each)
        if lacking > 0:
            return None
        for each in reversed(victims[:]):  # one that is large may do without the small ones
            if lacking + gain(each) <= 0:
                victims.remove(each)
                lacking += gain(each)
        return victims

    def _measured_worth(self, member: Member, now: float) -> float:
        rate = member.demand.rate(now)
        return worth(rate, member.guessed_load_s, member.need, self._objective)

    # --- transitions -------------------------------------------------------------------------

    def _begin(self, member: Member, place: int) -> None:
        verb: Verb = "wake" if member.state == "sleeping" else "load"
        member.state, member.place, member.rests = "loading", place, None
        member.held = member.need
        self._orders.append(Order(verb, member.name, place))

    def _give_up(self, member: Member, where: Rest) -> None:
        assert member.place is not None, "it holds something"
        assert not member.running, "a busy model stays"
        goes: Rest = "unloaded" if member.residue is None else where
        member.state, member.goes, member.rests = "unloading", goes, None
        verb: Verb = "sleep" if goes == "sleeping" else "unload"
        self._orders.append(Order(verb, member.name, member.place))

    def _grant(self) -> None:
        for member in self.members.values():
            if member.state != "loaded" or member in self._draining or member.rests is not None:
                continue
            for ticket in member.waiting:
                ticket.granted = True
            member.running += len(member.waiting)
            self._answered += member.waiting
            member.waiting = []

    def _stays(self, member: Member, now: float, keep_alive: float | None) -> None:
        """Count from now how long it stays without requests."""
        if keep_alive is not None:
            member.keep_alive = keep_alive
        member.expires = now + member.keep_alive
