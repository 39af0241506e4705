"""What a mutant is: which part of a correct device it replaces, and with what."""

from dataclasses import dataclass, replace

from kvrt.spi import Capability, Device, DeviceInfo, Extension
from kvrt.wrappers.operators import (
    WrappedDenseOps,
    WrappedExpertOps,
    WrappedLatentOps,
    WrappedLowRankOps,
    WrappedPackedMatrices,
    WrappedRecurrence,
)
from kvrt.wrappers.parts import WrappedAttention, WrappedCopier, WrappedGraphs, WrappedMemory
from kvrt.wrappers.wrapper import Wrapper


class MutantDevice(Wrapper):
    """Forwards everything, but for the part that the mutant replaces."""

    def __init__(self, inner: Device, name: str, mutant: "Mutant") -> None:
        super().__init__(inner)
        self.memory = mutant.memory(self, inner.memory)
        self.copier = mutant.copier(self, inner.copier)
        self.attention = mutant.attention(self, inner.attention)
        self._dense = mutant.dense
        self._experts = mutant.experts
        self._graphs = mutant.graphs
        self._latents = mutant.latents
        self._low_rank = mutant.low_rank
        self._packed = mutant.packed
        self._recurrence = mutant.recurrence
        claimed = inner.info.capabilities | mutant.claims
        self._info = replace(inner.info, backend=name, capabilities=claimed)

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def extension(self, kind: type[Extension]) -> Extension | None:
        found = super().extension(kind)
        if isinstance(found, WrappedDenseOps):
            return self._dense(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedExpertOps):
            return self._experts(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedGraphs):
            return self._graphs(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedLatentOps):
            return self._latents(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedLowRankOps):
            return self._low_rank(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedPackedMatrices):
            return self._packed(self, found.inner)  # type: ignore[return-value]
        if isinstance(found, WrappedRecurrence):
            return self._recurrence(self, found.inner)  # type: ignore[return-value]
        return found


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault.

    Args:
        caught_by: the file of the kit that must notice it, e.g. ``memory`` for test_memory.py, or
            the test in it, e.g. ``memory::test_memory_info_adds_up``.
        dense: replaces `DenseOps`; needs a device that offers them.
        experts: replaces `ExpertOps`, likewise.
        graphs: replaces `GraphCapture`, likewise.
        latents: replaces `LatentOps`, likewise.
        low_rank: replaces `LowRankOps`, likewise.
        packed: replaces `PackedMatrices`, likewise.
        recurrence: replaces `Recurrence`, likewise.
        claims: capabilities it declares though the device may not have them.
        any_index: open() takes any index.
        codes: needs a device with pages of int8 and int4, or products of its own with codes.
    """

    caught_by: str
    memory: type[WrappedMemory] = WrappedMemory
    copier: type[WrappedCopier] = WrappedCopier
    attention: type[WrappedAttention] = WrappedAttention
    dense: type[WrappedDenseOps] = WrappedDenseOps
    experts: type[WrappedExpertOps] = WrappedExpertOps
    graphs: type[WrappedGraphs] = WrappedGraphs
    latents: type[WrappedLatentOps] = WrappedLatentOps
    low_rank: type[WrappedLowRankOps] = WrappedLowRankOps
    packed: type[WrappedPackedMatrices] = WrappedPackedMatrices
    recurrence: type[WrappedRecurrence] = WrappedRecurrence
    device: type[MutantDevice] = MutantDevice
    claims: frozenset[Capability] = frozenset()
    any_index: bool = False
    codes: bool = False
