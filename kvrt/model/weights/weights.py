"""Which weights a decoder has, which tensors of a checkpoint they are made of, and where they lie.

Projections that read the same input are stored as one matrix, so that a layer is four matrix
products: q, k and v; the attention's output; gate and up; down.

    qkv       [(heads + 2 * kv_heads) * head_dim, hidden]      q's rows, then k's, then v's
    o         [hidden, heads * head_dim]                       see also `attention`
    gate_up   [2 * intermediate, hidden]                       gate's rows, then up's; or up's alone
    down      [hidden, intermediate]

A layer with experts has, besides or in place of gate_up and down, with its own width:

    router           [experts, hidden]
    expert_gate_up   [experts * 2 * width, hidden]             of each expert gate's rows, then up's
    expert_down      [experts * hidden, width]

A predictor's layer (`ModelSpec.predictor`) has, besides,

    joined           [hidden, 2 * hidden]                      of an embedding, then of a state

Matrices have the dtype the model is loaded in, or stay the codes that they are in the checkpoint
(`Packing`). Norm weights and biases are float32 always: they are thousandths of the bytes, and
every kernel adds and scales in float32.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvrt.model.spec import ModelSpec
from kvrt.model.weights.attention import ALWAYS_FLOATS, attention_weights, heads_apart
from kvrt.model.weights.experts import expert_weights
from kvrt.model.weights.layers import LayerWeights, Weights
from kvrt.model.weights.names import NAMINGS
from kvrt.model.weights.naming import Name, Naming, RowOrder
from kvrt.model.weights.recurrences import recurrence_weights
from kvrt.spi import ITEM_BYTES, DType, Matrices, Matrix, PackedMatrices, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

ALWAYS_FLOAT32 = "router", "shared_scale", "positions", "conv", "mixer_gates", "mixer_decay"
"""Small matrices that decide much: which experts a token has, what it has of the shared one, where
it stands, what a channel is convolved with, and what of a state is kept."""

WITHOUT_BIAS = ("norm", "sinks", "layer_scale")
"""Ends of the fields of vectors that are no biases."""

BARE_IN_GGUF = (".scale", ".ssm_a", ".ssm_d")
"""Ends of names to which GGUF files add nothing."""

ALIGNMENT = 128
"""Bytes that each weight's address is a multiple of: two cache lines, or one GPU sector group."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the checkpoint.

    Args:
        name: as safetensors files have it.
        shape: rows first.
        gguf: its name in GGUF files.
        kind: what it is in the decoder, as `names.Naming` has it.
        order: how its rows lie in safetensors files.
        columns: there, they are columns.
        expert: whose it is, if it is an expert's.
        also: another name that some safetensors files have for it.
        together: what those of all experts are called, where they are one tensor: in safetensors
            and in GGUF files, without an end.
    """

    name: str
    shape: tuple[int, ...]
    gguf: str
    kind: str
    order: RowOrder = ""
    columns: bool = False
    expert: int | None = None
    also: str = ""
    together: tuple[str, str] = ("", "")

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
        """Whether it is in the dtype of the model, or codes; else it is float32."""
        return len(self.parts[0].shape) == 2 and self.field not in ALWAYS_FLOAT32

    @property
    def packable(self) -> bool:
        """Whether it may stay codes."""
        return self.is_matrix and self.field not in ALWAYS_FLOATS

    @property
    def of_experts(self) -> bool:
        """Whether it is the matrices of a layer's experts."""
        return self.field in ("expert_gate_up", "expert_down")

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing where it is 1."""
        return self.field.endswith(("norm", "layer_scale", "router_scale", "expert_scale"))

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])


@dataclass(frozen=True, slots=True)
class Packing:
    """Which weights stay codes, and what multiplies them.

    Args:
        formats: of tensors of the checkpoint, by name. A weight stays codes if all its parts do.
        products: the device's; None if there are no formats.
        offloaded: the experts' matrices are not among the others (`kvrt.model.offload`).
        slices: the weights that are here, where several ranks have those of the model
            (`kvrt.model.weights.slices`); None: all.
    """

    formats: Mapping[str, WeightFormat] = field(default_factory=dict)
    products: PackedMatrices | None = None
    offloaded: bool = False
    slices: tuple[Weight, ...] | None = None

    def formats_of(self, weight: Weight) -> tuple[WeightFormat, ...]:
        """Those of a weight's parts; none if it is kept as floats, as it is where parts are
        multiplied in several ways."""
        if not weight.packable:
            return ()
        formats = [self.formats.get(part.name) for part in weight.parts]
        found = tuple(format for format in formats if format is not None)
        alike = self.products is None or len({*map(self.products.rounds, {*found})}) < 2
        return found if alike and len(found) == len(formats) else ()

    @property
    def description(self) -> str:
        """As what each tensor is kept, and how it is multiplied."""
        kept = sorted(self.formats.items())
        return repr([(*one, self.products and self.products.rounds(one[1])) for one in kept])

    def arrangement(self, spec: ModelSpec, dtype: DType) -> str:
        """Says where in an arena which weights are; of packed ones, in which format."""
        weights = [(weight, self.formats_of(weight)) for weight in weights_of(spec)]
        return repr((dtype, ALIGNMENT, weights))


NOTHING_PACKED = Packing()
"""Everything is kept as floats."""


def weights_of(spec: ModelSpec) -> Iterator[Weight]:
    """The weights of a model, in the order of the arena, with the names checkpoints give them."""
    hidden = spec.hidden
    naming = NAMINGS[spec.naming]
    recurrent = NAMINGS.get(f"{spec.naming}, recurrent", naming)

    def names_of(layer: int | None) -> Naming:
        return recurrent if layer is not None and spec.every_layer[layer].recurrent else naming

    def weight(
        layer: int | None, field: str, rows: dict[str, int], *columns: int, experts: int = 0
    ) -> Weight:
        end = "weight" if columns or field.endswith(WITHOUT_BIAS) else "bias"
        together = field.removesuffix("_bias")
        naming = names_of(layer)
        if len(rows) > 1 and together in naming:  # what is under one name is one tensor
            rows = {together: sum(rows.values())}
        return Weight(
            layer,
            field,
            tuple(
                _part(naming[kind], kind, layer, expert, end, (count, *columns))
                for expert in (range(experts) if experts else (None,))
                for kind, count in rows.items()
            ),
        )

    def norm(layer: int | None, field: str, width: int) -> Iterator[Weight]:
        if field in names_of(layer):
            yield weight(layer, field, {field: width})
            if spec.norm_bias:
                yield weight(layer, f"{field}_bias", {field: width})

    yield weight(None, "embedding", {"embedding": spec.vocab}, hidden)
    if spec.learned_positions:
        yield weight(None, "positions", {"positions": spec.max_positions}, hidden)
    for layer, what in enumerate(spec.every_layer):
        if what.mixes:
            yield from norm(layer, "attention_norm", hidden)
        if what.recurrent:
            assert spec.recurrence is not None
            names = names_of(layer)
            for what_for, rows, columns in recurrence_weights(spec.recurrence, hidden, names):
                yield weight(layer, what_for, rows, *columns)
        if what.attends:
            for what_for, rows, columns in attention_weights(spec, what):
                yield weight(layer, what_for, rows, *columns)
            yield from norm(layer, "attention_post_norm", hidden)
        if what.feeds:
            yield from norm(layer, "mlp_norm", hidden)
        if spec.experts and what.experts:
            for field, rows, columns, count in expert_weights(spec.experts, hidden):
                yield weight(layer, field, rows, *columns, experts=count)
        if mlp := spec.dense_width(what):
            shared = "shared_" if what.experts else ""
            gate_up = {f"{shared}{kind}": mlp for kind in ("gate", "up")[not spec.gated :]}
            down = {f"{shared}down": hidden}
            yield weight(layer, "gate_up", gate_up, hidden)
            if spec.mlp_bias:
                yield weight(layer, "gate_up_bias", gate_up)
            if spec.activation == "xielu":
                yield weight(
                    layer, "xielu", dict.fromkeys(("alpha_p", "alpha_n", "beta", "eps"), 1)
                )
            yield weight(layer, "down", down, mlp)
            if spec.mlp_bias:
                yield weight(layer, "down_bias", down)
        if what.feeds:
            yield from norm(layer, "mlp_post_norm", hidden)
        if "layer_scale" in naming:
            yield weight(layer, "layer_scale", {"layer_scale": 1})
    if spec.predictor is not None:
        behind = len(spec.layers)
        for field in ("token_norm", "state_norm", "predicted_norm"):
            yield from norm(behind, field, hidden)
        yield weight(behind, "joined", {"joined": hidden}, 2 * hidden)
    yield from norm(None, "final_norm", hidden)
    if not spec.tied:
        yield weight(None, "head", {"head": spec.vocab}, hidden)
    if spec.head_bias:
        yield weight(None, "head_bias", {"head": spec.vocab})


def parts_of(spec: ModelSpec) -> Iterator[Part]:
    """The tensors of checkpoints that a model's weights are made of."""
    for weight in weights_of(spec):
        yield from weight.parts


def _part(
    name: Name,
    kind: str,
    layer: int | None,
    expert: int | None,
    end: str,
    shape: tuple[int, ...],
) -> Part:
    file, gguf = (one.format(layer, expert) for one in (name.file, name.gguf))
    together = ("", "")
    if expert is not None:
        file_of_all, gguf_of_all = (
            one.format(layer, "{}").replace(".{}", "") for one in (name.file, name.gguf)
        )
        together = file_of_all, gguf_of_all
    return Part(
        file if name.bare else f"{file}.{end}",
        shape,
        gguf if gguf.endswith(BARE_IN_GGUF) else f"{gguf}.{end}",
        kind,
        name.order,
        name.columns,
        expert,
        f"{name.also.format(layer)}.{end}" if name.also else "",
        together,
    )


def weight_bytes(spec: ModelSpec, dtype: DType, packing: Packing = NOTHING_PACKED) -> int:
    """Bytes that a model's weights take in memory, but experts that are offloaded."""
    return bytes_of(resident_weights(spec, packing), dtype, packing)


def bytes_of(weights: Iterable[Weight], dtype: DType, packing: Packing) -> int:
    """Bytes that some weights take in memory."""
    return sum(
        _aligned(nbytes) for weight in weights for nbytes in _piece_bytes(weight, dtype, packing)
    )


def place(
    spec: ModelSpec, dtype: DType, arena: "Tensor", packing: Packing = NOTHING_PACKED
) -> Iterator[tuple[Weight, "Tensor | Matrices"]]:
    """Each weight with its view of the arena, or the matrices that it consists of there; without
    experts that are offloaded.

    Args:
        arena: uint8, `weight_bytes` or more, on any device.
    """
    return placed(resident_weights(spec, packing), dtype, arena, packing)


def placed(
    weights: Iterable[Weight], dtype: DType, arena: "Tensor", packing: Packing
) -> Iterator[tuple[Weight, "Tensor | Matrices"]]:
    """The same of some weights, in memory of `bytes_of`."""
    import torch

    at = 0
    for weight in weights:
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


def resident_weights(spec: ModelSpec, packing: Packing) -> Iterator[Weight]:
    """The weights that are in the arena."""
    for weight in weights_of(spec) if packing.slices is None else packing.slices:
        if not (packing.offloaded and weight.of_experts):
            yield weight


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
    spec: ModelSpec,
    dtype: DType,
    arena: "Tensor",
    packing: Packing = NOTHING_PACKED,
    elsewhere: Iterable[tuple[Weight, "Tensor | Matrices"]] = (),
) -> Weights:
    """The weights in an arena that has been filled.

    Args:
        spec: of the layers that are there.
        elsewhere: what stands in their place of those that are not in it.
    """
    model: dict[str, Any] = {}
    layers: list[dict[str, Any]] = [{} for _ in spec.every_layer]
    for weight, view in (*place(spec, dtype, arena, packing), *elsewhere):
        (model if weight.layer is None else layers[weight.layer])[weight.field] = view
    every = [LayerWeights(**heads_apart(spec, layer)) for layer in layers]
    return Weights(
        embedding=model.get("embedding", ()),
        layers=tuple(every[: len(spec.layers)]),
        predictor=None if spec.predictor is None else every[-1],
        final_norm=model.get("final_norm"),
        head=model.get("head", model.get("embedding", ())),
        nbytes=arena.numel(),
        final_norm_bias=model.get("final_norm_bias"),
        head_bias=model.get("head_bias"),
        positions=model.get("positions"),
    )
