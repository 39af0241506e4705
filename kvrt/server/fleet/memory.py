"""The memory of devices: which models hold it, and which are least worth what they hold."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from kvrt.server.fleet.members import Member, Rest
from kvrt.server.fleet.worth import Policy


class Choice(NamedTuple):
    """Models that go, so that another has room.

    Args:
        place: the device.
        victims: they.
        where: they rest.
        lost: their worth.
    """

    place: int
    victims: Sequence[Member]
    where: Rest
    lost: float


class Memory:
    """What models hold, and what goes where another has no room. It changes nothing.

    Args:
        rooms: bytes that models may take on each device.
        members: those that there are, by their names; looked at when asked.
        policy: what a model is worth.
    """

    def __init__(self, rooms: Sequence[int], members: Mapping[str, Member], policy: Policy) -> None:
        self._rooms = rooms
        self._members = members
        self._policy = policy

    def used(self, place: int) -> int:
        """Bytes of a device that models hold."""
        return sum(member.held for member in self.at(place))

    def at(self, place: int) -> Iterator[Member]:
        return (member for member in self._members.values() if member.place == place)

    def possible(self, member: Member) -> list[int]:
        """Devices that it may be on: where it sleeps, or any that is large enough."""
        if member.place is not None:
            return [member.place]
        return self.large_enough(member)

    def large_enough(self, member: Member) -> list[int]:
        """Devices that have room for it, if there is nothing else."""
        rooms = enumerate(self._rooms)
        return [at for at, room in rooms if member.need <= room and at not in member.barred]

    def free(self, place: int) -> int:
        """Bytes of a device that no model holds."""
        return self._rooms[place] - self.used(place)

    def leaving(self, place: int) -> int:
        going = (member for member in self.at(place) if member.state == "unloading")
        return sum(member.held - member.left(member.goes) for member in going)

    def cheapest(
        self, member: Member, coming: Mapping[int, int], now: float, *, busy: bool
    ) -> Choice | None:
        """The place where the least is lost for a model, what goes there, and where to.

        Args:
            coming: bytes that are free at each place, or will be.
            busy: also those that have requests.
        """
        ways: tuple[Rest, ...] = ("sleeping", "unloaded")
        for where in ways:  # of those that sleep something stays, which may be too much
            found: list[tuple[tuple[float, ...], Choice]] = []
            for place, nbytes in coming.items():
                lacking = member.need - member.held - nbytes
                victims = self._victims(member, place, lacking, where, now, busy=busy)
                if victims is not None:
                    lost = sum(self._policy.worth(each, now) * each.held for each in victims)
                    crowding = self.crowding(member, place, victims, now)
                    choice = Choice(place, victims, where, lost)
                    found.append((self._policy.order(lost, crowding), choice))
            if found:
                return min(found, key=lambda each: each[0])[1]
        return None

    def _victims(
        self, member: Member, place: int, lacking: int, where: Rest, now: float, *, busy: bool
    ) -> list[Member] | None:
        """The least worth at a place that together give up so many bytes; None: there are not so
        many."""

        def gain(each: Member) -> int:
            return each.held - (each.left(where) if each.residue is not None else 0)

        able = [
            m for m in self.at(place)
            if m is not member and gain(m) > 0
            and (m.idle or m.state == "sleeping" or (busy and m.state == "loaded"))
        ]  # fmt: skip
        able.sort(key=lambda m: self._policy.worth(m, now))
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

    def crowding(self, member: Member, place: int, victims: Sequence[Member], now: float) -> float:
        """Of a place, with a model and without others."""
        stay = [each for each in self.at(place) if each is not member and each not in victims]
        return self._policy.crowding([*stay, member], self._rooms[place], now)
