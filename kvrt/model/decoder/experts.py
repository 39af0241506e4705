"""Mixtures of experts: the layer, and its operators on a device that has none of its own."""

from collections.abc import Iterator
from typing import cast, get_args

import torch
from torch import Tensor

from kvrt.model.decoder.activations import Activations
from kvrt.model.decoder.branches import PLAIN, sigmoid
from kvrt.model.decoder.offloaded import Offloaded
from kvrt.model.decoder.ops import MixedOps
from kvrt.model.decoder.spread import Spread
from kvrt.model.offload.pool import ExpertPool
from kvrt.model.shard import Split
from kvrt.model.spec import MLPActivation, ModelSpec
from kvrt.model.weights.experts import experts_of
from kvrt.model.weights.layers import LayerWeights
from kvrt.spi import Activation, BranchOps, Device, ExpertOps, Experts, Matrices, Router

AnyExperts = Experts | Offloaded | Spread
"""Those of a layer: all here, some brought as needed, or some with each of several ranks."""


def notes_on_experts(spec: ModelSpec, device: Device) -> Iterator[str]:
    """What a user may want to know of a device that computes mixtures of experts."""
    if spec.experts is None:
        return
    if not spec.experts.gated:
        yield "experts without a gate are computed one after the other, and the host asks which"
    elif device.extension(ExpertOps) is None:  # type: ignore[type-abstract]
        yield (
            f"{device.info.backend} computes one expert after the other, and asks the host which:"
            " it has no operators of its own for mixtures of experts"
        )


class Mixture:
    """What the mixtures of a model have in common.

    Args:
        ops: the operators of other products.
        device: computes, with its own `ExpertOps` if it has them.
        pool: experts are brought to it as needed; None: all are there.
        split: the rank has some of them, and others of its stage the rest.
    """

    def __init__(
        self,
        spec: ModelSpec,
        ops: MixedOps,
        device: Device,
        pool: ExpertPool | None = None,
        split: Split | None = None,
    ) -> None:
        own = device.extension(ExpertOps)  # type: ignore[type-abstract]
        self._branches = device.extension(BranchOps)  # type: ignore[type-abstract]
        self._spec = spec
        self._experts: ExpertOps = PlainExperts(ops) if own is None else own
        if spec.experts is not None and not spec.experts.gated:
            self._experts = UngatedExperts(ops, spec.activation)
        self._pool, self._split = pool, split
        self.recordable = own is not None and pool is None

    def experts_of(self, layer: int, w: LayerWeights) -> AnyExperts | None:
        """The experts of a layer, if it has any."""
        spec = self._spec.experts
        if spec is None or w.router is None:
            return None
        if self._pool is not None:
            return Offloaded(self._pool, layer)
        if self._split is None or self._split.tensor is None:
            return experts_of(spec, spec.count, w)
        shard = self._split.shard
        own = experts_of(spec, len(shard.span(spec.count)), w)
        return Spread(own, spec.count, self._split.tensor, shard)

    def add(
        self,
        read: Tensor,
        w: LayerWeights,
        experts: AnyExperts,
        work: Activations,
        ops: MixedOps,
    ) -> None:
        """Add to ``work.x`` what a layer's experts make of `read`, its norm.

        Args:
            ops: of the step, for what all tokens have.
        """
        spec = self._spec.experts
        assert spec is not None
        assert w.router is not None
        x, chosen, weights = work.x, work.chosen, work.weights
        if spec.beside:
            self._add_beside(read, w, experts, work, ops)
            return
        ops.linear(read.float(), w.router, w.router_bias, None, work.logits)
        self._experts.route(work.logits, spec.router, w.correction, chosen, weights)
        if self._spec.residual_scale == 1.0 and not spec.shared_scale:
            if spec.shared:
                ops.linear(self._shared(read, w, work, ops), w.down, w.down_bias, x, x)
            if spec.scaled_input:
                read, weights = self._scaled(read, weights), work.ones
            self._mix(read, experts, chosen, weights, x, x)
            return
        made = torch.empty_like(x)
        self._mix(read, experts, chosen, weights, None, made)
        if spec.shared:
            shared = ops.linear(self._shared(read, w, work, ops), w.down, w.down_bias)
            if w.shared_scale is not None:
                shared.mul_(sigmoid(ops.linear(read.float(), w.shared_scale)))
            made.add_(shared)
        x.add_(made, alpha=self._spec.residual_scale)

    def _add_beside(
        self,
        read: Tensor,
        w: LayerWeights,
        experts: AnyExperts,
        work: Activations,
        ops: MixedOps,
    ) -> None:
        """The same where what all tokens have stands beside the experts, as in Gemma 4."""
        spec, eps = self._spec.experts, self._spec.norm_eps
        norms = (w.expert_norm, w.expert_post_norm, w.shared_post_norm, w.mlp_post_norm)
        before, behind, of_shared, of_both = cast(tuple[Tensor, Tensor, Tensor, Tensor], norms)
        assert spec is not None
        assert w.router is not None
        assert w.router_scale is not None
        assert w.expert_scale is not None
        x, chosen, weights = work.x, work.chosen, work.weights
        scale = w.router_scale * self._spec.hidden**-0.5
        ops.linear(ops.rms_norm(x.float(), scale, eps), w.router, None, None, work.logits)
        self._experts.route(work.logits, spec.router, None, chosen, weights)
        weights.mul_(w.expert_scale[chosen])
        made = torch.empty_like(x)
        self._mix(ops.rms_norm(x, before, eps), experts, chosen, weights, None, made)
        shared = ops.linear(self._shared(read, w, work, ops), w.down, w.down_bias)
        both = ops.rms_norm(shared, of_shared, eps).add_(ops.rms_norm(made, behind, eps))
        x.add_(ops.rms_norm(both, of_both, eps))

    def _scaled(self, read: Tensor, weights: Tensor) -> Tensor:
        """Each row times its token's weight: `read` itself, where the device can."""
        if self._branches is None or read.dtype != weights.dtype:
            return read * weights.to(read.dtype)
        self._branches.scale_rows(read, weights.view(-1))
        return read

    def _mix(
        self,
        x: Tensor,
        experts: AnyExperts,
        chosen: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        out: Tensor,
    ) -> None:
        if isinstance(experts, Experts):
            self._experts.mix(x, experts, chosen, weights, residual, out)
        else:
            experts.mix(self._experts, x, chosen, weights, residual, out)

    def _shared(self, read: Tensor, w: LayerWeights, work: Activations, ops: MixedOps) -> Tensor:
        """What all tokens have, up to its last product."""
        kind = self._spec.activation
        if not self._spec.gated:
            up = ops.linear(read, w.gate_up, w.gate_up_bias, None, work.shared)
            return up.copy_(PLAIN[kind](up.float()))
        assert kind in get_args(Activation)
        activation = cast(Activation, kind)
        return ops.gated_linear(read, w.gate_up, activation, w.gate_up_bias, work.shared)


class PlainExperts:
    """`kvrt.spi.ExpertOps` by the operators of a dense decoder, on any device.

    It asks the host which experts are used, and computes one after the other: right, but slow.
    """

    def __init__(self, ops: MixedOps) -> None:
        self._ops = ops

    def route(
        self,
        logits: Tensor,
        router: Router,
        correction: Tensor | None,
        chosen: Tensor,
        weights: Tensor,
    ) -> None:
        if router.score == "sparsemixer":
            _route_sparsely(logits, router, chosen, weights)
            return
        scores = logits
        if router.score == "softmax":
            scores = logits.softmax(-1)
        elif router.score == "sigmoid":
            scores = sigmoid(logits)
        ranked = scores if correction is None else scores + correction
        if router.groups_chosen < router.groups:
            ranked = _of_best_groups(ranked, router)
        best = _best(ranked, router.chosen)
        chosen.copy_(best)
        kept = scores.gather(1, best)
        if router.score == "chosen":
            kept = kept.softmax(-1)
        if router.renormalise:
            kept = kept / kept.sum(-1, keepdim=True).clamp(min=router.least)
        weights.copy_(kept * router.scale)

    def mix(
        self,
        x: Tensor,
        experts: Experts,
        chosen: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        out: Tensor,
    ) -> None:
        tokens, each = chosen.shape
        used = chosen.flatten()
        results = torch.empty(tokens * each, out.shape[1], device=x.device)
        for expert in sorted(set(used.tolist())):
            slots = (used == expert).nonzero()[:, 0]
            result = self._one(x.index_select(0, slots // each), experts, expert)
            results[slots] = result.float() * weights.flatten()[slots, None]
        results = results.view(tokens, each, -1)
        total = results[:, 0].clone()
        for slot in range(1, each):
            total.add_(results[:, slot])
        out.copy_(total if residual is None else total.add_(residual))

    def _one(self, x: Tensor, experts: Experts, expert: int) -> Tensor:
        gate_up = _of(experts.gate_up, experts.count, expert)
        down = _of(experts.down, experts.count, expert)
        bias = None if experts.gate_up_bias is None else experts.gate_up_bias[expert]
        if experts.activation == "clamped":
            gate, up = self._ops.linear(x, gate_up, bias).chunk(2, -1)
            gate, up = gate.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
            between = (up + 1.0) * gate * sigmoid(experts.alpha * gate)
        else:
            activation: Activation = experts.activation
            between = self._ops.gated_linear(x, gate_up, activation, bias)
        bias = None if experts.down_bias is None else experts.down_bias[expert]
        return self._ops.linear(between, down, bias)


class UngatedExperts(PlainExperts):
    """Of experts without a gate, for which no device has operators of its own.

    Args:
        activation: of what comes up.
    """

    def __init__(self, ops: MixedOps, activation: MLPActivation) -> None:
        super().__init__(ops)
        self._act = PLAIN[activation]

    def _one(self, x: Tensor, experts: Experts, expert: int) -> Tensor:
        up = self._ops.linear(x, _of(experts.gate_up, experts.count, expert))
        up.copy_(self._act(up.float()))
        return self._ops.linear(up, _of(experts.down, experts.count, expert))


def _of(weight: Tensor | Matrices, count: int, expert: int) -> Tensor | Matrices:
    """An expert's part of a weight."""
    each = len(weight) // count
    return weight[each * expert : each * (expert + 1)]


def _best(scores: Tensor, count: int) -> Tensor:
    """Which are the largest of each row; of equals the first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def _of_best_groups(scores: Tensor, router: Router) -> Tensor:
    """The scores of experts that can be chosen; the others' are negative infinity."""
    groups = scores.view(len(scores), router.groups, -1)
    best = 2 if router.group_score == "two" else 1
    worth = groups.sort(-1, descending=True).values[..., :best].sum(-1)
    usable = torch.zeros_like(worth)
    usable.scatter_(1, _best(worth, router.groups_chosen), 1.0)
    return torch.where(usable[..., None] > 0, groups, -torch.inf).flatten(1)


def _route_sparsely(logits: Tensor, router: Router, chosen: Tensor, weights: Tensor) -> None:
    left = logits.clone()
    for slot in range(router.chosen):
        best = _best(left, 1)
        most = left.gather(1, best)
        far = (most - logits) / torch.maximum(logits.abs(), most) > 2 * router.jitter
        share = torch.where(far, -torch.inf, left).softmax(-1)
        chosen[:, slot] = best[:, 0]
        weights[:, slot] = share.gather(1, best)[:, 0] * router.scale
        left.scatter_(1, best, -torch.inf)
