"""What was seen of the cluster, and what is to be done to it: values. Any part of what was seen may
be old, and the last thing that was to be done may have been done or not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvrt_operator.claims import Claims, Device

Manifest = dict[str, Any]
Key = tuple[str, str]
"""Kind and name of an object."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Of one model.

    Args:
        children: objects that it owns, by kind and name, as they are there.
        claims: of all models.
        devices: bytes of each device that may be shared.
        closed: nodes that take nothing new: cordoned, or not ready.
        status: of the resource, as it was written last.
        queued: requests that wait in each replica that answered, by Pod.
        ready: replicas that are.
        now: seconds of a clock that all passes have.
    """

    children: Mapping[Key, Manifest] = field(default_factory=dict)
    claims: Claims = field(default_factory=Claims)
    devices: Mapping[Device, int] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    status: Mapping[str, Any] = field(default_factory=dict)
    queued: Mapping[str, int] = field(default_factory=dict)
    ready: int = 0
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Put:
    """Make an object, or make what is there so: fields that are named, others stay. One that is
    there under another owner is not touched, and ends the pass."""

    manifest: Manifest

    @property
    def key(self) -> Key:
        return self.manifest["kind"], self.manifest["metadata"]["name"]


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove an object of the model's own; that there is none is as good."""

    key: Key


@dataclass(frozen=True, slots=True)
class Hold:
    """Replace all claims, if they still are those of `claims.version`; else the pass ends here."""

    claims: Claims


@dataclass(frozen=True, slots=True)
class Report:
    """Write the status."""

    status: Manifest


Action = Put | Delete | Hold | Report
