"""What a device may offer besides, through `Device.extension`: for speed and for measuring."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from kvrt.spi.batch import AttentionBatch
from kvrt.spi.matrices import Matrices, Matrix, WeightFormat

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
    `weight_dtypes`; norm weights and biases are float32. Before it is multiplied with weights of
    bfloat16, `x` may be rounded to that, all of it or none. A result is written to `out` and that
    is returned, if it is given: contiguous, of the result's shape and dtype, and not `x`. Else the
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


Rounding = Literal["none", "codes", "bfloat16"]
"""Nothing; x to codes of 8 bits; weights to bfloat16, and x as products with such weights do."""


@runtime_checkable
class PackedMatrices(Protocol):
    """Products with weights that stay the codes they are in a file.

    `Matrices` are one or more, stacked by rows. x, biases, residual and out are as in
    `DenseOps`, whose other operators stand beside these. Sums are taken in float32, and their order
    is part of the operator: it depends on nothing but the format and the shape. A weight's value is
    exactly what `WeightFormat` says, unless `rounds` says "bfloat16": then results are those of
    `DenseOps` with the weight unpacked and rounded to that, on a device that is `BATCH_INVARIANT`
    to the bit.

    A device may round activations, too, to multiply whole numbers: `rounds` says "codes" of such
    formats. Then each 32 elements of a row of x, one after the other (at the end perhaps fewer),
    are first made into codes,

        code = round(x * (127 / max |x|))       x = code * (max |x| / 127)

    in float32 arithmetic, rounded to nearest even; where max |x| is below 2^-100, they are 0; where
    one of them is not finite, the row of the result is NaN.
    """

    def multiplies(self, format: WeightFormat) -> bool:
        """Whether there are products for a format. The caller unpacks what is in others."""

    def rounds(self, format: WeightFormat) -> Rounding:
        """What products with a format round: "none" if opened as `exact`.

        All matrices of one weight have the same.
        """

    def nbytes(self, format: WeightFormat, out: int, width: int) -> int:
        """Bytes of a matrix as `pack` lays it out; about as many as in the plain form."""

    def pack(self, format: WeightFormat, plain: "Tensor", width: int, into: "Tensor") -> Matrix:
        """Lay a matrix out for this device's products.

        Args:
            plain: uint8 [out, row_bytes], in host memory: the plain form of `WeightFormat`.
            width: elements of a row; the format `fits` it.
            into: uint8 [nbytes], on the device, at a multiple of 128 bytes; the matrix's `data`.
        """

    def rows(self, matrix: Matrix, indices: "Tensor", out: "Tensor") -> "Tensor":
        """Write rows of a matrix, exactly but for the dtype of `out`, and return it.

        Args:
            indices: int32 or int64 [rows], on the device, each from 0 to below `matrix.out`.
            out: [rows, width] in a compute dtype, contiguous.
        """

    def linear(
        self,
        x: "Tensor",
        weight: Matrices,
        bias: "Tensor | None" = None,
        residual: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        """``x @ weight.T (+ bias) (+ residual)``. `out` may be `residual`."""

    def gated_linear(
        self,
        x: "Tensor",
        weight: Matrices,
        activation: Activation,
        bias: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        """``act(x @ gate.T) * (x @ up.T)``, likewise.

        `weight` is one matrix, gate's rows and then up's, or two, gate and up, of equal shape.
        """


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

        These are calls of this device's `PagedAttention`, `DenseOps`, `PackedMatrices`,
        `ExpertOps` and `LowRankOps`, in the calling thread, and nothing else; each result goes to
        an `out`. The tensors must live as long as the graph.

        A step has a batch, and a plan, for each set of layers whose pages are their own. All of
        them are the same sequences: they differ in `kv`, `layout` and `page_table` alone.
        """


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A device's measured limits, for `kvrt doctor` and benchmarks.

    Args:
        read_bytes_per_s: sustained reading of device memory.
        flops_per_s: float32 multiply-adds, each counted as two.
        products: the same of products with weights of other dtypes, by those; with packed weights,
            as ``codes``. What it does not know is left out.
    """

    read_bytes_per_s: float
    flops_per_s: float
    products: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Measurable(Protocol):
    """A device that can measure its own physical limits."""

    def measure(self) -> Bandwidth:
        """Run a short measurement (well under two seconds)."""
