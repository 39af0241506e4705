"""What a `Model` asks for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNITS = {"": 1, **{f"{unit}iB": 1 << 10 * power for power, unit in enumerate("KMGT", 1)}}
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)((?:[KMGT]iB)?)")

RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
"""What device plug-ins call whole devices, by vendor."""


SHARED = ("", "nvidia")
"""Vendors whose devices several containers may have without asking for a whole one; empty: a node's
processors."""


OPTION = re.compile(r"[a-z][a-z0-9-]+")
OURS = frozenset(
    {"host", "port", "drain-seconds", "keys", "without-keys", "new-key", "profile", "memory-limit",
     "share", "guarantee", "lend", "weight"}
)  # fmt: skip
"""Options that other fields are for."""


class SpecError(ValueError):
    """What is asked for cannot be; the text says which field, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a device.

    Args:
        guarantee: bytes that a replica is due on a device that it shares; 0: it has devices of its
            own.
        weight: its part of the rest of such a device.
        limit: bytes of weights and KV memory, at most; 0: as `kvrt serve` decides.
    """

    guarantee: int = 0
    weight: float = 1.0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Scaling:
    """Bounds of replicas, and what they follow.

    Args:
        least, most: replicas.
        queued: requests that may wait in each, in the mean.
        quiet_s: seconds in which none has to wait before one replica goes.
    """

    least: int
    most: int
    queued: int = 4
    quiet_s: int = 300


@dataclass(frozen=True, slots=True)
class Spec:
    """A `Model`, read and checked.

    Args:
        name, namespace, uid, generation: of the resource.
        deleted: it is to go.
        model: as MODEL of `kvrt serve`.
        image: of the container.
        replicas: without `scaling`.
        vendor: of its devices, of `RESOURCES`; empty: it runs on processors.
        devices: of each replica, where they are its own.
        keys: a Secret with the file of keys; empty: none are asked for.
        metrics: a Secret with a key of role metrics; empty: none is needed.
        profile: a ConfigMap with ``profile.yaml``; empty: none.
        claim: a PersistentVolumeClaim with models; empty: none.
        options: of `kvrt serve`, without their dashes; ``true``: a flag.
        resources: of the container, but for devices.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    model: str
    image: str
    replicas: int = 1
    deleted: bool = False
    memory: Memory = Memory()
    scaling: Scaling | None = None
    vendor: str = ""
    devices: int = 1
    keys: str = ""
    metrics: str = ""
    profile: str = ""
    claim: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shares(self) -> bool:
        """Whether replicas are placed on parts of devices, by us."""
        return self.memory.guarantee > 0


def read_spec(body: Mapping[str, Any], image: str) -> Spec:
    """A resource as the API server has it, which has held it to the schema of its definition.

    Args:
        body: the whole resource.
        image: where it names none.

    Raises:
        SpecError: fields contradict each other, or a size is none.
    """
    meta, spec = body["metadata"], body.get("spec", {})
    memory = spec.get("memory", {})
    scaling = spec.get("autoscaling")
    accelerator = spec.get("accelerator", {})
    found = Spec(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        deleted="deletionTimestamp" in meta,
        model=spec["model"],
        image=spec.get("image", image),
        replicas=spec.get("replicas", 1),
        memory=Memory(
            parse_size(memory.get("guarantee", "0"), "memory.guarantee"),
            float(memory.get("weight", 1.0)),
            parse_size(memory.get("limit", "0"), "memory.limit"),
        ),
        scaling=None if scaling is None else Scaling(
            scaling.get("minReplicas", 1),
            scaling["maxReplicas"],
            scaling.get("queuedPerReplica", 4),
            scaling.get("quietSeconds", 300),
        ),
        vendor=accelerator.get("vendor", ""),
        devices=accelerator.get("count", 1),
        keys=spec.get("keysSecret", ""),
        metrics=spec.get("metricsSecret", ""),
        profile=spec.get("profile", ""),
        claim=spec.get("modelsClaim", ""),
        options=spec.get("options", {}),
        resources=spec.get("resources", {}),
    )  # fmt: skip
    _check(found, spec)
    return found


def _check(found: Spec, spec: Mapping[str, Any]) -> None:
    memory = found.memory
    if "weight" in spec.get("memory", {}) and not memory.guarantee:
        raise SpecError("memory.weight is of a shared device: give memory.guarantee, too")
    for name in spec.get("options", {}):
        if name in OURS or not OPTION.fullmatch(name):
            raise SpecError(f"options.{name:.60} is no option, or is said by other fields")
    if memory.limit and memory.guarantee > memory.limit:
        raise SpecError("memory.guarantee is above memory.limit: raise the limit")
    if found.shares and found.devices > 1:
        raise SpecError(
            "accelerator.count is of devices of its own, and memory.guarantee of a shared one:"
            " leave one out"
        )
    if found.shares and found.vendor not in SHARED:
        raise SpecError(
            f"memory.guarantee is of a shared device, and those of {found.vendor} cannot be shared"
            " here: leave it out"
        )
    if found.scaling and found.scaling.least > found.scaling.most:
        raise SpecError("autoscaling.minReplicas is above autoscaling.maxReplicas")
    if found.scaling and found.keys and not found.metrics:
        raise SpecError(
            "autoscaling reads metrics, which need a key where there are keys: give metricsSecret"
        )


def parse_size(text: str, name: str) -> int:
    """Bytes of ``12GiB``, ``512MiB``.

    Raises:
        SpecError: it is none; `name` is the field's.
    """
    match = SIZE.fullmatch(text)
    if match is None:
        raise SpecError(f"{name} is no size: say 12GiB, 512MiB")
    return int(float(match[1]) * UNITS[match[2]])


def size_text(nbytes: int) -> str:
    """For people."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if nbytes >= UNITS[unit]:
            return f"{nbytes / UNITS[unit]:.4g} {unit}"
    return f"{nbytes} bytes"
