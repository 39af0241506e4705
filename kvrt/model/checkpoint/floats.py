"""Tensors of floats, read one by one from safetensors files, each with its shape checked: for small
models, whose layers are written out by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from kvrt.errors import CapacityError, ModelError
from kvrt.model.checkpoint.blocks import FLOATS, read_bytes
from kvrt.model.checkpoint.header import Tensors, read_header
from kvrt.model.checkpoint.shards import find_weights
from kvrt.model.files.jsonfile import shown
from kvrt.spi import Device, DType


class Linear(NamedTuple):
    """A matrix [out, in] in the dtype of the model, and its bias, float32 [out]."""

    weight: Tensor
    bias: Tensor


class Norm(NamedTuple):
    """Float32 [width] each."""

    weight: Tensor
    bias: Tensor


class FloatTensors:
    """The tensors in a model's folder, with the headers of their files read.

    Args:
        named: what a tensor is called here, by its name in the files.

    Raises:
        ModelError: there are none, or a file is damaged.
    """

    def __init__(self, folder: Path, named: Callable[[str], str]) -> None:
        self._folder = folder
        self._digest = xxhash.xxh3_128()
        self._tensors: Tensors = {}
        for path in find_weights(folder).paths:
            for name, entry in read_header(path).tensors.items():
                self._tensors[named(name)] = path, entry

    @property
    def content(self) -> str:
        """A name for all that was read."""
        return self._digest.hexdigest()

    def dtype(self, name: str, shape: tuple[int, ...]) -> DType:
        """Of one tensor, which says it for all.

        Raises:
            ModelError: as `read`.
        """
        self._check(name, shape)
        return FLOATS[self._tensors[name][1].dtype]

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor as it is in its file, on the host.

        Raises:
            ModelError: it is missing, of another shape, or not finite.
        """
        self._check(name, shape)
        path, entry = self._tensors[name]
        raw = read_bytes(path, entry)
        self._digest.update(raw.numpy().data)
        tensor = raw.view(getattr(torch, FLOATS[entry.dtype])).view(shape)
        if not tensor.isfinite().all():
            raise ModelError(
                f"{path}: tensor {shown(entry.name)}: has values that are not finite",
                fix="the file is damaged: download it again",
            )
        return tensor

    def on(self, device: Device, dtype: DType, needed: int) -> "DeviceTensors":
        """The same, to be read to a device.

        Args:
            dtype: of matrices.
            needed: bytes that all of them will take.

        Raises:
            CapacityError: they do not fit.
        """
        if needed > (free := device.memory.info().free):
            raise CapacityError(
                f"the weights of {self._folder} take {needed:,} bytes in {dtype}, but"
                f" {device.info.name} has only {free:,} bytes free",
                needed=needed,
                free=free,
                fix="free memory, or take a smaller model",
            )
        return DeviceTensors(self, device.info.torch_device, getattr(torch, dtype))

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._tensors:
            raise ModelError(
                f"{self._folder}: tensor {shown(name)} is missing",
                fix="check that config.json belongs to these weights",
            )
        path, entry = self._tensors[name]
        if entry.dtype not in FLOATS or entry.shape != shape:
            raise ModelError(
                f"{path}: tensor {shown(entry.name)}: is {entry.dtype} {list(entry.shape)}, but"
                f" config.json makes it {list(shape)} of {', '.join(FLOATS)}",
                fix="check that config.json belongs to these weights",
            )


class DeviceTensors:
    """Tensors that are read to a device; what is wrong with one is told as by `FloatTensors.read`.

    Args:
        where: the device, as torch calls it.
        kind: of matrices.
    """

    def __init__(self, tensors: FloatTensors, where: str, kind: torch.dtype) -> None:
        self._tensors = tensors
        self._where = where
        self._kind = kind

    def matrix(self, name: str, *shape: int) -> Tensor:
        return self._tensors.read(name, shape).to(self._where, self._kind)

    def vector(self, name: str, length: int) -> Tensor:
        return self._tensors.read(name, (length,)).to(self._where, torch.float32)

    def linear(self, name: str, out: int, width: int) -> Linear:
        return Linear(self.matrix(f"{name}.weight", out, width), self.vector(f"{name}.bias", out))

    def norm(self, name: str, width: int) -> Norm:
        return Norm(self.vector(f"{name}.weight", width), self.vector(f"{name}.bias", width))
