"""The weights of a model of speech, read from safetensors files with the names of transformers."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.model.checkpoint.floats import DeviceTensors, FloatTensors, Linear, Norm
from kvrt.model.speech.spec import SpeechSpec
from kvrt.spi import ITEM_BYTES, Device, DType

PREFIX = "model."
EMBEDDING = "decoder.embed_tokens"


class Attention(NamedTuple):
    """Of a layer.

    Args:
        norm: before it.
        qkv: the rows of queries, keys and values.
        o: behind it.
    """

    norm: Norm
    qkv: Linear
    o: Linear


class Cross(NamedTuple):
    """A decoder layer's attention to sound.

    Args:
        norm: before it.
        q: makes queries of tokens.
        kv: makes the rows of keys and values of frames.
        o: behind it.
    """

    norm: Norm
    q: Linear
    kv: Linear
    o: Linear


class FeedForward(NamedTuple):
    """Of a layer, with the norm before it."""

    norm: Norm
    up: Linear
    down: Linear


class EncoderLayer(NamedTuple):
    attention: Attention
    mlp: FeedForward


class DecoderLayer(NamedTuple):
    attention: Attention
    cross: Cross
    mlp: FeedForward


class EncoderWeights(NamedTuple):
    """Of the encoder.

    Args:
        convolutions: two, each as a matrix [hidden, 3 * channels] over three frames in a row.
        positions: [frames, hidden].
        norm: behind all layers.
    """

    convolutions: tuple[Linear, Linear]
    positions: Tensor
    layers: tuple[EncoderLayer, ...]
    norm: Norm


class DecoderWeights(NamedTuple):
    """Of the decoder.

    Args:
        embedding: [vocab, hidden], the output matrix, too.
        positions: [positions, hidden].
        norm: behind all layers.
    """

    embedding: Tensor
    positions: Tensor
    layers: tuple[DecoderLayer, ...]
    norm: Norm


class SpeechFiles:
    """The files of a model, with their headers read.

    Raises:
        ModelError: there are none, or one is damaged.
    """

    def __init__(self, folder: Path, spec: SpeechSpec) -> None:
        self._spec = spec
        self._tensors = FloatTensors(folder, lambda name: name.removeprefix(PREFIX))

    @property
    def dtype(self) -> DType:
        """Of the matrices, by the embedding of tokens."""
        return self._tensors.dtype(f"{EMBEDDING}.weight", (self._spec.vocab, self._spec.hidden))

    def load(self, device: Device, dtype: DType) -> tuple[EncoderWeights, DecoderWeights]:
        """The weights on a device.

        Raises:
            ModelError: a tensor is missing, of another shape, or not finite.
            CapacityError: they do not fit.
        """
        spec, hidden = self._spec, self._spec.hidden
        read = self._tensors.on(device, dtype, _nbytes(spec, dtype))
        encoder = EncoderWeights(
            convolutions=(
                _convolution(read, "encoder.conv1", hidden, spec.bins),
                _convolution(read, "encoder.conv2", hidden, hidden),
            ),
            positions=read.matrix("encoder.embed_positions.weight", spec.frames, hidden),
            layers=tuple(
                EncoderLayer(
                    _attention(read, f"encoder.layers.{number}.", hidden),
                    _mlp(read, f"encoder.layers.{number}.", hidden, spec.encoder_wide),
                )
                for number in range(spec.encoder_layers)
            ),
            norm=read.norm("encoder.layer_norm", hidden),
        )
        decoder = DecoderWeights(
            embedding=read.matrix(f"{EMBEDDING}.weight", spec.vocab, hidden),
            positions=read.matrix("decoder.embed_positions.weight", spec.positions, hidden),
            layers=tuple(
                DecoderLayer(
                    _attention(read, f"decoder.layers.{number}.", hidden),
                    _cross(read, f"decoder.layers.{number}.", hidden),
                    _mlp(read, f"decoder.layers.{number}.", hidden, spec.decoder_wide),
                )
                for number in range(spec.decoder_layers)
            ),
            norm=read.norm("decoder.layer_norm", hidden),
        )
        return encoder, decoder


def _nbytes(spec: SpeechSpec, dtype: DType) -> int:
    rows = spec.vocab + spec.positions + spec.frames + 3 * (spec.bins + spec.hidden)
    rows += spec.encoder_layers * (4 * spec.hidden + 2 * spec.encoder_wide)
    rows += spec.decoder_layers * (8 * spec.hidden + 2 * spec.decoder_wide)
    return rows * spec.hidden * ITEM_BYTES[dtype]


def _convolution(read: DeviceTensors, name: str, hidden: int, channels: int) -> Linear:
    weight = read.matrix(f"{name}.weight", hidden, channels, 3)
    return Linear(weight.flatten(1).contiguous(), read.vector(f"{name}.bias", hidden))


def _attention(read: DeviceTensors, at: str, hidden: int) -> Attention:
    return Attention(
        read.norm(f"{at}self_attn_layer_norm", hidden),
        _rows(read, f"{at}self_attn.", ("q", "k", "v"), hidden),
        read.linear(f"{at}self_attn.out_proj", hidden, hidden),
    )


def _cross(read: DeviceTensors, at: str, hidden: int) -> Cross:
    return Cross(
        read.norm(f"{at}encoder_attn_layer_norm", hidden),
        read.linear(f"{at}encoder_attn.q_proj", hidden, hidden),
        _rows(read, f"{at}encoder_attn.", ("k", "v"), hidden),
        read.linear(f"{at}encoder_attn.out_proj", hidden, hidden),
    )


def _mlp(read: DeviceTensors, at: str, hidden: int, wide: int) -> FeedForward:
    return FeedForward(
        read.norm(f"{at}final_layer_norm", hidden),
        read.linear(f"{at}fc1", wide, hidden),
        read.linear(f"{at}fc2", hidden, wide),
    )


def _rows(read: DeviceTensors, at: str, parts: tuple[str, ...], hidden: int) -> Linear:
    """Some matrices as one. Keys have no bias: to all scores of a query it would add the same."""
    weights = [read.matrix(f"{at}{part}_proj.weight", hidden, hidden) for part in parts]
    none = torch.zeros(hidden, device=weights[0].device)
    biases = [
        none if part == "k" else read.vector(f"{at}{part}_proj.bias", hidden) for part in parts
    ]
    return Linear(torch.cat(weights), torch.cat(biases))
