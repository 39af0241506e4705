"""A cluster as the reconciler sees it: objects, claims by version, and what they were at any time
before, so that a pass may be shown old ones."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from kvrt_operator.claims import Claims, Device
from kvrt_operator.observed import (
    Action,
    Delete,
    Hold,
    Key,
    Manifest,
    Observed,
    Put,
    Report,
)
from kvrt_operator.spec import Spec

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class State:
    """At one time."""

    objects: dict[Key, Manifest] = field(default_factory=dict)
    claims: Claims = field(default_factory=lambda: Claims(version="0"))
    devices: dict[Device, int] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    status: dict[str, dict[str, Any]] = field(default_factory=dict)


class Ended(Exception):
    """A pass cannot go on: what it saw is no more so."""


class World:
    """The API server, which does one thing at a time, and always by what is there."""

    def __init__(self, devices: dict[Device, int]) -> None:
        self.states = [State(devices=devices)]

    @property
    def now(self) -> State:
        return self.states[-1]

    def become(self, **changes: Any) -> None:
        self.states.append(replace(self.now, **changes))

    def seen(self, spec: Spec, ages: tuple[int, int, int] = (0, 0, 0)) -> Observed:
        """What a pass is shown: children, claims, and the rest, each as of so many changes ago."""
        children, claims, rest = (self.states[max(0, len(self.states) - 1 - age)] for age in ages)
        return Observed(
            children={
                key: deepcopy(each) for key, each in children.objects.items()
                if owner(each) == spec.uid
            },
            claims=claims.claims,
            devices=rest.devices,
            closed=rest.closed,
            status=rest.status.get(spec.uid, {}),
            now=1.0,
        )  # fmt: skip

    def do(self, spec: Spec, action: Action) -> None:
        objects = self.now.objects
        match action:
            case Put():
                there = objects.get(action.key)
                if there is not None and owner(there) != spec.uid:
                    raise Ended
                made = deepcopy(action.manifest)
                self.become(objects={**objects, action.key: made})
            case Delete(key):
                if key in objects and owner(objects[key]) == spec.uid:
                    self.become(objects={k: v for k, v in objects.items() if k != key})
            case Hold(claims):
                if claims.version != self.now.claims.version:
                    raise Ended
                if claims != self.now.claims:
                    version = str(int(claims.version) + 1)
                    self.become(claims=replace(claims, version=version))
            case Report(status):
                self.become(status={**self.now.status, spec.uid: status})

    def promised(self) -> Iterator[tuple[Device, int]]:
        """Of each Deployment that there is on a part of a device, as its container is told."""
        for (kind, _), each in self.now.objects.items():
            if kind == "Deployment" and (found := promise(each)):
                yield found


def owner(manifest: Manifest) -> str:
    return str(manifest["metadata"]["ownerReferences"][0]["uid"])


def promise(deployment: Manifest) -> tuple[Device, int] | None:
    """Device and bytes, of a Deployment that shares one."""
    pod = deployment["spec"]["template"]["spec"]
    given = dict(
        each[2:].partition("=")[::2] for each in pod["containers"][0]["args"] if "=" in each
    )
    if "guarantee" not in given:
        return None
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (node,) = required["nodeSelectorTerms"][0]["matchFields"][0]["values"]
    index = given["share"].partition(":")[0].removeprefix("kvrt-")
    return Device(node, int(index)), int(given["guarantee"])
