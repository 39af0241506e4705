"""The operators of a device, which forward every call as `kvrt.wrappers.parts` do."""

from typing import TYPE_CHECKING

from kvrt.spi import (
    Activation,
    BranchOps,
    DeltaRule,
    DenseOps,
    ExpertOps,
    Experts,
    HeadNorm,
    LatentOps,
    LowRankOps,
    LowRankRows,
    Matrices,
    Matrix,
    PackedMatrices,
    PlainActivation,
    Recurrence,
    Rotation,
    Rounding,
    Router,
    StateActivation,
    StateBatch,
    StateSpaceRule,
    WeightFormat,
)
from kvrt.wrappers.parts import Caller

if TYPE_CHECKING:
    from torch import Tensor


class WrappedDenseOps:
    def __init__(self, device: Caller, inner: DenseOps) -> None:
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
    def __init__(self, device: Caller, inner: PackedMatrices) -> None:
        self.device = device
        self.inner = inner

    def multiplies(self, format: WeightFormat) -> bool:
        return self.device.around("packed.multiplies", self.inner.multiplies, format)

    def rounds(self, format: WeightFormat) -> Rounding:
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
    def __init__(self, device: Caller, inner: BranchOps) -> None:
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

    def norm_rows(
        self, x: "Tensor", weight: "Tensor", eps: float, out: "Tensor | None" = None
    ) -> None:
        self.device.around("branches.norm_rows", self.inner.norm_rows, x, weight, eps, out)

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
    def __init__(self, device: Caller, inner: ExpertOps) -> None:
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
    def __init__(self, device: Caller, inner: LatentOps) -> None:
        self.device = device
        self.inner = inner

    def by_head(self, x: "Tensor", weight: "Tensor", out: "Tensor") -> None:
        self.device.around("latents.by_head", self.inner.by_head, x, weight, out)

    def rotate(self, x: "Tensor", rotation: Rotation | None, out: "Tensor") -> None:
        self.device.around("latents.rotate", self.inner.rotate, x, rotation, out)


class WrappedRecurrence:
    def __init__(self, device: Caller, inner: Recurrence) -> None:
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

    def scan(
        self,
        tokens: object,
        borders: object,
        layer: int,
        xbc: "Tensor",
        times: "Tensor",
        rule: StateSpaceRule,
        out: "Tensor",
    ) -> None:
        self.device.around(
            "recurrence.scan", self.inner.scan, tokens, borders, layer, xbc, times, rule, out
        )


class WrappedLowRankOps:
    def __init__(self, device: Caller, inner: LowRankOps) -> None:
        self.device = device
        self.inner = inner

    def adapted_linear(
        self,
        x: "Tensor",
        weight: "Tensor | Matrices",
        rows: LowRankRows,
        bias: "Tensor | None" = None,
        residual: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        return self.device.around(
            "low_rank.linear", self.inner.adapted_linear, x, weight, rows, bias, residual, out
        )

    def adapted_gated_linear(
        self,
        x: "Tensor",
        weight: "Tensor | Matrices",
        rows: LowRankRows,
        activation: Activation,
        bias: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        return self.device.around(
            "low_rank.gated_linear",
            self.inner.adapted_gated_linear,
            x,
            weight,
            rows,
            activation,
            bias,
            out,
        )
