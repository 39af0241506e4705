"""The rows, or columns, of a model's weights that one rank has, each as a tensor of its own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvrt.errors import ConfigError
from kvrt.model.shard import Shard
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.weights import Packing, Part, Weight, resident_weights, weights_of
from kvrt.spi import WeightFormat

OF_VOCABULARY = "embedding", "head", "head_bias"
OF_HEADS = "qkv", "qkv_bias", "sinks"
OF_HIDDEN = "o", "o_bias", "down", "down_bias"
OF_INTERMEDIATE = "gate_up", "gate_up_bias"
OF_EXPERTS = "expert_gate_up", "expert_gate_up_bias", "expert_down", "expert_down_bias"
"""Fields of weights, by what their rows are. Other weights are small, and every rank has them.
Where ranks add up what they have made (`Shard.exact` is False), matrices of `OF_HIDDEN` are cut by
columns instead, and every rank has their biases. Of an expert, a rank has all or nothing."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows of a tensor of the checkpoint.

    Args:
        whole: the tensor.
        rows: which.
        columns: which of their columns; None: all.
    """

    whole: Part
    rows: range
    columns: range | None = None

    @property
    def name(self) -> str:
        """That of the tensor, if it is all of it."""
        name, rows, columns = self.whole.name, self.rows, self.columns
        if columns is not None:
            return f"{name}[:,{columns.start}:{columns.stop}]"
        return name if len(rows) == self.whole.shape[0] else f"{name}[{rows.start}:{rows.stop}]"

    @property
    def part(self) -> Part:
        """As a tensor of its own."""
        columns = self.whole.shape[1:] if self.columns is None else (len(self.columns),)
        return replace(self.whole, name=self.name, shape=(len(self.rows), *columns))


def cuts_of(weight: Weight, spec: ModelSpec, shard: Shard) -> list[Cut]:
    """What of a weight a rank of the weight's stage has.

    Args:
        spec: of the whole model.
    """
    field = weight.field
    if field in OF_EXPERTS and spec.experts is not None:
        own = shard.span(spec.experts.count)
        return [Cut(part, range(part.shape[0])) for part in weight.parts if part.expert in own]
    if shard.parts == 1 or field not in OF_VOCABULARY + OF_HEADS + OF_HIDDEN + OF_INTERMEDIATE:
        return [Cut(part, range(part.shape[0])) for part in weight.parts]
    if field in OF_HIDDEN and not shard.exact:
        columns = _columns(weight, spec, shard) if weight.is_matrix else None
        return [Cut(part, range(part.shape[0]), columns) for part in weight.parts]
    found: list[Cut] = []
    for part in weight.parts:
        at = 0
        for rows, own in _blocks(weight, part, spec, shard):
            found.append(Cut(part, range(at + own.start, at + own.stop)))
            at += rows
    return found


def _columns(weight: Weight, spec: ModelSpec, shard: Shard) -> range:
    """Those of a matrix of `OF_HIDDEN` that go with the heads, or the features, of the rank."""
    count = spec.heads if weight.field == "o" else _features(weight, spec)
    own, each = shard.span(count), weight.shape[1] // count
    return range(own.start * each, own.stop * each)


def _features(weight: Weight, spec: ModelSpec) -> int:
    """Of the feed-forward layer that all tokens have, where a weight is."""
    assert weight.layer is not None
    return spec.dense_width(spec.every_layer[weight.layer])


def _blocks(
    weight: Weight, part: Part, spec: ModelSpec, shard: Shard
) -> Iterator[tuple[int, range]]:
    """The blocks of rows that a tensor consists of, and which rows of each the rank has."""
    field, rows = weight.field, part.shape[0]
    if field in OF_HEADS:
        dim = 1 if field == "sinks" else spec.head_dim
        q, kv = shard.span(spec.heads), shard.kv_heads(spec.kv_heads)
        kinds = {"k": (spec.kv_heads, kv), "v": (spec.kv_heads, kv)}
        queries = spec.heads, q
        each = [kinds.get(part.kind, queries)]
        if part.kind == "qkv":
            each = [queries, kinds["k"], kinds["v"]]
        for heads, own in each:
            yield heads * dim, range(own.start * dim, own.stop * dim)
        return
    count = rows // _features(weight, spec) if field in OF_INTERMEDIATE else 1
    for _ in range(count):
        yield rows // count, shard.span(rows // count)


def stage_has(weight: Weight, spec: ModelSpec, shard: Shard) -> bool:
    """Whether a rank's stage has any of a weight."""
    if weight.layer is not None:
        return weight.layer in shard.layers(len(spec.layers))
    if weight.field in ("embedding", "positions"):
        return shard.is_first or (weight.field == "embedding" and spec.tied and shard.is_last)
    return shard.is_last


def sliced(spec: ModelSpec, shard: Shard, packing: Packing) -> Iterator[tuple[Weight, list[Cut]]]:
    """The weights that a rank has, as `weights_of` has them: their layers are counted from its
    first one, and their parts are its own rows. And what these are of the whole model.

    Args:
        spec: of the whole model.
    """
    first = shard.layers(len(spec.layers)).start
    for weight in resident_weights(spec, packing):
        if stage_has(weight, spec, shard):
            cuts = cuts_of(weight, spec, shard)
            layer = None if weight.layer is None else weight.layer - first
            yield replace(weight, layer=layer, parts=tuple(cut.part for cut in cuts)), cuts


def packing_of(spec: ModelSpec, shard: Shard, packing: Packing) -> Packing:
    """What a rank keeps of weights that are packed so.

    Raises:
        ConfigError: columns are dealt out in the middle of what shares a scale.
    """
    formats: dict[str, WeightFormat] = {**packing.formats}
    slices: list[Weight] = []
    for weight, cuts in sliced(spec, shard, packing):
        slices.append(weight)
        for cut in cuts:
            format = packing.formats.get(cut.whole.name)
            if format is None:
                continue
            if cut.columns is not None and not format.fits(len(cut.columns)):
                raise uneven(cut, format.name)
            formats[cut.name] = format
    return replace(packing, formats=formats, slices=tuple(slices))


def uneven(cut: Cut, kept_as: str) -> ConfigError:
    """Columns cannot be dealt out as they would have to be."""
    assert cut.columns is not None
    return ConfigError(
        f"a rank would have columns {cut.columns.start} to {cut.columns.stop} of {cut.whole.name},"
        f" which as {kept_as} has a scale for several columns, and they do not all go together",
        fix="use tensor_parallel_mode exact, another tensor_parallel, or weights that are floats",
    )


def ranks_with(spec: ModelSpec, shard: Shard) -> dict[str, list[int]]:
    """The ranks that have each part, by its name. The first of them reads it."""
    found: dict[str, list[int]] = {}
    for rank in range(shard.ranks):
        own = shard.of_rank(rank)
        for weight in weights_of(spec):
            if stage_has(weight, spec, own):
                for cut in cuts_of(weight, spec, own):
                    found.setdefault(cut.name, []).append(rank)
    return found
