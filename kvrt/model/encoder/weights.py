"""The weights of an encoder, read from safetensors files.

Names are those of BERT, with or without the prefix of a model that has a head; of norms also the
``gamma`` and ``beta`` of the first files. What else is there, such as heads, is not read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.errors import CapacityError, ModelError
from kvrt.model.checkpoint.blocks import FLOATS, read_bytes
from kvrt.model.checkpoint.header import Tensors, read_header
from kvrt.model.checkpoint.shards import find_weights
from kvrt.model.encoder.families import ENCODERS
from kvrt.model.encoder.spec import EncoderSpec
from kvrt.model.files.jsonfile import shown
from kvrt.spi import ITEM_BYTES, Device, DType

OLD = {".gamma": ".weight", ".beta": ".bias"}


class Linear(NamedTuple):
    """A matrix [out, in] in the dtype of the model, and its bias, float32 [out]."""

    weight: Tensor
    bias: Tensor


class Norm(NamedTuple):
    """Float32 [hidden] each."""

    weight: Tensor
    bias: Tensor


class EncoderLayer(NamedTuple):
    """The weights of a layer.

    Args:
        qkv: the rows of queries, keys and values.
    """

    qkv: Linear
    o: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    mlp_norm: Norm


class EncoderWeights(NamedTuple):
    """All weights; the embeddings are [rows, hidden].

    Args:
        kinds: of the types of tokens.
    """

    tokens: Tensor
    positions: Tensor
    kinds: Tensor
    norm: Norm
    layers: tuple[EncoderLayer, ...]


class EncoderFiles:
    """The files of an encoder, with their headers read.

    Raises:
        ModelError: there are none, or one is damaged.
    """

    def __init__(self, folder: Path, spec: EncoderSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._tensors: Tensors = {}
        prefix = ENCODERS[spec.architecture].prefix
        for path in find_weights(folder).paths:
            for name, entry in read_header(path).tensors.items():
                own = name.removeprefix(prefix)
                for old, new in OLD.items():
                    own = own.removesuffix(old) + new if own.endswith(old) else own
                self._tensors[own] = path, entry

    @property
    def dtype(self) -> DType:
        """Of the matrices, by the embedding of tokens."""
        name = "embeddings.word_embeddings.weight"
        self._check(name, (self._spec.vocab, self._spec.hidden))
        return FLOATS[self._tensors[name][1].dtype]

    def load(self, device: Device, dtype: DType) -> EncoderWeights:
        """The weights on a device.

        Raises:
            ModelError: a tensor is missing, of another shape, or not finite.
            CapacityError: they do not fit.
        """
        spec = self._spec
        needed = self._nbytes(dtype)
        if needed > (free := device.memory.info().free):
            raise CapacityError(
                f"the weights of {self._folder} take {needed:,} bytes in {dtype}, but"
                f" {device.info.name} has only {free:,} bytes free",
                needed=needed,
                free=free,
                fix="free memory, or take a smaller model",
            )
        where, kind = device.info.torch_device, getattr(torch, dtype)

        def matrix(name: str, *shape: int) -> Tensor:
            return self._read(name, shape).to(where, kind)

        def vector(name: str, length: int) -> Tensor:
            return self._read(name, (length,)).to(where, torch.float32)

        def linear(name: str, out: int, width: int) -> Linear:
            return Linear(matrix(f"{name}.weight", out, width), vector(f"{name}.bias", out))

        def norm(name: str) -> Norm:
            return Norm(vector(f"{name}.weight", hidden), vector(f"{name}.bias", hidden))

        hidden, wide = spec.hidden, spec.intermediate
        return EncoderWeights(
            tokens=matrix("embeddings.word_embeddings.weight", spec.vocab, hidden),
            positions=matrix(
                "embeddings.position_embeddings.weight", spec.first + spec.positions, hidden
            ),
            kinds=matrix("embeddings.token_type_embeddings.weight", spec.kinds, hidden),
            norm=norm("embeddings.LayerNorm"),
            layers=tuple(
                _layer(f"encoder.layer.{number}.", hidden, wide, linear, norm)
                for number in range(spec.layers)
            ),
        )

    def head(self) -> tuple[Linear, Linear]:
        """The two matrices of a head that gives one number: float32, on the host.

        Raises:
            ModelError: as `load`.
        """
        hidden = self._spec.hidden
        first, last = (
            Linear(
                self._read(f"{name}.weight", (out, hidden)).float(),
                self._read(f"{name}.bias", (out,)).float(),
            )
            for name, out in zip(ENCODERS[self._spec.architecture].head, (hidden, 1), strict=True)
        )
        return first, last

    def _nbytes(self, dtype: DType) -> int:
        spec = self._spec
        rows = spec.vocab + spec.first + spec.positions + spec.kinds
        matrices = 4 * spec.hidden + 2 * spec.intermediate
        return (rows + spec.layers * matrices) * spec.hidden * ITEM_BYTES[dtype]

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self._check(name, shape)
        path, entry = self._tensors[name]
        tensor = read_bytes(path, entry).view(getattr(torch, FLOATS[entry.dtype])).view(shape)
        if not tensor.isfinite().all():
            raise ModelError(
                f"{path}: tensor {shown(entry.name)}: has values that are not finite",
                fix="the file is damaged: download it again",
            )
        return tensor

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


def _layer(
    at: str,
    hidden: int,
    wide: int,
    linear: Callable[[str, int, int], Linear],
    norm: Callable[[str], Norm],
) -> EncoderLayer:
    parts = [linear(f"{at}attention.self.{part}", hidden, hidden) for part in QKV]
    return EncoderLayer(
        qkv=Linear(
            torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        ),
        o=linear(f"{at}attention.output.dense", hidden, hidden),
        attention_norm=norm(f"{at}attention.output.LayerNorm"),
        up=linear(f"{at}intermediate.dense", wide, hidden),
        down=linear(f"{at}output.dense", hidden, wide),
        mlp_norm=norm(f"{at}output.LayerNorm"),
    )


QKV = ("query", "key", "value")
