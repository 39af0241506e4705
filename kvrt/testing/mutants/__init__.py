"""Devices with one deliberate fault each, to show that the conformance kit finds it.

`MUTANTS` names the faults and, for each, the file of the kit that must notice. A mutant wraps any
correct device:

    MutantBackend("early", registry.load("null"), MUTANTS["tickets_come_true_too_early"])
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvrt.spi import Backend, Device, DeviceOptions, Probe
from kvrt.testing.mutants import (
    attention,
    batches,
    copier,
    dense,
    device,
    experts,
    graphs,
    latent,
    low_rank,
    memory,
    packed,
    recurrence,
    seen,
)
from kvrt.testing.mutants.mutant import Mutant

MUTANTS: Mapping[str, Mutant] = {
    **memory.MUTANTS,
    **device.MUTANTS,
    **copier.MUTANTS,
    **attention.MUTANTS,
    **batches.MUTANTS,
    **seen.MUTANTS,
    **dense.MUTANTS,
    **graphs.MUTANTS,
    **packed.MUTANTS,
    **latent.MUTANTS,
    **experts.MUTANTS,
    **low_rank.MUTANTS,
    **recurrence.MUTANTS,
}


@dataclass(frozen=True, slots=True)
class MutantBackend:
    """A backend whose devices are another backend's with one fault."""

    name: str
    inner: Backend
    mutant: Mutant
    spi: int = 2

    def probe(self) -> Probe:
        return self.inner.probe()

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        index = 0 if self.mutant.any_index else index
        return self.mutant.device(self.inner.open(index, options), self.name, self.mutant)
