"""The wrapper that stands in front of every device, so that backends need not check arguments."""

from typing import Any, cast

from kvrt.spi import (
    BranchOps,
    Copier,
    DenseOps,
    Device,
    DeviceInfo,
    ExpertOps,
    Extension,
    GraphCapture,
    LatentOps,
    LowRankOps,
    PackedMatrices,
    PagedAttention,
    Recurrence,
    Ticket,
)
from kvrt.wrappers.attention import CheckedAttention, CheckedPlans
from kvrt.wrappers.branches import CheckedBranchOps
from kvrt.wrappers.copier import CheckedCopier
from kvrt.wrappers.dense import CheckedDenseOps
from kvrt.wrappers.experts import CheckedExpertOps
from kvrt.wrappers.graphs import CheckedGraphs
from kvrt.wrappers.latent import CheckedLatentOps
from kvrt.wrappers.low_rank import CheckedLowRankOps
from kvrt.wrappers.memory import CheckedMemory
from kvrt.wrappers.packed import CheckedPackedMatrices
from kvrt.wrappers.recurrence import CheckedRecurrence
from kvrt.wrappers.rules import Facts


class Checked:
    """Checks every argument of every method, and what the device gives back.

    A broken rule is a `ContractError` that names the argument, its value and the rule; the device
    has then not been called. Memory must be reserved, created and mapped through this wrapper: it
    keeps account of what is mapped, and refuses to let anything touch a hole.

    Args:
        inner: the device that does the work.
        layers: also check the calls of each layer: attention's `append` and `run`, and `DenseOps`.
            They cost about 30 us a layer, which is a tenth of a small model's step; kvrt's own
            decoder, tested with these checks, runs without them. The batch they all work on is
            checked in any case, by `plan`.
        owner: whose the device is, for errors about what it gives back; see `Named`.
    """

    def __init__(self, inner: Device, *, layers: bool = True, owner: str = "") -> None:
        self._inner = inner
        self._facts = facts = Facts(inner.info, owner)
        self._memory = CheckedMemory(facts, inner.memory)
        self._copier = CheckedCopier(facts, self._memory, inner.copier)
        self._attention = CheckedAttention(facts, self._memory, inner.attention)
        self._layers = layers
        self.attention: PagedAttention = self._attention
        if not layers:
            self.attention = CheckedPlans(self._attention, inner.attention)

    @property
    def info(self) -> DeviceInfo:
        return self._facts.info

    @property
    def owner(self) -> str:
        """Whose it is; empty if nobody said."""
        return self._facts.owner

    @property
    def memory(self) -> CheckedMemory:
        return self._memory

    @property
    def copier(self) -> Copier:
        return self._copier

    def extension(self, kind: type[Extension]) -> Extension | None:
        self._facts.check_open("extension")
        found: Any = self._inner.extension(kind)
        asked = cast(Any, kind)
        known = (
            BranchOps,
            DenseOps,
            ExpertOps,
            GraphCapture,
            LatentOps,
            LowRankOps,
            PackedMatrices,
            Recurrence,
        )
        if found is None or asked not in known:
            return cast(Extension | None, found)
        if not isinstance(found, asked):
            name = asked.__name__
            raise self._facts.wrong(f"extension({name})", found, f"lacks a method of {name}")
        if isinstance(found, GraphCapture):
            graphs = CheckedGraphs(self._facts, self._attention, found, self._layers)
            return cast(Extension, graphs)
        if isinstance(found, Recurrence):
            states = CheckedRecurrence(self._facts, self._attention, found, self._layers)
            return cast(Extension, states)
        if not self._layers:
            return cast(Extension, found)
        if isinstance(found, BranchOps):
            return cast(Extension, CheckedBranchOps(self._facts, found))
        if isinstance(found, ExpertOps):
            return cast(Extension, CheckedExpertOps(self._facts, found))
        if isinstance(found, LatentOps):
            return cast(Extension, CheckedLatentOps(self._facts, found))
        if isinstance(found, LowRankOps):
            return cast(Extension, CheckedLowRankOps(self._facts, found))
        if isinstance(found, PackedMatrices):
            return cast(Extension, CheckedPackedMatrices(self._facts, found))
        return cast(Extension, CheckedDenseOps(self._facts, self._attention, found))

    def fence(self) -> Ticket:
        self._facts.check_open("fence")
        return self._facts.ticket("fence()", self._inner.fence())

    def synchronize(self) -> None:
        self._facts.check_open("synchronize")
        self._inner.synchronize()

    def close(self) -> None:
        self._facts.closed = True
        self._inner.close()
