"""A device that forwards every call to another, through one method that may be overridden."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from kvrt.spi import (
    Activation,
    AttentionBatch,
    AttentionParams,
    BranchOps,
    Chunk,
    Copier,
    DeltaRule,
    DenseOps,
    Device,
    DeviceInfo,
    DType,
    ExpertOps,
    Experts,
    Extension,
    Graph,
    GraphCapture,
    HeadNorm,
    LatentOps,
    LowRankOps,
    LowRankRows,
    Matrices,
    Matrix,
    MemoryInfo,
    PackedMatrices,
    PagedAttention,
    PlainActivation,
    Recurrence,
    Rotation,
    Router,
    Span,
    StateActivation,
    StateBatch,
    Ticket,
    VirtualMemory,
    WeightFormat,
)

if TYPE_CHECKING:
    from torch import Tensor

Params = ParamSpec("Params")
Result = TypeVar("Result")


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


class WrappedMemory:
    def __init__(self, device: Wrapper, inner: VirtualMemory) -> None:
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
    def __init__(self, device: Wrapper, inner: Copier) -> None:
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
    def __init__(self, device: Wrapper, inner: PagedAttention) -> None:
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


class WrappedDenseOps:
    def __init__(self, device: Wrapper, inner: DenseOps) -> None:
        self.device = device
        self.inner = inner

    def linear(
        self,
        x: "Tensor",
        weight: "Tensor",
        bias: "Tensor | None" = None,
        residual: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        return self.device.around("dense.linear", self.inner.linear, x, weight, bias, residual, out)

    def gated_linear(
        self,
        x: "Tensor",
        weight: "Tensor",
        activation: Activation,
        bias: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        return self.device.around(
            "dense.gated_linear", self.inner.gated_linear, x, weight, activation, bias, out
        )

    def rms_norm(
        self, x: "Tensor", weight: "Tensor", eps: float, out: "Tensor | None" = None
    ) -> "Tensor":
        return self.device.around("dense.rms_norm", self.inner.rms_norm, x, weight, eps, out)

    def rotate_append(
        self,
        plan: object,
        layer: int,
        q: "Tensor",
        k: "Tensor",
        v: "Tensor",
        rotation: Rotation | None,
        norm: HeadNorm | None,
    ) -> None:
        self.device.around(
            "dense.rotate_append", self.inner.rotate_append, plan, layer, q, k, v, rotation, norm
        )


class WrappedPackedMatrices:
    def __init__(self, device: Wrapper, inner: PackedMatrices) -> None:
        self.device = device
        self.inner = inner

    def multiplies(self, format: WeightFormat) -> bool:
        return self.device.around("packed.multiplies", self.inner.multiplies, format)

    def rounds(self, format: WeightFormat) -> bool:
        return self.device.around("packed.rounds", self.inner.rounds, format)

    def nbytes(self, format: WeightFormat, out: int, width: int) -> int:
        return self.device.around("packed.nbytes", self.inner.nbytes, format, out, width)

    def pack(self, format: WeightFormat, plain: "Tensor", width: int, into: "Tensor") -> Matrix:
        return self.device.around("packed.pack", self.inner.pack, format, plain, width, into)

    def rows(self, matrix: Matrix, indices: "Tensor", out: "Tensor") -> "Tensor":
        return self.device.around("packed.rows", self.inner.rows, matrix, indices, out)

    def linear(
        self,
        x: "Tensor",
        weight: Matrices,
        bias: "Tensor | None" = None,
        residual: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        return self.device.around(
            "packed.linear", self.inner.linear, x, weight, bias, residual, out
        )

    def gated_linear(
        self,
        x: "Tensor",
        weight: Matrices,
        activation: Activation,
        bias: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        return self.device.around(
            "packed.gated_linear", self.inner.gated_linear, x, weight, activation, bias, out
        )


class WrappedBranchOps:
    def __init__(self, device: Wrapper, inner: BranchOps) -> None:
        self.device = device
        self.inner = inner

    def layer_norm(
        self,
        x: "Tensor",
        weight: "Tensor",
        bias: "Tensor | None",
        eps: float,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        return self.device.around(
            "branches.layer_norm", self.inner.layer_norm, x, weight, bias, eps, out
        )

    def norm_rows(self, x: "Tensor", weight: "Tensor", eps: float) -> None:
        self.device.around("branches.norm_rows", self.inner.norm_rows, x, weight, eps)

    def add_branch(
        self, x: "Tensor", branch: "Tensor", weight: "Tensor | None", eps: float, scale: float
    ) -> None:
        self.device.around(
            "branches.add_branch", self.inner.add_branch, x, branch, weight, eps, scale
        )

    def activate(self, x: "Tensor", activation: PlainActivation) -> None:
        self.device.around("branches.activate", self.inner.activate, x, activation)

    def scale_rows(self, x: "Tensor", factors: "Tensor") -> None:
        self.device.around("branches.scale_rows", self.inner.scale_rows, x, factors)


class WrappedExpertOps:
    def __init__(self, device: Wrapper, inner: ExpertOps) -> None:
        self.device = device
        self.inner = inner

    def route(
        self,
        logits: "Tensor",
        router: Router,
        correction: "Tensor | None",
        chosen: "Tensor",
        weights: "Tensor",
    ) -> None:
        self.device.around(
            "experts.route", self.inner.route, logits, router, correction, chosen, weights
        )

    def mix(
        self,
        x: "Tensor",
        experts: Experts,
        chosen: "Tensor",
        weights: "Tensor",
        residual: "Tensor | None",
        out: "Tensor",
    ) -> None:
        self.device.around(
            "experts.mix", self.inner.mix, x, experts, chosen, weights, residual, out
        )


class WrappedLatentOps:
    def __init__(self, device: Wrapper, inner: LatentOps) -> None:
        self.device = device
        self.inner = inner

    def by_head(self, x: "Tensor", weight: "Tensor", out: "Tensor") -> None:
        self.device.around("latents.by_head", self.inner.by_head, x, weight, out)

    def rotate(self, x: "Tensor", rotation: Rotation | None, out: "Tensor") -> None:
        self.device.around("latents.rotate", self.inner.rotate, x, rotation, out)


class WrappedRecurrence:
    def __init__(self, device: Wrapper, inner: Recurrence) -> None:
        self.device = device
        self.inner = inner

    def plan(self, batch: StateBatch) -> object:
        return self.device.around("recurrence.plan", self.inner.plan, batch)

    def convolve(
        self,
        plan: object,
        layer: int,
        x: "Tensor",
        weight: "Tensor",
        bias: "Tensor | None",
        activation: StateActivation,
        out: "Tensor",
    ) -> None:
        args = plan, layer, x, weight, bias, activation, out
        self.device.around("recurrence.convolve", self.inner.convolve, *args)

    def delta(
        self,
        tokens: object,
        borders: object,
        layer: int,
        qkv: "Tensor",
        gates: "Tensor",
        rule: DeltaRule,
        out: "Tensor",
    ) -> None:
        self.device.around(
            "recurrence.delta", self.inner.delta, tokens, borders, layer, qkv, gates, rule, out
        )


class WrappedLowRankOps:
    def __init__(self, device: Wrapper, inner: LowRankOps) -> None:
        self.device = device
        self.inner = inner

    def add(self, x: "Tensor", rows: LowRankRows, out: "Tensor") -> None:
        self.device.around("low_rank.add", self.inner.add, x, rows, out)

    def add_gated(
        self,
        x: "Tensor",
        rows: LowRankRows,
        both: "Tensor",
        activation: Activation,
        out: "Tensor",
    ) -> None:
        self.device.around(
            "low_rank.add_gated", self.inner.add_gated, x, rows, both, activation, out
        )


class WrappedGraph:
    def __init__(self, device: Wrapper, inner: Graph) -> None:
        self.device = device
        self.inner = inner

    def replay(self, batches: Sequence[AttentionBatch]) -> None:
        self.device.around("graph.replay", self.inner.replay, batches)


class WrappedGraphs:
    graph: type[WrappedGraph] = WrappedGraph

    def __init__(self, device: Wrapper, inner: GraphCapture) -> None:
        self.device = device
        self.inner = inner

    def size(self, tokens: int) -> int:
        return self.device.around("graphs.size", self.inner.size, tokens)

    def capture(
        self, batches: Sequence[AttentionBatch], record: Callable[[Sequence[object]], None]
    ) -> Graph:
        graph = self.device.around("graphs.capture", self.inner.capture, batches, record)
        return self.graph(self.device, graph)


WRAPPED: dict[type, Callable[[Wrapper, Any], object]] = {
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
