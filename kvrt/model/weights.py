"""Which weights a decoder has, which tensors of a checkpoint they are made of, and where they lie.

Projections that read the same input are stored as one matrix, so that a layer is four matrix
products: q, k and v; the attention's output; gate and up; down.

    qkv       [(heads + 2 * kv_heads) * head_dim, hidden]      q's rows, then k's, then v's
    o         [hidden, heads * head_dim]
    gate_up   [2 * intermediate, hidden]                       gate's rows, then up's
    down      [hidden, intermediate]

Matrices have the dtype the model is loaded in, or stay the codes that they are in the checkpoint
(`Packing`). Norm weights and biases are float32 always: they are thousandths of the bytes, and
every kernel adds and scales in float32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvrt.model.spec import ModelSpec
from kvrt.spi import ITEM_BYTES, DType, Matrices, Matrix, PackedMatrices, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 128
"""Bytes that each weight's address is a multiple of: two cache lines, or one GPU sector group."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return self.shape[0] * (self.shape[1] if len(self.shape) == 2 else 1)


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the decoder: parts of the checkpoint stacked by rows.

    Args:
        layer: the layer, or None for the model's own.
        field: the name in `LayerWeights` or `Weights`.
        parts: one or more tensors with equal columns.
    """

    layer: int | None
    field: str
    parts: tuple[Part, ...]

    @property
    def is_matrix(self) -> bool:
        return len(self.parts[0].shape) == 2

    @property
    def is_norm(self) -> bool:
        return self.field.endswith("norm")

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])


@dataclass(frozen=True, slots=True)
class Packing:
    """Which weights stay codes, and what multiplies them.

    Args:
        formats: of tensors of the checkpoint, by name. A weight stays codes if all its parts do.
        products: the device's; None if there are no formats.
    """

    formats: Mapping[str, WeightFormat] = field(default_factory=dict)
    products: PackedMatrices | None = None

    def formats_of(self, weight: Weight) -> tuple[WeightFormat, ...]:
        """Those of a weight's parts; none if it is kept as floats."""
        formats = [self.formats.get(part.name) for part in weight.parts]
        found = tuple(format for format in formats if format is not None)
        return found if len(found) == len(formats) else ()

    @property
    def description(self) -> str:
        """As what each tensor is kept, and how it is multiplied."""
        kept = sorted(self.formats.items())
        return repr([(*one, self.products and self.products.rounds(one[1])) for one in kept])


NOTHING_PACKED = Packing()
"""Everything is kept as floats."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one layer, as views of the arena. See the module for their shapes."""

    attention_norm: "Tensor"
    qkv: "Tensor | Matrices"
    o: "Tensor | Matrices"
    mlp_norm: "Tensor"
    gate_up: "Tensor | Matrices"
    down: "Tensor | Matrices"
    q_norm: "Tensor | None" = None
    k_norm: "Tensor | None" = None
    qkv_bias: "Tensor | None" = None
    o_bias: "Tensor | None" = None
    gate_up_bias: "Tensor | None" = None
    down_bias: "Tensor | None" = None


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model, as views of one arena.

    Args:
        embedding: [vocab, hidden].
        layers: the layers, first to last.
        final_norm: float32 [hidden].
        head: [vocab, hidden]; the embedding itself where they are tied.
        nbytes: bytes of the arena.
    """

    embedding: "Tensor | Matrices"
    layers: tuple[LayerWeights, ...]
    final_norm: "Tensor"
    head: "Tensor | Matrices"
    nbytes: int

    @property
    def packed(self) -> bool:
        """Whether any stays codes."""
        every = [self.embedding, self.head]
        for layer in self.layers:
            every += (layer.qkv, layer.o, layer.gate_up, layer.down)
        return any(isinstance(weight, tuple) for weight in every)


def weights_of(spec: ModelSpec) -> Iterator[Weight]:
    """The weights of a model, in the order of the arena, with the names checkpoints give them."""
    hidden, mlp = spec.hidden, spec.intermediate
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

    def stacked(layer: int, field: str, rows: dict[str, int], *columns: int) -> Weight:
        kind = "weight" if columns or field.endswith("norm") else "bias"
        prefix = f"model.layers.{layer}."
        parts = (Part(f"{prefix}{name}.{kind}", (n, *columns)) for name, n in rows.items())
        return Weight(layer, field, tuple(parts))

    qkv = {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
    o = {"self_attn.o_proj": hidden}
    gate_up = {"mlp.gate_proj": mlp, "mlp.up_proj": mlp}
    down = {"mlp.down_proj": hidden}

    yield Weight(None, "embedding", (Part("model.embed_tokens.weight", (spec.vocab, hidden)),))
    for layer in range(len(spec.layers)):
        yield stacked(layer, "attention_norm", {"input_layernorm": hidden})
        yield stacked(layer, "qkv", qkv, hidden)
        if spec.qkv_bias:
            yield stacked(layer, "qkv_bias", qkv)
        if spec.qk_norm:
            yield stacked(layer, "q_norm", {"self_attn.q_norm": spec.head_dim})
            yield stacked(layer, "k_norm", {"self_attn.k_norm": spec.head_dim})
        yield stacked(layer, "o", o, q)
        if spec.o_bias:
            yield stacked(layer, "o_bias", o)
        yield stacked(layer, "mlp_norm", {"post_attention_layernorm": hidden})
        yield stacked(layer, "gate_up", gate_up, hidden)
        if spec.mlp_bias:
            yield stacked(layer, "gate_up_bias", gate_up)
        yield stacked(layer, "down", down, mlp)
        if spec.mlp_bias:
            yield stacked(layer, "down_bias", down)
    yield Weight(None, "final_norm", (Part("model.norm.weight", (hidden,)),))
    if not spec.tied:
        yield Weight(None, "head", (Part("lm_head.weight", (spec.vocab, hidden)),))


def weight_bytes(spec: ModelSpec, dtype: DType, packing: Packing = NOTHING_PACKED) -> int:
    """Bytes that a model's weights take in memory."""
    return sum(
        _aligned(nbytes)
        for weight in weights_of(spec)
        for nbytes in _piece_bytes(weight, dtype, packing)
    )


def place(
    spec: ModelSpec, dtype: DType, arena: "Tensor", packing: Packing = NOTHING_PACKED
) -> Iterator[tuple[Weight, "Tensor | Matrices"]]:
    """Each weight with its view of the arena, or the matrices that it consists of there.

    Args:
        arena: uint8 [`weight_bytes`], on any device.
    """
    import torch

    at = 0
    for weight in weights_of(spec):
        pieces: list[Tensor] = []
        for nbytes in _piece_bytes(weight, dtype, packing):
            pieces.append(arena[at : at + nbytes])
            at += _aligned(nbytes)
        formats = packing.formats_of(weight)
        if formats:
            yield (
                weight,
                tuple(
                    Matrix(format, piece, *part.shape)
                    for format, piece, part in zip(formats, pieces, weight.parts, strict=True)
                ),
            )
        else:
            kind = getattr(torch, dtype if weight.is_matrix else "float32")
            yield weight, pieces[0].view(kind).view(weight.shape)


def _piece_bytes(weight: Weight, dtype: DType, packing: Packing) -> list[int]:
    """Bytes of what a weight consists of in the arena: its matrices, or one block of floats."""
    if formats := packing.formats_of(weight):
        assert packing.products is not None
        return [
            packing.products.nbytes(format, *part.shape)
            for format, part in zip(formats, weight.parts, strict=True)
        ]
    item = ITEM_BYTES[dtype if weight.is_matrix else "float32"]
    return [item * sum(part.numel for part in weight.parts)]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def assemble(
    spec: ModelSpec, dtype: DType, arena: "Tensor", packing: Packing = NOTHING_PACKED
) -> Weights:
    """The weights in an arena that has been filled."""
    model: dict[str, Any] = {}
    layers: list[dict[str, Any]] = [{} for _ in spec.layers]
    for weight, view in place(spec, dtype, arena, packing):
        (model if weight.layer is None else layers[weight.layer])[weight.field] = view
    return Weights(
        embedding=model["embedding"],
        layers=tuple(LayerWeights(**layer) for layer in layers),
        final_norm=model["final_norm"],
        head=model.get("head", model["embedding"]),
        nbytes=arena.numel(),
    )
