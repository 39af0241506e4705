"""Matrices of low rank added to some tokens' products: `kvrt.spi.LowRankOps`. Checks nothing."""

from torch import Tensor

from kvrt.spi import Activation, LowRankRows
from kvrt_kernels._args import DTYPE_CODE, address, threads_or_default
from kvrt_kernels._load import native
from kvrt_kernels.linear import GATE_CODE


class Added:
    """What is added to a matrix in a step.

    Args:
        rows: whose matrices must live as long as this is used; it does not keep them.
    """

    def __init__(self, rows: LowRankRows) -> None:
        first = rows.segments[0][2].a
        segments = [
            (
                start,
                stop,
                address(added.a),
                [(address(b), row, b.shape[1], b.shape[0]) for row, b in added.parts],
            )
            for start, stop, added in rows.segments
        ]
        self._rows = native().LowRankRows(DTYPE_CODE[first.dtype], first.shape[1], segments)

    def to(
        self,
        x: Tensor,
        out: Tensor,
        activation: Activation | None = None,
        gated: Tensor | None = None,
        threads: int | None = None,
    ) -> None:
        """Add it; x is float32. With an activation, gates follow, into `gated`."""
        native().low_rank(
            self._rows,
            address(x),
            x.stride(0),
            address(out),
            out.stride(0),
            *out.shape,
            0 if activation is None else GATE_CODE[activation],
            address(gated),
            threads_or_default(threads),
        )
