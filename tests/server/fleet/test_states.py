"""Which model is loaded, which waits, which goes: rules for any order of events, on a clock of the
test's own."""

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvrt.server.errors import Refusal
from kvrt.server.fleet.members import Member, Order, Ticket
from kvrt.server.fleet.states import Fleet
from kvrt.server.fleet.worth import PATIENCE_S, TURN_S, LeastWorth

NEEDS = {"big": 60, "half": 50, "small": 20, "tiny": 10}
BAD = Refusal(503, "its files are damaged")


def fleet(
    *rooms: int, most_waiting: int = 512, objective: float | None = None, **changes: Any
) -> Fleet:
    """With the models of `NEEDS`."""
    made = Fleet(rooms or (100,), policy=LeastWorth(objective), most_waiting=most_waiting)
    for name, need in NEEDS.items():
        made.add(Member(name, need, **{"keep_alive": math.inf, **changes}))
    return made


class World:
    """A fleet, and a driver that does what it is told when the test says so."""

    def __init__(self, *rooms: int, **changes: Any) -> None:
        self.fleet = fleet(*rooms, **changes)
        self.now = 0.0
        self.pending: list[Order] = []
        self.done: list[Order] = []
        self.settled: list[Ticket] = []

    def take(self) -> None:
        orders, settled = self.fleet.take()
        self.pending += orders
        self.settled += settled

    def ask(self, name: str, **options: Any) -> Ticket:
        ticket = self.fleet.ask(name, self.now, **options)
        self.take()
        return ticket

    def end(self, ticket: Ticket) -> None:
        self.fleet.done(ticket, self.now)
        self.take()

    def carry_out(self, order: Order, *, fails: bool = False) -> None:
        self.pending.remove(order)
        self.done.append(order)
        member = self.fleet.members[order.model]
        if order.verb in ("sleep", "unload"):
            self.fleet.gone(order.model, self.now)
        elif fails:
            self.fleet.failed(order.model, self.now, BAD)
        else:
            self.fleet.loaded(order.model, self.now, member.need, 1.0)
        self.take()

    def settle(self) -> None:
        """All that was ordered is done, and what follows from it."""
        while self.pending:
            self.carry_out(self.pending[0])

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.fleet.advance(self.now)
        self.take()

    def state(self, name: str) -> str:
        return self.fleet.members[name].state

    @property
    def verbs(self) -> list[tuple[str, str]]:
        return [(order.verb, order.model) for order in self.pending]

    def have(self, *names: str) -> list[Ticket]:
        """Requests that have their models."""
        tickets = [self.ask(name) for name in names]
        self.settle()
        assert all(ticket.granted for ticket in tickets)
        return tickets


# --- the rules, one by one -------------------------------------------------------------------


def test_requests_for_one_model_share_one_load() -> None:
    world = World()
    tickets = [world.ask("big") for _ in range(5)]
    assert world.verbs == [("load", "big")]
    world.settle()
    assert world.settled == tickets
    assert all(ticket.granted for ticket in tickets)


def test_a_busy_model_is_never_given_up() -> None:
    world = World()
    (busy,) = world.have("big")
    world.ask("half")
    world.wait(1000)
    assert world.verbs == []
    world.end(busy)
    assert world.verbs == [("unload", "big")]


def test_two_who_wait_share_what_one_model_gives_up() -> None:
    world = World()
    for ticket in world.have("big"):
        world.end(ticket)
    first, second = world.ask("half"), world.ask("half")
    assert world.verbs == [("unload", "big")]
    world.settle()
    assert first.granted
    assert second.granted
    assert [order.verb for order in world.done] == ["load", "unload", "load"]


def test_two_models_that_fit_into_what_one_gives_up_cost_no_other_its_place() -> None:
    world = World()
    for ticket in world.have("big", "small"):
        world.end(ticket)
    world.have("small")  # so that big is worth less
    world.ask("half")
    world.ask("tiny")
    world.settle()
    assert [order.model for order in world.done if order.verb == "unload"] == ["big"]
    assert {world.state(name) for name in ("half", "tiny", "small")} == {"loaded"}


def test_a_client_that_leaves_while_it_waits_costs_no_loaded_model_its_place() -> None:
    world = World()
    (busy,) = world.have("big")
    waiting = world.ask("half")
    world.end(waiting)
    world.end(busy)
    assert world.verbs == []
    assert world.state("big") == "loaded"


def test_a_client_that_leaves_costs_those_behind_it_nothing() -> None:
    world = World()
    (busy,) = world.have("big")
    first, second = world.ask("half"), world.ask("half")
    world.end(first)
    world.end(busy)
    world.settle()
    assert second.granted


def test_a_load_whose_clients_have_left_goes_on_and_the_model_stays() -> None:
    world = World()
    world.end(world.ask("big"))
    world.settle()
    assert world.state("big") == "loaded"


def test_requests_for_loaded_models_do_not_wait_for_one_that_loads_or_waits() -> None:
    world = World()
    world.have("half")
    world.ask("small")
    assert world.state("small") == "loading"
    assert world.ask("half").granted
    world.ask("big")  # which has no room
    assert world.ask("half").granted


def test_loads_begin_in_the_order_of_their_first_requests() -> None:
    world = World()
    (busy,) = world.have("big")
    world.ask("half")
    later = world.ask("big")
    assert later.granted
    world.end(later)
    other = World()
    (one,) = other.have("big")
    other.ask("half")
    other.end(one)
    assert other.verbs == [("unload", "big")]
    other.ask("tiny")  # fits into what is free, which half waits for
    assert other.verbs == [("unload", "big")]
    other.carry_out(other.pending[0])
    assert other.verbs == [("load", "half"), ("load", "tiny")]
    assert busy.granted


def test_what_fits_passes_one_that_has_to_wait_for_a_busy_model_but_not_for_long() -> None:
    world = World()
    world.have("big")
    world.ask("half")
    assert world.verbs == []
    world.ask("tiny")
    assert world.verbs == [("load", "tiny")]
    world.settle()
    world.wait(PATIENCE_S)
    world.ask("small")
    assert world.verbs == [], "half has waited for long enough"


def test_a_model_that_is_always_busy_lets_others_have_their_turn() -> None:
    world = World()
    running = world.have("big")
    world.ask("half")
    for _ in range(100):  # each request begins before the one before it has ended
        running.append(world.ask("big"))
        world.end(running.pop(0))
        world.wait(0.1)
        world.settle()
        if not running[-1].granted:
            break
    assert world.now <= PATIENCE_S + 0.2
    waits = running[-1]
    while world.state("half") != "loaded":
        for ticket in running:
            if ticket.granted:
                world.end(ticket)
        running = [ticket for ticket in running if not ticket.granted]
        world.settle()
    assert not waits.granted, "it has its turn after half"


def test_turns_end_early_if_nobody_waits_for_them_any_more() -> None:
    world = World()
    world.have("big")
    waiting = world.ask("half")
    world.wait(PATIENCE_S)
    assert not world.ask("big").granted
    world.end(waiting)
    assert world.ask("big").granted


def test_the_least_worth_goes_first_by_demand_load_time_and_bytes() -> None:
    world = World(80)
    world.have("half")
    for _ in range(9):
        for ticket in world.have("tiny"):
            world.end(ticket)
    for ticket in world.have("small"):
        world.end(ticket)
    world.fleet.add(Member("new", 20, math.inf))
    world.ask("new")
    assert world.verbs == [("unload", "small")], "tiny is in demand, and would not do alone"


def test_with_an_objective_what_is_loaded_within_it_goes_first() -> None:
    world = World(100, objective=2.0)
    for name in ("half", "small", "tiny"):
        ticket = world.ask(name)
        order = world.pending[0]
        world.pending.clear()
        seconds = {"half": 9.0, "small": 1.0, "tiny": 9.0}[name]
        world.fleet.loaded(order.model, world.now, NEEDS[name], seconds)
        world.take()
        world.end(ticket)
    for _ in range(50):
        world.end(world.ask("small"))
    world.fleet.add(Member("new", 40, math.inf))
    world.ask("new")
    assert world.verbs == [("unload", "small")], "although it is asked for most"


def test_with_an_objective_nothing_of_more_worth_goes_at_once_for_what_has_missed_it() -> None:
    """Requests for it wait for its turn together, which comes."""
    world = World(60, objective=0.5)
    world.have("half")
    world.fleet.members["big"].load_s = 1.0
    busy = [world.ask("half") for _ in range(20)]
    first = world.ask("big")
    for ticket in world.settled:
        if ticket.model == "half":
            world.end(ticket)
    world.wait(TURN_S - 1)
    assert all(ticket.granted for ticket in busy)
    assert world.verbs == []
    second = world.ask("big")
    assert world.fleet.next_time(world.now) == TURN_S
    world.wait(1)
    assert world.verbs == [("unload", "half")]
    world.settle()
    assert first.granted
    assert second.granted


def test_a_model_that_cannot_be_loaded_is_an_error_to_those_alone_who_asked_for_it() -> None:
    world = World()
    bad, good = world.ask("half"), world.ask("small")
    world.carry_out(world.pending[0], fails=True)
    assert bad.error is BAD
    world.settle()
    assert good.granted
    with pytest.raises(Refusal, match="damaged") as error:
        world.ask("half")
    assert error.value.headers == {"retry-after": "1"}
    world.wait(1)
    assert not world.ask("half").granted
    assert world.verbs == [("load", "half")], "it is tried again"
    world.carry_out(world.pending[0], fails=True)
    world.wait(1)
    with pytest.raises(Refusal, match="damaged"):
        world.ask("half")
    world.wait(1)
    again = world.ask("half")
    world.settle()
    assert again.granted
    assert world.fleet.members["half"].failures == 0


def test_a_model_that_is_larger_than_all_there_is_is_refused_and_nothing_goes_for_it() -> None:
    world = World(55)
    for ticket in world.have("half"):
        world.end(ticket)
    with pytest.raises(Refusal, match="more than this server has"):
        world.ask("big")
    assert world.verbs == []


def test_so_many_wait_for_a_model_and_no_more() -> None:
    world = World(100, most_waiting=3)
    for _ in range(3):
        world.ask("big")
    with pytest.raises(Refusal) as error:
        world.ask("big")
    assert error.value.status == 429
    assert not world.ask("small").granted, "others have their own"
    world.settle()
    assert world.ask("big").granted


def test_a_model_stays_for_as_long_as_it_is_kept_alive() -> None:
    world = World(100, keep_alive=10.0)
    (ticket,) = world.have("big")
    world.wait(100)
    assert world.verbs == [], "it is busy"
    world.end(ticket)
    assert world.fleet.next_time(world.now) == 110
    world.wait(9)
    world.end(world.ask("big"))
    world.wait(9)
    assert world.verbs == []
    world.wait(1)
    assert world.verbs == [("unload", "big")]


@pytest.mark.parametrize(("wanted", "gone_after"), [(0.0, 0.0), (3.0, 3.0), (math.inf, None)])
def test_a_request_says_how_long_its_model_stays(wanted: float, gone_after: float | None) -> None:
    world = World(100, keep_alive=10.0)
    ticket = world.ask("big", keep_alive=wanted)
    world.settle()
    world.end(ticket)
    if gone_after is None:
        world.wait(1e6)
        assert world.verbs == []
        return
    if gone_after:
        assert world.verbs == []
        world.wait(gone_after)
    assert world.verbs == [("unload", "big")]


def test_models_that_can_sleep_do_so_to_make_room_and_are_unloaded_later() -> None:
    world = World(100, residue=5, keep_alive=50.0)
    for ticket in world.have("big"):
        world.end(ticket)
    (half,) = world.have("half")
    assert world.state("big") == "sleeping"
    world.end(half)
    back = world.ask("big")
    world.settle()
    assert back.granted
    assert [o.verb for o in world.done] == ["load", "sleep", "load", "sleep", "wake"]
    world.wait(51)
    world.settle()
    assert world.state("half") == "unloaded"
    assert world.state("big") == "loaded", "it is busy"


def test_what_a_sleeping_model_holds_counts_and_goes_where_it_is_too_much() -> None:
    world = World(65, residue=5)
    for ticket in world.have("big"):
        world.end(ticket)
    for ticket in world.have("half"):
        world.end(ticket)
    assert world.state("big") == "sleeping"
    assert world.fleet.memory.used(0) == 50 + 5
    world.fleet.add(Member("huge", 62, math.inf, residue=5))
    world.have("huge")
    assert {world.state(name) for name in ("big", "half")} == {"unloaded"}
    assert world.fleet.memory.used(0) == 62


def test_a_model_that_is_told_to_go_goes_when_its_requests_have_ended() -> None:
    world = World(100, residue=5)
    (busy,) = world.have("big")
    world.fleet.rest("big", "sleeping", world.now)
    world.take()
    assert world.verbs == []
    behind = world.ask("big")
    assert not behind.granted
    world.end(busy)
    world.settle()
    assert behind.granted, "it is brought back for those who came later"
    world.end(behind)
    world.fleet.rest("big", "unloaded", world.now)
    world.take()
    world.settle()
    assert world.state("big") == "unloaded"


def test_a_model_goes_where_there_is_room_or_least_is_lost() -> None:
    world = World(60, 60)
    world.have("half")
    world.have("big")
    places = {name: world.fleet.members[name].place for name in ("half", "big")}
    assert sorted(places.values()) == [0, 1]  # type: ignore[type-var]
    world.have("tiny")
    assert world.fleet.members["tiny"].place == places["half"]


def test_a_model_that_sleeps_wakes_elsewhere_where_there_is_room_and_at_home_is_none() -> None:
    world = World(60, 60, residue=5)
    for ticket in world.have("big"):
        world.end(ticket)
    home = world.fleet.members["big"].place
    world.fleet.rest("big", "sleeping", world.now)
    world.take()
    world.settle()
    world.fleet.members["half"].barred = frozenset({1 - home})  # type: ignore[operator]
    world.have("half")  # which is busy
    (back,) = world.have("big")
    assert world.fleet.members["big"].place == 1 - home  # type: ignore[operator]
    assert [(o.verb, o.model) for o in world.done[-2:]] == [("unload", "big"), ("load", "big")]
    assert back.granted


def test_a_model_is_never_where_it_cannot_be() -> None:
    world = World(100, 60)
    world.fleet.members["half"].barred = frozenset({0})
    for ticket in world.have("half"):
        world.end(ticket)
    assert world.fleet.members["half"].place == 1
    world.fleet.members["big"].barred = frozenset({0, 1})
    with pytest.raises(Refusal, match="more than this server has"):
        world.ask("big")


def test_of_devices_with_room_the_one_with_the_least_work_is_taken() -> None:
    """By what is asked for there, over the memory that is left for keys and values."""
    world = World(100, 100)
    for _ in range(30):
        for ticket in world.have("half"):
            world.end(ticket)
    busy = world.fleet.members["half"].place
    world.have("small", "tiny")
    assert {world.fleet.members[name].place for name in ("small", "tiny")} == {1 - busy}  # type: ignore[operator]


# --- any order of events ---------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Requests come and leave, orders are carried out late, in any order, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(100, 60, residue=5, keep_alive=20.0, most_waiting=8)
        self.world.fleet.members["small"].residue = None
        self.world.fleet.members["tiny"].barred = frozenset({0})
        self.open: list[Ticket] = []
        self.answered: set[Ticket] = set()

    @rule(name=st.sampled_from(sorted(NEEDS)), keep=st.sampled_from([None, 0.0, 5.0, math.inf]))
    def ask(self, name: str, keep: float | None) -> None:
        member = self.world.fleet.members[name]
        full = len(member.waiting) == 8
        fails = member.state == "failed" and self.world.now < member.retry_at
        if not full and not fails:
            self.open.append(self.world.ask(name, keep_alive=keep))
            return
        with pytest.raises(Refusal) as error:
            self.world.ask(name, keep_alive=keep)
        assert error.value.status == (503 if fails else 429)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        ticket = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.world.end(ticket)

    @precondition(lambda self: self.world.pending)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def carry_out(self, data: st.DataObject, fails: bool) -> None:
        at = data.draw(st.integers(0, len(self.world.pending) - 1))
        self.world.carry_out(self.world.pending[at], fails=fails)

    @rule(seconds=st.sampled_from([0.5, 2.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(name=st.sampled_from(sorted(NEEDS)), where=st.sampled_from(["sleeping", "unloaded"]))
    def rest(self, name: str, where: Any) -> None:
        self.world.fleet.rest(name, where, self.world.now)
        self.world.take()

    @invariant()
    def models_never_take_more_than_there_is(self) -> None:
        for place, room in enumerate(self.world.fleet.rooms):
            assert self.world.fleet.memory.used(place) <= room

    @invariant()
    def each_model_has_one_order_at_most_and_is_busy_only_while_it_is_loaded(self) -> None:
        names = [order.model for order in self.world.pending]
        assert len(names) == len(set(names))
        for member in self.world.fleet.members.values():
            assert member.running == sum(t.granted for t in self.open if t.model == member.name)
            assert (member.state in ("loading", "unloading")) == (member.name in names)
            assert not member.running or member.state == "loaded"
            assert (member.place is not None) == (member.state not in ("unloaded", "failed"))

    @invariant()
    def each_request_is_answered_once(self) -> None:
        fresh = self.world.settled
        self.world.settled = []
        assert not self.answered & set(fresh)
        assert len(fresh) == len(set(fresh))
        assert all(ticket.granted != (ticket.error is not None) for ticket in fresh)
        self.answered |= set(fresh)

    @invariant()
    def whoever_waits_is_known_to(self) -> None:
        waiting = [t for m in self.world.fleet.members.values() for t in m.waiting]
        lost = [t for t in self.open if not t.granted and t.error is None and t not in waiting]
        assert not lost

    def teardown(self) -> None:
        """Whatever has happened, nobody waits for ever."""
        world = self.world
        rounds = 0
        while any(not t.granted and t.error is None for t in self.open):
            rounds += 1
            assert rounds < 50
            world.settle()
            for ticket in [ticket for ticket in self.open if ticket.granted]:
                self.open.remove(ticket)
                world.end(ticket)
            world.settle()
            late = world.fleet.next_time(world.now)
            world.wait(0.0 if math.isinf(late) else max(0.0, late - world.now))


TestStates = Machine.TestCase
TestStates.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
