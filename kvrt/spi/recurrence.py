"""Layers that go over a sequence token by token, and what a device may offer for them.

What such a layer keeps of a sequence is in pages, as keys and values are: numbers of each token,
which later tokens need for a while.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from kvrt.spi.batch import AttentionBatch
from kvrt.spi.layout import ITEM_BYTES, DType, KVLayout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Where the numbers of a token are: rows of `width`, ``[page][layer][slot]``, without gaps.

    Args:
        format: what they are.
        layers: that have pages together.
        width: numbers of a token in each layer.
        page_size: slots.
    """

    format: DType
    layers: int
    width: int
    page_size: int

    @property
    def storage(self) -> DType:
        """The dtype of the tensor over the pages."""
        return self.format

    @property
    def layer_stride(self) -> int:
        """Items from one layer to the next."""
        return self.page_size * self.width

    @property
    def page_stride(self) -> int:
        """Items from one page to the next."""
        return self.layers * self.layer_stride

    @property
    def page_bytes(self) -> int:
        return self.page_stride * ITEM_BYTES[self.format]


PageLayout = KVLayout | StateLayout
"""What is where in the pages of a group of layers."""


@dataclass(frozen=True, slots=True)
class StateBatch:
    """The sequences of one step, as in `AttentionBatch`, for layers with a recurrence.

    Each token follows the one before it. Nothing is read that lies before what a sequence's first
    new token needs, neither pages nor their entries of the page table.

    Args:
        kv: 1-D, `layout.storage`, over the whole span (`VirtualMemory.tensor`).
        layout: where in `kv` a token's numbers are.
        page_table: int32 [sequences, max pages], on the host, contiguous.
        query_start: int32 [sequences + 1], on the host, begins with 0, never decreases.
        context_len: int32 [sequences], on the host, this step's tokens included.
    """

    kv: "Tensor" = field(repr=False)  # printing it would read the holes
    layout: StateLayout
    page_table: "Tensor"
    query_start: "Tensor"
    context_len: "Tensor"


StepBatch = AttentionBatch | StateBatch
"""The sequences of a step, as layers see them whose pages are in one place."""

StateActivation = Literal["none", "silu"]


@runtime_checkable
class Recurrence(Protocol):
    """Recurrent layers over pages. Its calls are compute.

    In a step: `plan` once for all layers whose pages are in one place, then its calls for each
    layer. Tensors are [tokens, ...] in a compute dtype; a token's numbers are contiguous, rows may
    have any stride. Weights are float32 and contiguous.
    """

    def plan(self, batch: StateBatch) -> object:
        """Prepare what all layers share, e.g. copy the page table to the device. The caller uses
        it until the next step."""

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
        """Convolve each channel along its sequence, causally:

            out[t, c] = act(bias[c] + sum over j of weight[c, j] * x[t - kernel + 1 + j, c])

        in float32, in the order of j, product by product, each operation rounded; the bias comes
        last. What is before a sequence is 0.

        Stores x in the tokens' slots, rounded to the pages' format as x is, which it has. Tokens of
        earlier steps are read from theirs: the last ``kernel - 1`` before each of its new ones.

        Args:
            x: [tokens, layout.width].
            weight: [layout.width, kernel].
            bias: [layout.width].
            out: [tokens, layout.width], not x.
        """
