"""The parts of a device that forward every call through one method."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    Chunk,
    Copier,
    Device,
    DType,
    Graph,
    GraphCapture,
    MemoryInfo,
    PagedAttention,
    Span,
    Ticket,
    VirtualMemory,
)

if TYPE_CHECKING:
    from torch import Tensor

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Caller(Device, Protocol):
    """A device whose parts ask it to make their calls."""

    inner: Device

    def around(
        self, name: str, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        """What happens on a call of the method `name`, e.g. ``memory.map``."""


class WrappedMemory:
    def __init__(self, device: Caller, inner: VirtualMemory) -> None:
        self.device = device
        self.inner = inner

    def reserve(self, nbytes: int) -> Span:
        return self.device.around("memory.reserve", self.inner.reserve, nbytes)

    def release(self, span: Span) -> None:
        self.device.around("memory.release", self.inner.release, span)

    def create(self) -> Chunk:
        return self.device.around("memory.create", self.inner.create)

    def destroy(self, chunk: Chunk) -> None:
        self.device.around("memory.destroy", self.inner.destroy, chunk)

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        self.device.around("memory.map", self.inner.map, span, at, chunk)

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        self.device.around("memory.unmap", self.inner.unmap, span, at, chunk)

    def tensor(self, span: Span, dtype: DType) -> "Tensor":
        return self.device.around("memory.tensor", self.inner.tensor, span, dtype)

    def info(self) -> MemoryInfo:
        return self.device.around("memory.info", self.inner.info)


class WrappedCopier:
    def __init__(self, device: Caller, inner: Copier) -> None:
        self.device = device
        self.inner = inner

    def host_buffer(self, nbytes: int) -> "Tensor":
        return self.device.around("copier.host_buffer", self.inner.host_buffer, nbytes)

    def to_host(self, dst: "Tensor", src: "Tensor", after: Ticket | None = None) -> Ticket:
        return self.device.around("copier.to_host", self.inner.to_host, dst, src, after)

    def to_device(self, dst: "Tensor", src: "Tensor", after: Ticket | None = None) -> Ticket:
        return self.device.around("copier.to_device", self.inner.to_device, dst, src, after)

    def within(self, dst: "Tensor", src: "Tensor", after: Ticket | None = None) -> Ticket:
        return self.device.around("copier.within", self.inner.within, dst, src, after)


class WrappedAttention:
    def __init__(self, device: Caller, inner: PagedAttention) -> None:
        self.device = device
        self.inner = inner

    def plan(self, batch: AttentionBatch) -> object:
        return self.device.around("attention.plan", self.inner.plan, batch)

    def append(self, plan: object, layer: int, k: "Tensor", v: "Tensor") -> None:
        self.device.around("attention.append", self.inner.append, plan, layer, k, v)

    def run(
        self, plan: object, layer: int, q: "Tensor", out: "Tensor", params: AttentionParams
    ) -> None:
        self.device.around("attention.run", self.inner.run, plan, layer, q, out, params)


class WrappedGraph:
    def __init__(self, device: Caller, inner: Graph) -> None:
        self.device = device
        self.inner = inner

    def replay(self, batches: Sequence[AttentionBatch]) -> None:
        self.device.around("graph.replay", self.inner.replay, batches)


class WrappedGraphs:
    graph: type[WrappedGraph] = WrappedGraph

    def __init__(self, device: Caller, inner: GraphCapture) -> None:
        self.device = device
        self.inner = inner

    def size(self, tokens: int) -> int:
        return self.device.around("graphs.size", self.inner.size, tokens)

    def capture(
        self, batches: Sequence[AttentionBatch], record: Callable[[Sequence[object]], None]
    ) -> Graph:
        graph = self.device.around("graphs.capture", self.inner.capture, batches, record)
        return self.graph(self.device, graph)
