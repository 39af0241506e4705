"""The wrapper that stands in front of every device, so that backends need not check arguments."""

from typing import Any, cast

from kvrt.spi import Copier, Device, DeviceInfo, Extension, FusedOps, PagedAttention, Ticket
from kvrt.wrappers.attention import CheckedAttention, CheckedPlans
from kvrt.wrappers.copier import CheckedCopier
from kvrt.wrappers.fused import CheckedFusedOps
from kvrt.wrappers.memory import CheckedMemory
from kvrt.wrappers.rules import Facts, broken


class Checked:
    """Checks every argument of every method, and what the device gives back.

    A broken rule is a `ContractError` that names the argument, its value and the rule; the device
    has then not been called. Memory must be reserved, created and mapped through this wrapper: it
    keeps account of what is mapped, and refuses to let anything touch a hole.

    Args:
        inner: the device that does the work.
        layers: also check the calls of each layer: attention's `append` and `run`, and `FusedOps`.
            They cost about 30 us a layer, which is a tenth of a small model's step; kvrt's own
            decoder, tested with these checks, runs without them. The batch they all work on is
            checked in any case, by `plan`.
    """

    def __init__(self, inner: Device, *, layers: bool = True) -> None:
        self._inner = inner
        self._facts = facts = Facts(inner.info)
        self._memory = CheckedMemory(facts, inner.memory)
        self._copier = CheckedCopier(facts, self._memory, inner.copier)
        attention = CheckedAttention if layers else CheckedPlans
        self._attention = attention(facts, self._memory, inner.attention)

    @property
    def info(self) -> DeviceInfo:
        return self._facts.info

    @property
    def memory(self) -> CheckedMemory:
        return self._memory

    @property
    def copier(self) -> Copier:
        return self._copier

    @property
    def attention(self) -> PagedAttention:
        return self._attention

    def extension(self, kind: type[Extension]) -> Extension | None:
        self._facts.check_open("extension")
        found = self._inner.extension(kind)
        if (
            found is None
            or not isinstance(self._attention, CheckedAttention)
            or cast(Any, kind) is not FusedOps
        ):
            return found
        if not isinstance(found, FusedOps):
            raise broken("extension(FusedOps)", found, "lacks a method of FusedOps")
        return cast(Extension, CheckedFusedOps(self._facts, self._attention, found))

    def fence(self) -> Ticket:
        self._facts.check_open("fence")
        return self._inner.fence()

    def synchronize(self) -> None:
        self._facts.check_open("synchronize")
        self._inner.synchronize()

    def close(self) -> None:
        self._facts.closed = True
        self._inner.close()
