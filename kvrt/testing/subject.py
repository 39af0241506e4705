"""What the conformance kit was asked to test."""

from dataclasses import dataclass
from typing import Any

import torch

from kvrt import registry
from kvrt.spi import (
    Backend,
    BranchOps,
    Capability,
    Collectives,
    DenseOps,
    Device,
    ExpertOps,
    GraphCapture,
    LatentOps,
    LowRankOps,
    Measurable,
    PackedMatrices,
    Recurrence,
)
from kvrt.wrappers import Checked

EXTENSIONS: tuple[Any, ...] = (
    BranchOps,
    Collectives,
    DenseOps,
    ExpertOps,
    GraphCapture,
    LatentOps,
    LowRankOps,
    Measurable,
    PackedMatrices,
    Recurrence,
)
"""The optional protocols that the kit knows."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A backend, the index of the device that is tested, and that device behind `Checked`."""

    backend: Backend
    index: int
    device: Device
    torch_threads: int

    def undeclared(self) -> list[str]:
        """The capabilities that the device does not declare."""
        return [c.name for c in Capability if c not in self.device.info.capabilities]

    def absent(self) -> list[str]:
        """The extensions that the device does not offer."""
        return [kind.__name__ for kind in EXTENSIONS if self.device.extension(kind) is None]

    def close(self) -> None:
        self.device.close()
        torch.set_num_threads(self.torch_threads)


IMPORTED_WITHIN_S = 120.0
"""A kit may run where others keep the processors busy, and nobody waits at a terminal."""


def open_subject(name: str, index: int) -> Subject:
    """Open a device to be tested.

    Raises:
        BackendUnavailable: it cannot be opened.
    """
    backend = registry.load(name, timeout=IMPORTED_WITHIN_S)
    device = Checked(backend.open(index))
    # Once the device is open: the reference is many small operators, for which torch's threads
    # would only wait for one another, a hundred times as long where the processors are shared.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return Subject(backend, index, device, threads)
