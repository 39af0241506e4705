"""Float weights made into codes at load."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from kvrt.model.packed.ggml import TYPES
from kvrt.model.spec import ModelSpec
from kvrt.model.weights import weights_of
from kvrt.spi import WeightFormat
from kvrt.spi.plain import plain_rows

Quantize = Literal["int8"]
"""What weights can be made into: int8 is Q8_0 of GGUF files, 8 bits with a float16 scale for 32."""

INT8 = TYPES["Q8_0"].format
LARGEST = 65504.0 * 127
"""Beyond it a scale is no float16."""


def formats_for(spec: ModelSpec, quantize: Quantize) -> Mapping[str, WeightFormat]:
    """Of the tensors that are quantised, by name: all matrices whose rows are whole groups."""
    formats = {"int8": INT8}
    return {
        part.name: formats[quantize]
        for weight in weights_of(spec)
        for part in weight.parts
        if weight.is_matrix and formats[quantize].fits(part.shape[1])
    }


def quantized(values: Tensor) -> Tensor:
    """Rows as `INT8`, in the plain form.

    The scale of a group is its largest magnitude / 127, and a code the nearest whole number of it,
    halves away from zero: the bits of ggml's own function.

    Args:
        values: [rows, width] of any float dtype, width a multiple of 32, at most `LARGEST`.
    """
    groups = values.float().view(len(values), -1, 32)
    scales = groups.abs().amax(-1) / 127
    ratio = groups * torch.where(scales == 0, 0, 1 / scales)[..., None]
    codes = ratio.sign() * (ratio.abs() + 0.5).floor() + 128
    return plain_rows(INT8, codes.to(torch.uint8).view(values.shape), scales.half())
