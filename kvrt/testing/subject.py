"""What the conformance kit was asked to test."""

from dataclasses import dataclass
from typing import Any

from kvrt.spi import Backend, Device, FusedOps, Measurable

EXTENSIONS: tuple[Any, ...] = (FusedOps, Measurable)
"""The optional protocols that the kit knows."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A backend, the index of the device that is tested, and that device behind `Checked`."""

    backend: Backend
    index: int
    device: Device
