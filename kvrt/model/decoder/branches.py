"""What families put around a layer's products: norms of several kinds and places, scales, and
feed-forward layers without a gate.

A device's own `BranchOps` compute it. On one without, torch's operators do; a recorded step knows
nothing of those, so such models are not recorded there (`recordable`).
"""

import math
from collections.abc import Callable, Mapping
from copy import copy
from typing import cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kvrt.model.decoder.activations import Activations
from kvrt.model.decoder.ops import MixedOps
from kvrt.model.spec import MLPActivation, ModelSpec
from kvrt.model.weights.layers import LayerWeights
from kvrt.spi import Activation, BranchOps, Matrices, PlainActivation


def recordable(spec: ModelSpec, branches: bool, mixtures: bool) -> bool:
    """Whether layers consist of a device's own operators alone.

    Args:
        branches: it has `BranchOps`.
        mixtures: layers that are mixtures of experts do.
    """
    if spec.recurrence is not None:
        return False
    simple = (
        spec.norm == "rms"
        and spec.qk_norm != "whole"
        and spec.gated
        and spec.query_beta == 0.0
        and spec.residual_scale == 1.0
        and not spec.post_norms
        and not spec.value_norm
    )
    said = branches and not (spec.norm == "layer" and spec.post_norms)
    mixed = spec.experts is None or (
        mixtures
        and not spec.experts.shared_scale
        and not spec.experts.beside
        and (branches or not spec.experts.scaled_input)
        and spec.residual_scale == 1.0
    )
    return (simple or said) and mixed and spec.qk_norm != "rotated" and spec.activation != "xielu"


def heat_at(spec: ModelSpec, positions: NDArray[np.int64]) -> Tensor:
    """What queries are multiplied by at some positions: float32 [tokens], on the host."""
    rounds = torch.from_numpy((positions + spec.query_ahead) // spec.query_positions).float()
    return rounds.add_(1.0).log_().mul_(spec.query_beta).add_(1.0)


def finish(spec: ModelSpec, logits: Tensor) -> Tensor:
    """The logits, float32 [rows, vocab], scaled and capped; in place."""
    if spec.logit_scale != 1.0:
        logits.mul_(spec.logit_scale)
    if spec.logit_softcap:
        logits.div_(spec.logit_softcap).tanh_().mul_(spec.logit_softcap)
    return logits


def _gelu(x: Tensor) -> Tensor:
    return (x / math.sqrt(2)).erf_().add_(1.0).mul_(x).mul_(0.5)


def _gelu_tanh(x: Tensor) -> Tensor:
    cubed = x.square().mul_(0.044715).add_(1.0).mul_(x)
    return cubed.mul_(math.sqrt(2 / math.pi)).tanh_().add_(1.0).mul_(x).mul_(0.5)


def sigmoid(x: Tensor) -> Tensor:
    """The sigmoid, near 0 as exact as elsewhere: what is scaled by it may be normed; of bits that
    do not depend on how many numbers there are."""
    return x.neg().exp_().add_(1.0).reciprocal_()


def _silu(x: Tensor) -> Tensor:
    return sigmoid(x).mul_(x)


PLAIN: Mapping[MLPActivation, Callable[[Tensor], Tensor]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu2": lambda x: x.relu().square(),
}
"""Of operators whose bits do not depend on how many numbers there are, as those of torch's own
``gelu`` do."""


def _xielu(x: Tensor, slopes: Tensor) -> Tensor:
    """Equation 14 of arXiv 2411.13010; `slopes`: of `names.Naming`'s ``apertus``, float32 [4]."""
    above, below, beta, eps = slopes
    curved = x.minimum(eps).expm1_().sub_(x).mul_(beta + F.softplus(below))
    return torch.where(x > 0, F.softplus(above) * x * x, curved).add_(beta * x)


class Branches:
    """What a model's layers have in common.

    Args:
        ops: the operators of its products.
        own: the device's, of the rest, if it has them.
        torch_device: the device.
    """

    def __init__(
        self, spec: ModelSpec, ops: MixedOps, own: BranchOps | None, torch_device: str
    ) -> None:
        self._spec = spec
        self._ops = ops
        self._own = own
        widths = {spec.head_dim, *([spec.whole.head_dim] if spec.whole else ())}
        self._ones = {width: torch.ones(width, device=torch_device) for width in widths}
        self.recordable = own is not None

    def by(self, ops: MixedOps) -> "Branches":
        """The same, with other operators of products."""
        if ops is self._ops:
            return self
        others = copy(self)
        others._ops = ops
        return others

    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        """`x` normed, in `out` if that is given; `x` itself where the model has no such norm."""
        if weight is None:
            return x
        eps = self._spec.norm_eps
        if self._spec.norm == "rms":
            return self._ops.rms_norm(x, weight, eps, out)
        if self._own is not None:
            return self._own.layer_norm(x, weight, bias, eps, out)
        normed = F.layer_norm(x.float(), weight.shape, weight, bias, eps)
        return normed.to(x.dtype) if out is None else out.copy_(normed)

    def norm_whole(self, w: LayerWeights, work: Activations) -> None:
        """Norm all of a token's query, and all of its key, where a model does that; in place."""
        if self._spec.qk_norm != "whole":
            return
        for heads, weight in ((work.q, w.q_norm), (work.k, w.k_norm)):
            assert weight is not None
            rows = heads.flatten(1)  # a view: a token's heads lie one after the other
            if self._own is not None:
                self._own.norm_rows(rows, weight, self._spec.norm_eps)
                continue
            heads.copy_(self._ops.rms_norm(rows, weight, self._spec.norm_eps).view_as(heads))

    def values(self, k: Tensor, v: Tensor, whole: bool) -> None:
        """Make a layer's values what they are before its keys are normed and rotated; in place.

        Args:
            whole: the layer has the heads of `ModelSpec.whole`.
        """
        spec = self._spec
        made = k if whole and spec.whole is not None and not spec.whole.values else v
        if not spec.value_norm:
            if made is not v:
                v.copy_(made)
            return
        ones = self._ones[v.shape[-1]]
        if self._own is not None:
            for head in range(v.shape[1]):
                self._own.norm_rows(made[:, head], ones, spec.norm_eps, v[:, head])
            return
        rows = self._ops.rms_norm(made.reshape(-1, len(ones)), ones, spec.norm_eps)
        v.copy_(rows.view(v.shape))

    def finish(self, x: Tensor, w: LayerWeights) -> None:
        """Scale what a layer gives, where a model does that; in place."""
        if w.layer_scale is None:
            return
        if self._own is not None and x.dtype == w.layer_scale.dtype:
            self._own.scale_rows(x.view(1, -1), w.layer_scale)
        else:
            x.mul_(w.layer_scale)

    def heat(self, work: Activations, weight: Tensor | None, rotated: bool) -> None:
        """Multiply rotated queries by what goes by their position, where a model does that, and
        each head by a weight; in place."""
        if weight is not None:
            work.q.mul_(weight)
        if not self._spec.query_beta or (rotated and self._spec.query_unrotated):
            return
        if self._own is not None:
            self._own.scale_rows(work.q.flatten(1), work.heat.view(-1))
        else:
            work.q.mul_(work.heat)

    def gate(self, work: Activations) -> None:
        """Multiply what heads have attended to by their gates, where a model does that."""
        if self._spec.gated_attention:
            work.attended.mul_(sigmoid(work.gate))

    def mlp(self, x: Tensor, w: LayerWeights, out: Tensor) -> None:
        """The feed-forward layer up to its last product."""
        kind, gate_scale = self._spec.activation, self._spec.gate_scale
        if gate_scale != 1.0:
            gate, up = self._ops.linear(x, w.gate_up, w.gate_up_bias).chunk(2, -1)
            out.copy_(PLAIN[kind](gate.float().mul_(gate_scale)).mul_(up))
        elif self._spec.gated:
            assert kind in get_args(Activation)
            self._ops.gated_linear(x, w.gate_up, cast(Activation, kind), w.gate_up_bias, out)
        else:
            self._ops.linear(x, w.gate_up, w.gate_up_bias, None, out)
            if kind == "xielu":
                assert w.xielu is not None
                out.copy_(_xielu(out.float(), w.xielu))
                return
            assert kind in get_args(PlainActivation)
            if self._own is not None:
                self._own.activate(out, cast(PlainActivation, kind))
            else:
                out.copy_(PLAIN[kind](out.float()))

    def add(
        self,
        branch: Tensor,
        weight: Tensor | Matrices,
        bias: Tensor | None,
        norm: Tensor | None,
        x: Tensor,
        work: Tensor,
        own_scale: float = 1.0,
    ) -> None:
        """Add to `x` what a branch's last product makes of it, normed and scaled.

        Args:
            work: of x's shape, to compute in.
            own_scale: of the branch, beside that of all.
        """
        scale = self._spec.residual_scale * own_scale
        if norm is None and scale == 1.0:
            self._ops.linear(branch, weight, bias, x, x)
            return
        made = self._ops.linear(branch, weight, bias, None, work)
        if self._own is not None and (norm is None or self._spec.norm == "rms"):
            self._own.add_branch(x, made, norm, self._spec.norm_eps, scale)
            return
        x.add_(made if norm is None else self.norm(made, norm, None), alpha=scale)
