"""Faults of dense operators."""

from dataclasses import replace

import torch
from torch import Tensor

from kvrt.spi import Activation, HeadNorm, Rotation
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.operators import WrappedDenseOps


class ForgetsTheBias(WrappedDenseOps):
    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return super().linear(x, weight, None, residual, out)


class SwapsGateAndUp(WrappedDenseOps):
    def gated_linear(
        self,
        x: Tensor,
        weight: Tensor,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        gate, up = weight.chunk(2)
        return super().gated_linear(x, torch.cat((up, gate)), activation, bias, out)


class ForgetsEpsilon(WrappedDenseOps):
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
        return super().rms_norm(x, weight, 0.0, out)


class ForgetsOut(WrappedDenseOps):
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
        return super().rms_norm(x, weight, eps)


class NormsKeysLikeQueries(WrappedDenseOps):
    def rotate_append(
        self,
        plan: object,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotation: Rotation | None,
        norm: HeadNorm | None,
    ) -> None:
        norm = replace(norm, k=norm.q) if norm else None
        super().rotate_append(plan, layer, q, k, v, rotation, norm)


class RotatesTheOtherWay(WrappedDenseOps):
    def rotate_append(
        self,
        plan: object,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotation: Rotation | None,
        norm: HeadNorm | None,
    ) -> None:
        rotation = replace(rotation, sin=-rotation.sin) if rotation else None
        super().rotate_append(plan, layer, q, k, v, rotation, norm)


MUTANTS = {
    "forgets_the_bias": Mutant("dense", dense=ForgetsTheBias),
    "swaps_gate_and_up": Mutant("dense", dense=SwapsGateAndUp),
    "forgets_epsilon": Mutant("dense", dense=ForgetsEpsilon),
    "forgets_out": Mutant("dense", dense=ForgetsOut),
    "norms_keys_like_queries": Mutant("dense", dense=NormsKeysLikeQueries),
    "rotates_the_other_way": Mutant("dense", dense=RotatesTheOtherWay),
}
