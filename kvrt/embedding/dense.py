"""A matrix behind the pooling, as sentence-transformers writes it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.errors import ModelError
from kvrt.model.checkpoint.blocks import FLOATS, read_bytes
from kvrt.model.checkpoint.header import Tensors, read_header
from kvrt.model.files.jsonfile import Fields, read_object, shown

MAX_WIDTH = 1 << 20
WEIGHTS = "model.safetensors"
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "Sigmoid": torch.sigmoid,
}


class Dense(NamedTuple):
    """What is made of a vector: ``activation(weight @ vector + bias)``.

    Args:
        weight: float32 [out, in].
        bias: float32 [out], or 0.
    """

    weight: Tensor
    bias: Tensor
    activation: Callable[[Tensor], Tensor]

    def of(self, vector: Tensor) -> Tensor:
        return self.activation(self.weight @ vector + self.bias)


def read_dense(folder: Path, width: int) -> Dense:
    """The matrix in a folder, for vectors of so many dimensions.

    Raises:
        ModelError: a file is missing or damaged, or the matrix is for other vectors.
    """
    path = folder / "config.json"
    fields = Fields(str(path), read_object(path))
    if (given := fields.integer("in_features", 1, MAX_WIDTH)) != width:
        raise fields.error("in_features", f"is {given}, and vectors have {width} dimensions")
    out = fields.integer("out_features", 1, MAX_WIDTH)
    name = fields.text("activation_function", "Tanh").rpartition(".")[2]
    if name not in ACTIVATIONS:
        supported = ", ".join(ACTIVATIONS)
        raise fields.error("activation_function", f"is {shown(name)}; supported are {supported}")
    file = folder / WEIGHTS
    tensors: Tensors = {name: (file, entry) for name, entry in read_header(file).tensors.items()}
    weight = read_floats(file, tensors, "linear.weight", (out, width))
    bias = torch.zeros(())
    if fields.flag("bias", True):
        bias = read_floats(file, tensors, "linear.bias", (out,))
    return Dense(weight, bias, ACTIVATIONS[name])


def read_floats(file: Path, tensors: Tensors, name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor, float32.

    Raises:
        ModelError: it is missing, of another shape, or not finite.
    """
    if name not in tensors:
        raise ModelError(f"{file}: tensor {shown(name)} is missing")
    path, entry = tensors[name]
    if entry.dtype not in FLOATS or entry.shape != shape:
        raise ModelError(
            f"{path}: tensor {shown(name)}: is {entry.dtype} {list(entry.shape)}, not"
            f" {list(shape)} of {', '.join(FLOATS)}"
        )
    tensor = read_bytes(path, entry).view(getattr(torch, FLOATS[entry.dtype])).view(shape).float()
    if not tensor.isfinite().all():
        raise ModelError(f"{path}: tensor {shown(name)}: has values that are not finite")
    return tensor
