"""Float weights made into codes at load."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kvrt.model.packed.ggml import TYPES
from kvrt.model.packed.pieces import by_pieces
from kvrt.model.packed.search import LARGEST_HALF, Array, affine, symmetric
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.weights import weights_of
from kvrt.spi import WeightFormat
from kvrt.spi.plain import plain_rows

Quantize = Literal["int8", "int5", "int4"]
"""What weights can be made into, by the bits of a code."""

FORMATS: Mapping[Quantize, WeightFormat] = {
    "int8": TYPES["Q8_0"].format,
    "int5": TYPES["Q5_1"].format,
    "int4": TYPES["Q4_1"].format,
}
"""Of layers. Embedding and head are 8 bits always: a rare token has only its own row."""

GROUP = 32
AT_ONCE = 1 << 15
"""Elements, about, that are made into codes at once. They stay in a processor's caches."""


def formats_for(spec: ModelSpec, quantize: Quantize) -> Mapping[str, WeightFormat]:
    """Of the tensors that are quantised, by name: all matrices whose rows are whole groups."""
    return {
        part.name: FORMATS["int8" if weight.layer is None else quantize]
        for weight in weights_of(spec)
        for part in weight.parts
        if weight.packable and part.shape[1] % GROUP == 0
    }


def largest(format: WeightFormat) -> float:
    """The largest magnitude that a format holds: beyond it a scale or offset is no float16."""
    return float(LARGEST_HALF) * (127 if format.offset == "none" else 1)


def quantized(format: WeightFormat, values: Tensor) -> Tensor:
    """Rows in one of `FORMATS`, in the plain form.

    Args:
        values: [rows, width] of any float dtype, width a multiple of 32, of magnitudes up to
            `largest`.
    """
    plain = np.empty((len(values), format.row_bytes(values.shape[1])), np.uint8)

    def make(piece: slice) -> None:
        # The caller refuses what is not finite, when it has all rows.
        with np.errstate(invalid="ignore"):
            plain[piece] = _rows(format, values[piece]).numpy()

    by_pieces(len(values), AT_ONCE // values.shape[1], make)
    return torch.from_numpy(plain)


def _rows(format: WeightFormat, values: Tensor) -> Tensor:
    groups = np.ascontiguousarray(values.float().numpy().reshape(-1, GROUP).T)

    def by_row(numbers: Array) -> Tensor:
        return torch.from_numpy(numbers.T.reshape(len(values), -1))

    if format.offset == "none":
        codes, scales = symmetric(groups)
        return plain_rows(format, by_row(codes), by_row(scales))
    codes, scales, offsets = affine(groups, format.bits)
    return plain_rows(format, by_row(codes), by_row(scales), offsets=by_row(offsets))
