"""Which replica has which part of which device.

All claims are in one ConfigMap, which is replaced as a whole and by its version: who has read an
old one is refused (409) and looks again. So no device is ever promised twice, whatever else is seen
late.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """A device of a node, by its number there."""

    node: str
    index: int

    def __str__(self) -> str:
        return f"{self.node}/{self.index}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A part of a device.

    Args:
        device: of which.
        nbytes: that are promised.
        uid: of the `Model`: another one of its name has no part in it.
    """

    device: Device
    nbytes: int
    uid: str


@dataclass(frozen=True, slots=True)
class Claims:
    """All claims, as of a version.

    Args:
        held: by ``namespace/model/replica``.
        version: of the ConfigMap; empty: there is none yet.
    """

    held: Mapping[str, Claim] = field(default_factory=dict)
    version: str = ""

    def of(self, namespace: str, model: str) -> dict[str, Claim]:
        """Those of a model, also of a former one of its name."""
        prefix = f"{namespace}/{model}/"
        return {name: claim for name, claim in self.held.items() if name.startswith(prefix)}

    def promised(self, device: Device) -> int:
        """Bytes of a device that somebody has."""
        return sum(claim.nbytes for claim in self.held.values() if claim.device == device)

    def without(self, names: Iterable[str]) -> "Claims":
        """These but for some."""
        gone = set(names)
        held = {name: claim for name, claim in self.held.items() if name not in gone}
        return replace(self, held=held)

    def having(self, name: str, claim: Claim) -> "Claims":
        """These and another."""
        return replace(self, held={**self.held, name: claim})

    def data(self) -> dict[str, str]:
        """What stands in the ConfigMap."""
        return {
            name.replace("/", "_"): json.dumps(
                [claim.device.node, claim.device.index, claim.nbytes, claim.uid]
            )
            for name, claim in sorted(self.held.items())
        }

    @classmethod
    def read(cls, data: Mapping[str, str], version: str) -> "Claims":
        """What `data` has written. Names of Kubernetes have no underscores."""
        held = {}
        for key, text in data.items():
            node, index, nbytes, uid = json.loads(text)
            held[key.replace("_", "/")] = Claim(Device(node, index), nbytes, uid)
        return cls(held, version)
