"""Matrices of low rank added to some tokens' products, in the calls of these."""

from collections.abc import MutableMapping
from typing import NewType

from kvrt.spi import LowRank, LowRankRows
from kvrt_kernels._args import DTYPE_CODE, address
from kvrt_kernels._load import native

Matrices = NewType("Matrices", object)
"""`LowRank` for the native module."""

Added = NewType("Added", object)
"""`LowRankRows` for the native module."""


def added(rows: LowRankRows, known: MutableMapping[LowRank, Matrices]) -> Added:
    """What products take; it does not keep the matrices, which must live as long as it is used.

    Args:
        known: what was made of `LowRank` before; what is new is put there.
    """
    for _, _, some in rows.segments:
        if some not in known:
            parts = [(address(b), row, b.shape[1], b.shape[0]) for row, b in some.parts]
            known[some] = Matrices(native().LowRank(address(some.a), parts))
    segments = [(start, stop, known[some]) for start, stop, some in rows.segments]
    return Added(native().LowRankRows(DTYPE_CODE[rows.segments[0][2].a.dtype], segments))
