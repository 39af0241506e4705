"""What a model's matrices are kept as: floats, codes made at load, and all that files may hold."""

from collections.abc import Mapping
from typing import get_args

import pytest
from torch import Tensor

from kvrt.config import Quantize
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.weights import weights_of
from kvrt.spi import WeightFormat
from kvrt.testing.matrices import FORMATS, random_rows

CONTAINERS = ("floats", *get_args(Quantize), *FORMATS)
WIDE = {"hidden_size": 256, "intermediate_size": 512}
"""Of a model whose rows are whole blocks of every format."""


def options_for(container: str) -> dict[str, object]:
    """What a runtime with random weights is to be asked for; see `hold`."""
    if container == "floats":
        return {}
    return {"quantize": "int8" if container in FORMATS else container}


def hold(container: str, patch: pytest.MonkeyPatch) -> None:
    """From here on, weights that are made at load are of that format, if it is one of files.

    Their codes and scales are random. Nothing makes such codes of floats, but files have them.
    """
    if container not in FORMATS:
        return
    format = FORMATS[container]

    def formats(spec: ModelSpec, quantize: Quantize) -> Mapping[str, WeightFormat]:
        parts = [part for weight in weights_of(spec) if weight.is_matrix for part in weight.parts]
        return {part.name: format for part in parts}

    def made(format: WeightFormat, values: Tensor) -> Tensor:
        return random_rows(format, *values.shape, seed=abs(hash(float(values[0, 0]))))

    patch.setattr("kvrt.model.packed.choice.formats_for", formats)
    patch.setattr("kvrt.model.checkpoint.targets.quantized", made)
