"""Where the numbers of a checkpoint's tensor go, and as what they are kept there."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kvrt.model.checkpoint.rows import Rows
from kvrt.model.packed.ggml import AT_ONCE, TYPES, to_plain
from kvrt.model.packed.pieces import by_pieces
from kvrt.model.packed.quantize import largest, quantized
from kvrt.model.weights.weights import Packing, Part, Weight
from kvrt.spi import Matrices, Matrix, PackedMatrices
from kvrt.spi.plain import finite_rows


class Floats:
    """They are kept as floats.

    Args:
        view: of the arena, contiguous.
    """

    def __init__(self, view: Tensor) -> None:
        self._view = view
        self._at = 0
        self.dtype = view.dtype
        self.shape = tuple(view.shape)
        self.kept_as = str(view.dtype).removeprefix("torch.")
        self.largest = torch.finfo(view.dtype).max

    def put(self, source: Tensor) -> None:
        """The numbers that come next."""
        end = self._at + source.numel()
        into = self._view.view(-1)[self._at : end]
        if into.device.type == "cpu" and self.dtype == source.dtype:
            # By numpy, which wakes no other threads for it, and lets them run meanwhile.
            np.copyto(into.view(torch.uint8).numpy(), source.view(torch.uint8).numpy())
        else:
            into.copy_(source)
        self._at = end

    def finish(self, rows: Rows | None = None) -> None:
        """All have come.

        Args:
            rows: how they lie in the file, if they are to be put in order.
        """
        if rows is not None:
            rows.put_in_order(self._view)


class Codes:
    """They are made into codes.

    Args:
        matrix: its place in the arena.
        products: what lays it out there.
    """

    def __init__(self, matrix: Matrix, products: PackedMatrices) -> None:
        self._matrix, self._products = matrix, products
        self.format = matrix.format
        self.shape = matrix.out, matrix.width
        self._plain = np.empty((0, 0), np.uint8)
        self._rest = torch.empty(0)
        self._row = 0
        self.kept_as = matrix.format.name
        self.largest = largest(matrix.format)

    def put(self, source: Tensor) -> None:
        """The numbers that come next."""
        width = self._matrix.width
        source = torch.cat((self._rest, source)) if self._rest.numel() else source
        whole = source.numel() // width * width
        self._rest = source[whole:].clone()
        self.put_rows(quantized(self.format, source[:whole].view(-1, width)))

    def stays(self, dtype: str) -> bool:
        """Whether blocks of one of ggml's types are kept as they are."""
        return dtype in TYPES and TYPES[dtype].format == self.format

    def put_blocks(self, dtype: str, raw: Tensor) -> Tensor:
        """The blocks that come next, uint8 of whole rows.

        Returns:
            Which of the rows have only finite values: bool [rows].
        """
        width = self._matrix.width
        rows = to_plain(TYPES[dtype], raw, width)
        self.put_rows(rows)
        finite = np.empty(len(rows), np.bool_)

        def check(piece: slice) -> None:
            finite[piece] = finite_rows(self.format, rows[piece], width).numpy()

        by_pieces(len(rows), AT_ONCE // width, check)
        return torch.from_numpy(finite)

    def put_rows(self, rows: Tensor) -> None:
        """The rows that come next, in the plain form."""
        if not self._plain.size:
            self._plain = np.empty((self._matrix.out, rows.shape[1]), np.uint8)
        end = self._row + len(rows)
        self._plain[self._row : end] = rows.numpy()  # which wakes no other threads
        self._row = end

    def finish(self, rows: Rows | None = None) -> None:
        """All have come; see `Floats.finish`. Lays the matrix out."""
        matrix, plain = self._matrix, torch.from_numpy(self._plain)
        if rows is not None:
            rows.put_in_order(plain)
        self._products.pack(matrix.format, plain, matrix.width, matrix.data)
        self._plain = np.empty((0, 0), np.uint8)


class Turned:
    """They are the columns of a matrix, and come one column after the other.

    Args:
        target: where the rows go.
        width: elements of a row: so many columns come.
    """

    def __init__(self, target: Floats | Codes, width: int) -> None:
        self._target = target
        self._width = width
        self._pieces: list[Tensor] = []
        self.shape = target.shape
        self.kept_as, self.largest = target.kept_as, target.largest

    def put(self, source: Tensor) -> None:
        """The numbers that come next."""
        self._pieces.append(source.clone())

    def finish(self, rows: Rows | None = None) -> None:
        """All have come; see `Floats.finish`."""
        columns = torch.cat(self._pieces).view(self._width, -1)
        self._pieces.clear()
        self._target.put(columns.t().reshape(-1))
        self._target.finish(rows)


Target = Floats | Codes | Turned


def targets_of(
    weight: Weight, view: Tensor | Matrices, packing: Packing
) -> Iterator[tuple[Part, Floats | Codes]]:
    """The parts of a weight, with where they go in its place (`weights.place`)."""
    if isinstance(view, Tensor):
        views = torch.split(view, [part.shape[0] for part in weight.parts])
        return zip(weight.parts, map(Floats, views), strict=True)
    assert packing.products is not None
    codes = [Codes(matrix, packing.products) for matrix in view]
    return zip(weight.parts, codes, strict=True)
