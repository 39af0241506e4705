"""Multi-head latent attention: what a device may offer for it besides attention itself."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kvrt.spi.optional import Rotation

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class LatentOps(Protocol):
    """What multi-head latent attention puts around attention (DeepSeek-AI 2024, arXiv 2405.04434).

    Its pages have one head of keys, whose values are their beginning (`KVLayout`), and every query
    head reads it. What makes each head's key of that is applied to its query instead, and what
    makes its value, to what it has read: products with a matrix for each head.

    Tensors are [tokens, heads, elements] in a compute dtype, whose elements are contiguous; heads
    and rows may have any stride. They may be parts of longer heads.
    """

    def by_head(self, x: "Tensor", weight: "Tensor", out: "Tensor") -> None:
        """Write ``weight[h] @ x[t, h]`` of each token t and head h to ``out[t, h]``.

        On a device that is `BATCH_INVARIANT` it has the bits of `DenseOps.linear`.

        Args:
            weight: [heads, out features, in features], contiguous, in any of the device's
                `weight_dtypes`.
            out: [tokens, heads, out features], and no part of x.
        """

    def rotate(self, x: "Tensor", rotation: Rotation | None, out: "Tensor") -> None:
        """Write x, rotated, to `out`, which has its shape: x itself, or no part of it.

        Args:
            rotation: of the first ``2 * rotation.cos.shape[1]`` elements of each head; None: of
                none.
        """
