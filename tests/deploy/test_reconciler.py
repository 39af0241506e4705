"""The operator's reconciler, a pure function: what passes that see old things and end anywhere make
of a cluster."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from kvrt_operator.claims import Claim, Claims, Device
from kvrt_operator.manifests import APPLIED, change
from kvrt_operator.observed import Action, Delete, Hold, Observed, Put, Report
from kvrt_operator.reconciler import desired, rejected
from kvrt_operator.scaling import scale
from kvrt_operator.spec import Memory, Scaling, Spec

from .world import GIB, Ended, World, promise

DEVICES = {Device(node, index): 24 * GIB for node in ("a", "b") for index in (0, 1)}
SPEC = Spec("chat", "ml", "uid-1", 1, "/models/chat", "kvrt:0.1.0", vendor="nvidia")
NAMES = ("chat", "code")
SLOTS = {Device("a", 0): 24 * GIB, Device("a", 1): 24 * GIB, Device("b", 0): 24 * GIB}
"""Few, so that models are in each other's way."""


def settled(world: World, *specs: Spec) -> None:
    """Passes that see what is there, until none has anything to do."""
    for _ in range(20):
        todo = [(spec, action) for spec in specs for action in run(world, spec)]
        if not todo:
            return
    raise AssertionError(f"it goes on for ever: {todo}")


def run(world: World, spec: Spec) -> list[Action]:
    actions = desired(spec, world.seen(spec))
    try:
        for action in actions:
            world.do(spec, action)
    except Ended:
        pass
    return actions


class Passes(RuleBasedStateMachine):
    """Two models that come, change and go, on devices that come and go, and passes over them that
    are shown old things, are in each other's way, and may end after any action."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(dict(SLOTS))
        self.specs: dict[str, Spec] = {}
        self.before: dict[str, list[Spec]] = {name: [] for name in NAMES}
        self.going: dict[str, list[tuple[Spec, Action]]] = {}
        self.made = 0

    @rule(
        name=st.sampled_from(NAMES),
        replicas=st.integers(0, 3),
        gib=st.sampled_from([0, 12, 24, 24]),
    )
    def ask(self, name: str, replicas: int, gib: int) -> None:
        old = self.specs.get(name)
        if old is not None and old.deleted:
            return
        self.made += old is None
        uid = f"uid-{self.made}" if old is None else old.uid
        number = 1 if old is None else old.generation + 1
        spec = Spec(name, "ml", uid, number, f"/models/{name}", "kvrt:1", replicas,
                    memory=Memory(gib * GIB), vendor="nvidia")  # fmt: skip
        self.specs[name] = spec
        self.before[name] = [spec] if old is None else [*self.before[name], spec]

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        if name in self.specs:
            self.specs[name] = replace(self.specs[name], deleted=True)

    @rule(device=st.sampled_from(list(SLOTS)), closed=st.booleans())
    def lose_a_device_or_find_it_again(self, device: Device, closed: bool) -> None:
        devices = dict(self.world.now.devices)
        if devices.pop(device, None) is None:
            devices[device] = SLOTS[device]
        self.world.become(devices=devices, closed=frozenset({"a"} if closed else ()))

    @rule(
        name=st.sampled_from(NAMES),
        ages=st.tuples(*[st.integers(0, 6)] * 3),
        spec_age=st.integers(0, 2),
    )
    def look(self, name: str, ages: tuple[int, int, int], spec_age: int) -> None:
        """A pass begins, if none of the model goes on. It may be shown an old resource, too."""
        if name not in self.specs or self.going.get(name):
            return
        spec = self.specs[name]
        if not spec.deleted:
            spec = self.before[name][max(0, len(self.before[name]) - 1 - spec_age)]
        actions = desired(spec, self.world.seen(spec, ages))
        self.going[name] = [(spec, action) for action in actions]

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 6))
    def act(self, name: str, count: int) -> None:
        """Some actions of a pass that goes on; others may be between these and its next."""
        for _ in range(count):
            if not self.going.get(name):
                return
            (spec, action), *self.going[name] = self.going[name]
            try:
                self.world.do(spec, action)
            except Ended:
                self.going[name] = []
            self.no_device_is_promised_twice()

    @rule(name=st.sampled_from(NAMES))
    def settle(self, name: str) -> None:
        """Passes that see what is there."""
        if name in self.specs and not self.going.get(name):
            for _ in range(3):
                run(self.world, self.specs[name])

    @rule(name=st.sampled_from(NAMES))
    def crash(self, name: str) -> None:
        self.going[name] = []

    @rule(name=st.sampled_from(NAMES))
    def finish_a_removal(self, name: str) -> None:
        """Its finalizer goes once a pass that saw what is there had nothing left to do."""
        spec = self.specs.get(name)
        if (
            spec is not None
            and spec.deleted
            and not self.going.get(name)
            and not run(self.world, spec)
        ):
            del self.specs[name]

    @invariant()
    def no_device_is_promised_twice(self) -> None:
        """Nor has any Deployment a part of a device without a claim to it."""
        promised = Counter[Device]()
        for device, nbytes in self.world.promised():
            promised[device] += nbytes
        claims = self.world.now.claims.held.values()
        assert set(self.world.promised()) <= {(claim.device, claim.nbytes) for claim in claims}
        assert all(nbytes <= SLOTS[device] for device, nbytes in promised.items())

    def teardown(self) -> None:
        """Whatever has happened: left alone, all is as is asked for, or the status says why not."""
        self.going.clear()
        specs = list(self.specs.values())
        settled(self.world, *specs)
        for name in [name for name, spec in self.specs.items() if spec.deleted]:
            del self.specs[name]
        owners = {spec.uid: spec for spec in self.specs.values()}
        state = self.world.now
        assert {claim.uid for claim in state.claims.held.values()} <= owners.keys()
        for spec in self.specs.values():
            own = self.world.seen(spec).children
            placed = [promise(each) for (kind, _), each in own.items() if kind == "Deployment"]
            assert {("Service", spec.name), ("PodDisruptionBudget", spec.name)} <= own.keys()
            if not spec.shares:
                assert placed == [None]
                assert own["Deployment", spec.name]["spec"]["replicas"] == spec.replicas
                assert not state.claims.of("ml", spec.name)
                continue
            claims = [(c.device, c.nbytes) for c in state.claims.of("ml", spec.name).values()]
            assert sorted(placed) == sorted(claims)  # type: ignore[type-var]
            (said,) = (
                each["status"] for each in state.status[spec.uid]["conditions"]
                if each["type"] == "Placed"
            )  # fmt: skip
            assert said == str(len(placed) == spec.replicas)
            assert len(placed) <= spec.replicas
            free = {
                device: size - state.claims.promised(device)
                for device, size in state.devices.items()
                if device.node not in state.closed and device not in dict(claims)
            }
            if len(placed) < spec.replicas:
                assert max(free.values(), default=0) < spec.memory.guarantee


TestPasses = Passes.TestCase
TestPasses.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_with_nothing_changed_there_is_nothing_to_do() -> None:
    world = World(dict(DEVICES))
    shared = replace(SPEC, replicas=3, memory=Memory(12 * GIB))
    settled(world, shared)
    assert run(world, shared) == []
    settled(world, replace(shared, deleted=True))
    assert world.now.objects == {}
    assert world.now.claims.held == {}


def test_replicas_are_spread_over_nodes_and_devices_are_filled_up() -> None:
    world = World(dict(DEVICES))
    small = replace(SPEC, name="small", uid="s", memory=Memory(4 * GIB))
    large = replace(SPEC, replicas=3, memory=Memory(24 * GIB))
    two = replace(SPEC, name="two", uid="t", replicas=2, memory=Memory(4 * GIB))
    settled(world, small, large, two)
    nodes = [claim.device.node for claim in world.now.claims.of("ml", "two").values()]
    (first,) = world.now.claims.of("ml", "small").values()
    assert len(world.now.claims.of("ml", "chat")) == 3
    assert nodes == [first.device.node]  # the other devices are full
    (said,) = (c for c in world.now.status["t"]["conditions"] if c["type"] == "Placed")
    assert "needs 4 GiB" in said["message"]
    assert "0 bytes of" in said["message"]


def test_a_pass_that_has_read_old_claims_makes_nothing() -> None:
    world = World(dict(DEVICES))
    mine = replace(SPEC, memory=Memory(24 * GIB))
    actions = desired(mine, world.seen(mine))
    theirs = replace(SPEC, name="code", uid="c", memory=Memory(24 * GIB))
    settled(world, theirs)
    assert isinstance(actions[0], Hold)
    try:
        for action in actions:
            world.do(mine, action)
    except Ended:
        pass
    assert not any("chat" in name for _, name in world.now.objects)


def test_a_place_that_was_given_back_is_not_taken_by_who_does_not_know() -> None:
    """A pass that has seen its own old claim and nothing of what came after it."""
    world = World(dict(DEVICES))
    mine = replace(SPEC, replicas=4, memory=Memory(24 * GIB))
    settled(world, mine)
    world.do(mine, Delete(("Deployment", "chat--0")))  # by somebody else
    seen = world.seen(mine)
    settled(world, replace(mine, replicas=0))
    settled(world, replace(SPEC, name="code", uid="c", replicas=4, memory=Memory(24 * GIB)))
    actions = desired(mine, seen)
    assert isinstance(actions[0], Hold)
    assert [action.key for action in actions if isinstance(action, Put)] == [
        ("Deployment", "chat--0")
    ]
    before = dict(world.now.objects)
    with pytest.raises(Ended):
        world.do(mine, actions[0])
    assert world.now.objects == before


@pytest.mark.parametrize(
    "then",
    [
        {"replicas": 0},
        {"deleted": True},
        {"memory": Memory(12 * GIB)},
        {"memory": Memory()},
    ],
)
def test_a_place_is_given_back_only_after_its_deployment_is_gone(then: dict[str, Any]) -> None:
    """A pass that ends after each of its actions: no Deployment is without its claim."""
    mine = replace(SPEC, replicas=2, memory=Memory(24 * GIB))
    for end in range(1, 9):
        world = World(dict(DEVICES))
        settled(world, mine)
        changed = replace(mine, **then)
        for action in desired(changed, world.seen(changed))[:end]:
            world.do(changed, action)
            held = {(c.device, c.nbytes) for c in world.now.claims.held.values()}
            assert set(world.promised()) <= held


def test_claims_of_a_model_that_is_gone_go_when_another_has_its_name() -> None:
    world = World(dict(DEVICES))
    mine = replace(SPEC, replicas=2, memory=Memory(24 * GIB))
    settled(world, mine)
    world.become(objects={})  # its finalizer was removed by hand
    settled(world, replace(mine, uid="another"))
    assert {claim.uid for claim in world.now.claims.held.values()} == {"another"}


def test_claims_are_read_as_they_were_written() -> None:
    claims = Claims({"ml/chat/3": Claim(Device("a.example", 1), 5, "u")}, "7")
    assert Claims.read(claims.data(), "7") == claims


def test_what_is_asked_for_no_more_goes_and_what_others_have_added_stays() -> None:
    world = World({})
    with_devices = replace(SPEC, devices=2)
    settled(world, with_devices)
    there = world.now.objects["Deployment", "chat"]
    there["spec"]["template"]["spec"]["containers"][0]["terminationMessagePath"] = "/dev/x"
    there["metadata"]["labels"]["team"] = "search"
    there["spec"]["progressDeadlineSeconds"] = 600
    assert not any(isinstance(action, Put) for action in desired(with_devices, world.seen(SPEC)))
    (put,) = (a for a in desired(replace(SPEC, vendor=""), world.seen(SPEC)) if isinstance(a, Put))
    patch = change(there, put.manifest)
    assert patch["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": None}
    assert "progressDeadlineSeconds" not in patch["spec"]
    assert patch["metadata"]["annotations"][APPLIED] != there["metadata"]["annotations"][APPLIED]


def test_a_resource_that_cannot_be_is_said_to_and_what_it_made_stays() -> None:
    seen = Observed(status={"replicas": 2}, now=1.0)
    (report,) = rejected(4, "memory.weight is of a shared device", seen)
    assert isinstance(report, Report)
    assert report.status["replicas"] == 2
    assert report.status["conditions"][0]["status"] == "False"
    assert rejected(4, "memory.weight is of a shared device",
                    Observed(status=report.status, now=9.0)) == []  # fmt: skip


class TestScaling:
    spec = replace(SPEC, scaling=Scaling(1, 8, queued=4, quiet_s=60))

    def after(self, *seen: tuple[float, dict[str, int], int]) -> list[int]:
        """Replicas after each look at (seconds, queue of each Pod, ready)."""
        status: dict[str, Any] = {}
        found = []
        for now, queued, ready in seen:
            scaled = scale(self.spec, status, queued, ready, now)
            status = {"scale": {"replicas": scaled.replicas}}
            if scaled.quiet_since is not None:
                status["scale"]["quietSince"] = scaled.quiet_since
            found.append(scaled.replicas)
        return found

    def test_a_queue_adds_replicas_and_at_most_doubles_them(self) -> None:
        assert self.after((0, {"a": 4}, 1), (1, {"a": 5}, 1)) == [1, 2]
        assert self.after((0, {"a": 40}, 1), (1, {"a": 30, "b": 10}, 2)) == [2, 4]
        assert self.after((0, {"a": 400}, 1), *[(i, {"a": 400}, 8) for i in range(5)])[-1] == 8

    def test_no_more_come_while_one_that_was_added_is_not_ready(self) -> None:
        assert self.after((0, {"a": 40}, 1), (1, {"a": 50}, 1), (2, {"a": 60}, 1)) == [2, 2, 2]

    def test_one_goes_after_a_quiet_time_and_the_next_after_another(self) -> None:
        busy = [(0.0, {"a": 40}, 1), (1.0, {"a": 20, "b": 20}, 2)]
        idle = [(float(t), dict.fromkeys("abcd", 0), 4) for t in (10, 60, 69, 70, 100, 130, 191)]
        assert self.after(*busy, *idle) == [2, 4, 4, 4, 4, 3, 3, 2, 1]

    def test_none_goes_while_one_does_not_say_what_waits(self) -> None:
        busy = [(0.0, {"a": 40}, 1)]
        silent = [(float(t), {"a": 0}, 2) for t in (10, 100, 1000)]
        assert self.after(*busy, *silent) == [2, 2, 2, 2]

    def test_bounds_hold_whatever_the_status_says(self) -> None:
        for before in (0, 1, 5, 100):
            scaled = scale(self.spec, {"scale": {"replicas": before}}, {}, 0, 0.0)
            assert 1 <= scaled.replicas <= 8
