"""The devices of a server of several models."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvrt.config import RuntimeConfig
from kvrt.errors import ConfigError
from kvrt.sharing.share import Share
from kvrt.units import GIB, parse_bytes

DEVICE = re.compile(r"([A-Za-z][\w.-]*)(?::(\d{1,4}))?(?:=(.+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """A device that models may be on.

    Args:
        backend: its name.
        index: which of the backend's devices.
        size: what all models there may take, as ``24GiB`` or ``80%`` (of the device's memory);
            None: as it is said for all devices.
    """

    backend: str
    index: int
    size: str | None = None

    @property
    def name(self) -> str:
        return f"{self.backend}:{self.index}"

    def on(self, config: RuntimeConfig) -> RuntimeConfig:
        """A model's configuration, here."""
        size = config.memory_limit if self.size is None else self.size
        return replace(config, backend=self.backend, device=self.index, memory_limit=size)


@dataclass(frozen=True, slots=True)
class Device:
    """A place that is there.

    Args:
        share: that models there keep within.
        room: bytes that they may take.
    """

    place: Place
    share: Share
    room: int


def read_places(text: str) -> Sequence[Place]:
    """Those of ``cuda:0,cuda:1=20GiB,cpu``.

    Raises:
        ConfigError: one is no device, or is there twice.
    """
    found: list[Place] = []
    for each in text.split(","):
        match = DEVICE.fullmatch(each.strip())
        if match is None:
            raise ConfigError(
                f"devices: {each!r:.60} is none", fix="write them as BACKEND:0,BACKEND:1=20GiB"
            )
        backend, index, size = match.groups()
        if size is not None:
            parse_bytes(size, whole=GIB)
        place = Place(backend, int(index or 0), size)
        if place.name in {other.name for other in found}:
            raise ConfigError(f"devices: {place.name} is there twice", fix="name each once")
        found.append(place)
    return found


def places_of(devices: str | None, config: RuntimeConfig) -> Sequence[Place]:
    """Those that are named; else the one of a configuration."""
    return [Place(config.backend, config.device)] if devices is None else read_places(devices)
