"""What a device may offer besides, through `Device.extension`: for speed and for measuring."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from kvrt.spi.batch import AttentionBatch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary position embedding in the half-split convention (Su et al. 2021, arXiv 2104.09864).

    Row i has the angles of row i of q and k. Which they are is the model's business: they follow
    from the token's position in its text, or on its branch, and from how the model stretches it.

    Args:
        cos: float32 [tokens, rotary_dim / 2], contiguous, on the device.
        sin: the same shape.
    """

    cos: "Tensor"
    sin: "Tensor"


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMS norm over head_dim of each query and key head, before rotation.

    Args:
        q: float32 [head_dim] weight.
        k: float32 [head_dim] weight.
        eps: added to the mean square.
    """

    q: "Tensor"
    k: "Tensor"
    eps: float


Activation = Literal["silu", "gelu_tanh"]


@runtime_checkable
class DenseOps(Protocol):
    """The dense parts of a decoder layer, where a device beats torch's own operators.

    `x` is [tokens, in features] in a compute dtype; its last dimension is contiguous, rows may
    have any stride. Weights are [out features, in features], contiguous, in any of the device's
    `weight_dtypes`; norm weights and biases are float32. A result is written to `out` and that is
    returned, if it is given: contiguous, of the result's shape and dtype, and not `x`. Else the
    result is a new tensor.
    """

    def linear(
        self,
        x: "Tensor",
        weight: "Tensor",
        bias: "Tensor | None" = None,
        residual: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        """``x @ weight.T (+ bias) (+ residual)``. `out` may be `residual`."""

    def gated_linear(
        self,
        x: "Tensor",
        weight: "Tensor",
        activation: Activation,
        bias: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        """``act(x @ gate.T) * (x @ up.T)`` where `weight` is gate's rows, then up's.

        `bias`, likewise gate's and then up's, is added to the products first.
        """

    def rms_norm(
        self, x: "Tensor", weight: "Tensor", eps: float, out: "Tensor | None" = None
    ) -> "Tensor":
        """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension."""

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
        """Norm and rotate q and k, in place; then append k, v."""


class Graph(Protocol):
    """The calls of a step, recorded."""

    def replay(self, batches: Sequence[AttentionBatch]) -> None:
        """Make the recorded calls anew, on what their tensors hold now, for another step.

        Its batches have the `kv` and `layout` that were recorded, in the same order; their page
        tables (of any width) and contexts are their own. They have the `query_start` that was
        recorded and no `parents`, unless the device declares `RAGGED_GRAPHS`: then they have as
        many tokens, and may group them anew.
        """


@runtime_checkable
class GraphCapture(Protocol):
    """Recording of a step's calls, so that later steps of its shape take one call.

    A decode step of a small model is hundreds of kernels of a few microseconds each; calling them
    one by one can take the host longer than the device needs to run them.
    """

    def size(self, tokens: int) -> int:
        """How many tokens a step of `tokens` should be recorded with, one for each sequence.

        `tokens`, or more where few sizes are better than many: the rest is padding. 0: a step
        that large is better not recorded.
        """

    def capture(
        self, batches: Sequence[AttentionBatch], record: Callable[[Sequence[object]], None]
    ) -> Graph:
        """Call `record(plans)` once, and keep the calls it makes instead of computing.

        These are calls of this device's `PagedAttention` and `DenseOps`, in the calling thread,
        and nothing else; each result goes to an `out`. The tensors must live as long as the graph.

        A step has a batch, and a plan, for each set of layers whose pages are their own. All of
        them are the same sequences: they differ in `kv`, `layout` and `page_table` alone.
        """


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A device's measured limits, for `kvrt doctor` and benchmarks.

    Args:
        read_bytes_per_s: sustained reading of device memory.
        flops_per_s: float32 multiply-adds, each counted as two.
    """

    read_bytes_per_s: float
    flops_per_s: float


@runtime_checkable
class Measurable(Protocol):
    """A device that can measure its own physical limits."""

    def measure(self) -> Bandwidth:
        """Run a short measurement (well under two seconds)."""
