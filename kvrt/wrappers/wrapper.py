"""A device that forwards every call to another, through one method that may be overridden."""

from collections.abc import Callable
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
    VirtualMemory,
)
from kvrt.wrappers.operators import (
    WrappedBranchOps,
    WrappedDenseOps,
    WrappedExpertOps,
    WrappedLatentOps,
    WrappedLowRankOps,
    WrappedPackedMatrices,
    WrappedRecurrence,
)
from kvrt.wrappers.parts import (
    Caller,
    Params,
    Result,
    WrappedAttention,
    WrappedCopier,
    WrappedGraphs,
    WrappedMemory,
)


class Wrapper:
    """Forwards everything to `inner`. Override `around`, or put other parts in place.

    Extensions of `WRAPPED` are forwarded like the required parts; any other, and one that lacks a
    method, is handed out as it is.

    Args:
        inner: the device that does the work.
    """

    def __init__(self, inner: Device) -> None:
        self.inner = inner
        self.memory: VirtualMemory = WrappedMemory(self, inner.memory)
        self.copier: Copier = WrappedCopier(self, inner.copier)
        self.attention: PagedAttention = WrappedAttention(self, inner.attention)

    def around(
        self, name: str, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        """What happens on a call of the method `name`, e.g. ``memory.map``."""
        return call(*args, **kwargs)

    @property
    def info(self) -> DeviceInfo:
        return self.inner.info

    def extension(self, kind: type[Extension]) -> Extension | None:
        found = self.inner.extension(kind)
        asked = cast(Any, kind)
        if asked not in WRAPPED or not isinstance(found, asked):
            return found
        return cast(Extension, WRAPPED[kind](self, found))

    def fence(self) -> Ticket:
        return self.around("fence", self.inner.fence)

    def synchronize(self) -> None:
        self.around("synchronize", self.inner.synchronize)

    def close(self) -> None:
        self.around("close", self.inner.close)


WRAPPED: dict[type, Callable[[Caller, Any], object]] = {
    BranchOps: WrappedBranchOps,
    DenseOps: WrappedDenseOps,
    ExpertOps: WrappedExpertOps,
    GraphCapture: WrappedGraphs,
    LatentOps: WrappedLatentOps,
    LowRankOps: WrappedLowRankOps,
    PackedMatrices: WrappedPackedMatrices,
    Recurrence: WrappedRecurrence,
}
"""What stands before the optional parts."""
