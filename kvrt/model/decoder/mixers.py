"""Layers with a recurrence in place of attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvrt.model.decoder.activations import Activations
from kvrt.model.decoder.branches import PLAIN, sigmoid
from kvrt.model.decoder.ops import MixedOps
from kvrt.model.decoder.recurrence import TorchRecurrence
from kvrt.model.spec import ModelSpec
from kvrt.model.states import GatedDelta, StateSpace
from kvrt.model.weights.layers import LayerWeights
from kvrt.spi import DeltaRule, Device, Recurrence, StateBatch, StateSpaceRule


class Mixer:
    """What recurrent layers add, up to their last product.

    Args:
        spec: of a model that may have some.
        device: computes, with its own `Recurrence` if it has one, and in plain torch if not.
    """

    def __init__(self, spec: ModelSpec, device: Device) -> None:
        self._spec = spec
        own = device.extension(Recurrence)  # type: ignore[type-abstract]
        self._recurrence: Recurrence = TorchRecurrence() if own is None else own
        self._mix = self._convolved
        if isinstance(spec.recurrence, GatedDelta):
            self._mix = self._delta
        if isinstance(shape := spec.recurrence, StateSpace):
            self._mix = self._space
            sizes = torch.tensor([shape.out, shape.out, shape.keys, shape.keys, shape.heads])
            scales = torch.tensor(shape.scales or (1.0,) * 5).repeat_interleave(sizes)
            self._scales = scales.to(device.info.torch_device) if shape.scales else None
            self._ones = torch.ones(shape.out // shape.groups, device=device.info.torch_device)

    def plan(self, batch: StateBatch) -> object:
        return self._recurrence.plan(batch)

    def mix(
        self,
        plans: Sequence[object],
        layer: int,
        read: Tensor,
        w: LayerWeights,
        work: Activations,
        ops: MixedOps,
    ) -> Tensor:
        """What the last product of a layer is of.

        Args:
            plans: first those of its groups.
            layer: its number there.
            read: [tokens, hidden], what it reads.
        """
        return self._mix(plans, layer, read, w, work, ops)

    def _convolved(
        self,
        plans: Sequence[object],
        layer: int,
        read: Tensor,
        w: LayerWeights,
        work: Activations,
        ops: MixedOps,
    ) -> Tensor:
        assert w.conv is not None
        b, c, x = ops.linear(read, w.mixer_in, w.mixer_in_bias, None, work.mixed).chunk(3, -1)
        b.mul_(x)
        self._recurrence.convolve(plans[0], layer, b, w.conv, w.conv_bias, "none", work.convolved)
        return work.convolved.mul_(c)

    def _delta(
        self,
        plans: Sequence[object],
        layer: int,
        read: Tensor,
        w: LayerWeights,
        work: Activations,
        ops: MixedOps,
    ) -> Tensor:
        shape = self._spec.recurrence
        assert isinstance(shape, GatedDelta)
        assert w.conv is not None
        assert w.mixer_gates is not None
        assert w.decay_log is not None
        assert w.decay_bias is not None
        assert w.mixer_norm is not None
        made = ops.linear(read, w.mixer_in, None, None, work.mixed)
        qkv, z = made[:, : shape.channels], made[:, shape.channels :]
        gates = work.gates
        if shape.rank:
            assert w.mixer_decay is not None
            z_low, a_low = (low.contiguous() for low in z.chunk(2, -1))
            z = ops.linear(z_low, w.mixer_z)
            gates[:, : shape.value_heads].copy_(ops.linear(read, w.mixer_gates))
            gates[:, shape.value_heads :].copy_(ops.linear(a_low, w.mixer_decay))
        else:
            ops.linear(read, w.mixer_gates, None, None, gates)
        self._recurrence.convolve(plans[0], layer, qkv, w.conv, None, "silu", work.convolved)
        rule = DeltaRule(
            shape.key_heads,
            shape.value_heads,
            shape.key_dim,
            shape.value_dim,
            w.decay_log,
            w.decay_bias,
            shape.decays,
            shape.strength,
            shape.tiled,
        )
        self._recurrence.delta(
            plans[1], plans[2], layer, work.convolved, gates, rule, work.recalled
        )
        heads = work.recalled.view(-1, shape.value_dim)
        heads.copy_(ops.rms_norm(heads, w.mixer_norm, shape.eps or self._spec.norm_eps))
        gate = PLAIN["silu"] if shape.gate == "silu" else sigmoid
        return work.recalled.mul_(gate(z.float()))

    def _space(
        self,
        plans: Sequence[object],
        layer: int,
        read: Tensor,
        w: LayerWeights,
        work: Activations,
        ops: MixedOps,
    ) -> Tensor:
        shape = self._spec.recurrence
        assert isinstance(shape, StateSpace)
        assert w.conv is not None
        assert w.decay_log is not None
        assert w.decay_bias is not None
        assert w.skip is not None
        made = ops.linear(read, w.mixer_in, w.mixer_in_bias, None, work.mixed)
        if self._scales is not None:
            made.mul_(self._scales)
        z, xbc, times = made.split_with_sizes((shape.out, shape.channels, shape.heads), -1)
        self._recurrence.convolve(plans[0], layer, xbc, w.conv, w.conv_bias, "silu", work.convolved)
        rule = StateSpaceRule(
            shape.groups,
            shape.heads,
            shape.state_dim,
            shape.head_dim,
            w.decay_log,
            w.decay_bias,
            w.skip,
            shape.limits,
        )
        out = work.recalled
        self._recurrence.scan(plans[1], plans[2], layer, work.convolved, times, rule, out)
        if shape.gating == "before":
            self._norm(out, w, ops)
        out.mul_(PLAIN["silu"](z.float()))
        if shape.gating == "normed":
            self._norm(out, w, ops)
        return out

    def _norm(self, out: Tensor, w: LayerWeights, ops: MixedOps) -> None:
        """What the heads of each group give, normed; in place."""
        assert w.mixer_norm is not None
        rows = out.view(-1, len(self._ones))
        rows.copy_(ops.rms_norm(rows, self._ones, self._spec.norm_eps))
        out.mul_(w.mixer_norm)
