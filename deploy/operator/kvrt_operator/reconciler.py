"""What is to be done, of what is asked for and what was seen.

`desired` is a pure function. A pass looks, asks it, and does what it says in that order; it may end
anywhere, by a crash or because something has changed meanwhile, and the next one goes on from what
is there. What it keeps, whatever is seen late:

- A device is never promised more than it has: a Deployment on a part of a device is made only after
  its claim was written by the version it was read with, and a claim is given up only after its
  Deployment was removed.
- With nothing changed there is nothing to do.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from kvrt_operator.claims import Claim, Claims
from kvrt_operator.manifests import (
    budget,
    deployment,
    replica_name,
    service,
    shared_deployment,
)
from kvrt_operator.observed import Action, Delete, Hold, Manifest, Observed, Put, Report
from kvrt_operator.placement import place
from kvrt_operator.scaling import Scaled, scale
from kvrt_operator.spec import Spec


def desired(spec: Spec, observed: Observed) -> list[Action]:
    """The actions of a pass, in order; none: all is as it should be."""
    own = observed.claims.of(spec.namespace, spec.name)
    if spec.deleted:
        gone = [Delete(key) for key in sorted(observed.children)]
        return [*gone, *_released(spec, own, observed, set(own))]
    scaled = scale(spec, observed.status, observed.queued, observed.ready, observed.now)
    if spec.shares:
        actions, claims, why = _shared(spec, observed, scaled.replicas)
        mine = claims.of(spec.namespace, spec.name)
        there = {("Deployment", replica_name(spec, _number(name))) for name in mine}
    else:
        actions, mine, why = [*_released(spec, own, observed, set(own))], {}, ""
        actions += _puts(observed, [deployment(spec, scaled.replicas)])
        there = {("Deployment", spec.name)}
    others = [key for key in sorted(observed.children) if key[0] == "Deployment"]
    actions += [Delete(key) for key in others if key not in there]
    actions += _puts(observed, [service(spec), budget(spec)])
    status = _status(spec, observed, scaled, mine, why)
    return [*actions, *([] if status == observed.status else [Report(status)])]


def rejected(generation: int, why: str, observed: Observed) -> list[Action]:
    """A resource that cannot be: what is there stays, and the status says why."""
    conditions = _conditions(observed, [("Accepted", False, "Invalid", why)])
    status = {**observed.status, "observedGeneration": generation, "conditions": conditions}
    return [] if status == observed.status else [Report(status)]


def _shared(spec: Spec, observed: Observed, replicas: int) -> tuple[list[Action], Claims, str]:
    """Actions for replicas on parts of devices, the claims then, and why some have none."""
    names = [f"{spec.namespace}/{spec.name}/{number}" for number in range(replicas)]
    own = observed.claims.of(spec.namespace, spec.name)
    wrong = {
        name
        for name, claim in own.items()
        if name not in names
        or claim.uid != spec.uid
        or claim.nbytes != spec.memory.guarantee
        or claim.device not in observed.devices
    }
    actions: list[Action] = [*_removed(spec, wrong)]
    open_to_all = {
        device: size
        for device, size in observed.devices.items()
        if device.node not in observed.closed
    }
    claims, why = place(spec, names, observed.claims.without(wrong), open_to_all)
    placed = claims.of(spec.namespace, spec.name)
    puts = _puts(
        observed,
        [
            shared_deployment(spec, _number(name), claim, observed.devices[claim.device])
            for name, claim in placed.items()
        ],
    )
    if puts or claims != observed.claims:
        # Also where they stay as they are: it shows that they are not those of long ago.
        actions.append(Hold(claims))
    return [*actions, *puts], claims, why


def _released(
    spec: Spec, own: Mapping[str, Claim], observed: Observed, names: set[str]
) -> Iterator[Action]:
    yield from _removed(spec, names)
    if own:
        yield Hold(observed.claims.without(names))


def _removed(spec: Spec, names: set[str]) -> Iterator[Action]:
    for name in sorted(names):
        yield Delete(("Deployment", replica_name(spec, _number(name))))


def _number(name: str) -> int:
    return int(name.rpartition("/")[2])


def _puts(observed: Observed, manifests: list[Manifest]) -> list[Action]:
    """Those that are not there as they are to be."""
    puts = [Put(manifest) for manifest in manifests]
    return [put for put in puts if not _has(observed.children.get(put.key), put.manifest)]


def _has(there: Any, wanted: Any) -> bool:
    """Whether what is there has all that is wanted: the API server adds fields of its own, and
    whoever else may add labels. Lists are the same, element by element."""
    if isinstance(wanted, Mapping):
        return isinstance(there, Mapping) and all(
            _has(there.get(name), value) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(there, list) and len(there) == len(wanted) and all(map(_has, there, wanted))
        )
    return bool(there == wanted)


def _status(
    spec: Spec, observed: Observed, scaled: Scaled, claims: Mapping[str, Claim], why: str
) -> Manifest:
    ready = observed.ready >= scaled.replicas
    how = f"{observed.ready} of {scaled.replicas} replicas are ready"
    found: list[tuple[str, bool, str, str]] = [
        ("Accepted", True, "Valid", ""),
        ("Placed", not why, "NoDevice" if why else "Fits", why),
        ("Ready", ready, "AllReady" if ready else "Starting", how),
    ]
    scale_status: Manifest = {"replicas": scaled.replicas}
    if scaled.quiet_since is not None:
        scale_status["quietSince"] = scaled.quiet_since
    return {
        "observedGeneration": spec.generation,
        "replicas": scaled.replicas,
        "readyReplicas": observed.ready,
        "scale": scale_status,
        "placements": [
            {"replica": _number(name), "node": claim.device.node, "device": claim.device.index}
            for name, claim in sorted(claims.items())
        ],
        "conditions": _conditions(observed, found),
    }


def _conditions(observed: Observed, found: list[tuple[str, bool, str, str]]) -> list[Manifest]:
    """As Kubernetes has them; each with the time since when it is so."""
    before = {each["type"]: each for each in observed.status.get("conditions", [])}
    now = datetime.fromtimestamp(observed.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = []
    for kind, holds, reason, message in found:
        status = "True" if holds else "False"
        old = before.get(kind, {})
        since = old["lastTransitionTime"] if old.get("status") == status else now
        conditions.append(
            {"type": kind, "status": status, "reason": reason, "message": message,
             "lastTransitionTime": since}
        )  # fmt: skip
    return conditions
