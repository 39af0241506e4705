"""The weights of an encoder, read from safetensors files.

Names are those of BERT, with or without the prefix of a model that has a head; of norms also the
``gamma`` and ``beta`` of the first files. What else is there, such as heads, is not read.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.model.checkpoint.floats import DeviceTensors, FloatTensors, Linear, Norm
from kvrt.model.encoder.families import ENCODERS
from kvrt.model.encoder.spec import EncoderSpec
from kvrt.spi import ITEM_BYTES, Device, DType

OLD = {".gamma": ".weight", ".beta": ".bias"}


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
        self._spec = spec
        prefix = ENCODERS[spec.architecture].prefix

        def named(name: str) -> str:
            own = name.removeprefix(prefix)
            for old, new in OLD.items():
                own = own.removesuffix(old) + new if own.endswith(old) else own
            return own

        self._tensors = FloatTensors(folder, named)

    @property
    def dtype(self) -> DType:
        """Of the matrices, by the embedding of tokens."""
        shape = self._spec.vocab, self._spec.hidden
        return self._tensors.dtype("embeddings.word_embeddings.weight", shape)

    def load(self, device: Device, dtype: DType) -> EncoderWeights:
        """The weights on a device.

        Raises:
            ModelError: a tensor is missing, of another shape, or not finite.
            CapacityError: they do not fit.
        """
        spec, hidden = self._spec, self._spec.hidden
        read = self._tensors.on(device, dtype, self._nbytes(dtype))
        rows = spec.first + spec.positions
        return EncoderWeights(
            tokens=read.matrix("embeddings.word_embeddings.weight", spec.vocab, hidden),
            positions=read.matrix("embeddings.position_embeddings.weight", rows, hidden),
            kinds=read.matrix("embeddings.token_type_embeddings.weight", spec.kinds, hidden),
            norm=read.norm("embeddings.LayerNorm", hidden),
            layers=tuple(
                _layer(f"encoder.layer.{number}.", hidden, spec.intermediate, read)
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
                self._tensors.read(f"{name}.weight", (out, hidden)).float(),
                self._tensors.read(f"{name}.bias", (out,)).float(),
            )
            for name, out in zip(ENCODERS[self._spec.architecture].head, (hidden, 1), strict=True)
        )
        return first, last

    def _nbytes(self, dtype: DType) -> int:
        spec = self._spec
        rows = spec.vocab + spec.first + spec.positions + spec.kinds
        matrices = 4 * spec.hidden + 2 * spec.intermediate
        return (rows + spec.layers * matrices) * spec.hidden * ITEM_BYTES[dtype]


def _layer(at: str, hidden: int, wide: int, read: DeviceTensors) -> EncoderLayer:
    parts = [read.linear(f"{at}attention.self.{part}", hidden, hidden) for part in QKV]
    weights, biases = zip(*parts, strict=True)
    return EncoderLayer(
        qkv=Linear(torch.cat(weights), torch.cat(biases)),
        o=read.linear(f"{at}attention.output.dense", hidden, hidden),
        attention_norm=read.norm(f"{at}attention.output.LayerNorm", hidden),
        up=read.linear(f"{at}intermediate.dense", wide, hidden),
        down=read.linear(f"{at}output.dense", hidden, wide),
        mlp_norm=read.norm(f"{at}output.LayerNorm", hidden),
    )


QKV = ("query", "key", "value")
