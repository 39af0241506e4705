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
  for as long as the policy is patient; then the least worth of those that are busy take no new
  requests until it has had its turn. So nobody waits for ever, and nobody is cut off.
- A request that leaves while it waits takes its wish with it: nothing goes for it that has not
  begun to.
"""

from collections.abc import Iterable
from http import HTTPStatus
from itertools import count
from math import ceil, inf

from kvrt.server.errors import Refusal
from kvrt.server.fleet.members import Member, Order, Rest, Ticket, Verb
from kvrt.server.fleet.memory import Memory
from kvrt.server.fleet.worth import LeastWorth, Policy

RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
"""A model that could not be loaded is tried again after so long, each time twice as long."""


class Fleet:
    """See the module. Each call says what time it is; afterwards, `take` says what is to be done.

    Args:
        rooms: bytes that models may take on each device.
        policy: which models go first, and where others go; None: `LeastWorth`.
        most_waiting: requests that may wait for one model.
    """

    def __init__(
        self,
        rooms: Iterable[int],
        *,
        policy: Policy | None = None,
        most_waiting: int = 512,
    ) -> None:
        self.rooms = tuple(rooms)
        self.members: dict[str, Member] = {}
        self._policy = policy or LeastWorth()
        self._most_waiting = most_waiting
        self.memory = Memory(self.rooms, self.members, self._policy)
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
        if not self.memory.large_enough(member):
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
            late = [self._late_at(member, place) for place in self.memory.possible(member)]
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

    def _wanted(self) -> list[Member]:
        """Models to be loaded, in the order in which their first requests came."""
        found = [
            member for member in self.members.values()
            if member.waiting and member.state in ("unloaded", "sleeping", "failed")
        ]  # fmt: skip
        return sorted(found, key=lambda member: member.waiting[0].number)

    def _make_room(self, now: float) -> set[Member]:
        """Begin the loads that can begin, and let go what others need.

        Returns:
            Busy models that are to go as soon as they are idle.
        """
        kept_free: set[int] = set()  # places that an earlier one waits for
        draining: set[Member] = set()
        for member in self._wanted():
            places = [place for place in self.memory.possible(member) if place not in kept_free]
            free = {place: self.memory.free(place) for place in places}
            lacking = member.need - member.held
            able = [place for place in places if free[place] >= lacking]
            if able:
                crowding = {place: self.memory.crowding(member, place, (), now) for place in able}
                self._begin(member, min(able, key=lambda place: (crowding[place], -free[place])))
                continue
            if (other := self._elsewhere(member, kept_free)) is not None:
                self._give_up(member, "unloaded")  # what it keeps would only hold it back
                kept_free.add(other)
                continue
            if not places:
                continue
            coming = {p: free[p] + self.memory.leaving(p) for p in places}
            found = [place for place in places if coming[place] >= lacking]
            late = {p: coming[p] for p in places if now >= self._late_at(member, p)}
            if not found:
                choice = self.memory.cheapest(member, coming, now, busy=False)
                if choice is not None and not self._policy.yields(member, choice.lost, now):
                    choice = self.memory.cheapest(member, late, now, busy=False)
                if choice is not None:
                    for victim in choice.victims:
                        self._give_up(victim, choice.where)
                    found = [choice.place]
            if not found and late:
                choice = self.memory.cheapest(member, late, now, busy=True)
                if choice is not None:
                    draining |= set(choice.victims)
                    found = [choice.place]
            kept_free.update(found)
        return draining

    def _elsewhere(self, member: Member, kept_free: set[int]) -> int | None:
        """For a model that sleeps, another device that has room for it as it is."""
        if member.state != "sleeping":
            return None
        others = set(self.memory.large_enough(member)) - {member.place} - kept_free
        able = [place for place in others if self.memory.free(place) >= member.need]
        return max(able, key=self.memory.free, default=None)

    def _late_at(self, member: Member, place: int) -> float:
        """When it has waited for long enough for those at a place to let it have its turn."""
        since = max(member.waiting[0].since, self._settled_at[place])
        return since + self._policy.patience(member)

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
