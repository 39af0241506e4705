"""Layers with a recurrence in place of attention."""

from torch import Tensor

from kvrt.model.activations import Activations
from kvrt.model.ops import MixedOps
from kvrt.model.recurrence import TorchRecurrence
from kvrt.model.spec import ModelSpec
from kvrt.model.weights import LayerWeights
from kvrt.spi import Device, Recurrence, StateBatch


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

    def plan(self, batch: StateBatch) -> object:
        return self._recurrence.plan(batch)

    def mix(
        self,
        plan: object,
        layer: int,
        read: Tensor,
        w: LayerWeights,
        work: Activations,
        ops: MixedOps,
    ) -> Tensor:
        """What the last product of a layer is of.

        Args:
            plan: of its group.
            layer: its number there.
            read: [tokens, hidden], what it reads.
        """
        assert w.conv is not None
        b, c, x = ops.linear(read, w.mixer_in, w.mixer_in_bias, None, work.mixed).chunk(3, -1)
        b.mul_(x)
        self._recurrence.convolve(plan, layer, b, w.conv, w.conv_bias, "none", work.convolved)
        return work.convolved.mul_(c)
